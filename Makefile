# make train: trains the quickstart. make test: runs every test. Both set themselves up first.
# make clients: llama.cpp and litgpt, each in an environment of its own, for the tests that want them.
# make plan-all: compiles the four sizes for their TPU slices, without a TPU.
# Another Python:  make test PYTHON=python3.13
# The newest JAX:  make test PYTHON=python3.13 REQUIREMENTS=requirements-current.txt
# On a TPU VM:     make setup REQUIREMENTS=requirements-tpu.txt
# Each requirements file but the first has an environment of its own: .venv, .venv-current, .venv-tpu.

PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV ?= $(REQUIREMENTS:requirements%.txt=.venv%)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
# A stamp says that these requirements are installed, for this version of Python.
READY := $(VENV)/ready-$(VERSION)
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: setup train test clients plan-all lint format clean

setup: $(READY)-$(REQUIREMENTS)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "llama_jax needs Python 3.11 or later; $(PYTHON) is $(VERSION). Try make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV) with Python $(VERSION)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@touch $@

$(READY)-requirements.txt: requirements.txt pyproject.toml | $(READY)
	@$(UV) -r requirements.txt
	@$(UV) --no-deps --editable .
	@touch $@

$(READY)-requirements-tpu.txt $(READY)-requirements-current.txt: $(READY)-%: % $(READY)-requirements.txt
	@$(UV) -r $*
	@touch $@

# By pip, which knows of a local build of torch where its own configuration names one.
$(READY)-requirements-test.txt: requirements-test.txt $(READY)-requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

$(READY)-requirements-lint.txt: requirements-lint.txt $(READY)-requirements.txt
	@$(UV) -r requirements-lint.txt
	@touch $@

train: setup
	@$(BIN)/llama-jax train experiments/quickstart.py
	@$(BIN)/llama-jax evaluate runs/quickstart
	@$(BIN)/llama-jax sample runs/quickstart --prompt "The state of the Union"

test: setup $(READY)-requirements-test.txt
	@$(BIN)/python -m pytest

clients: .venv-llamacpp/ready .venv-litgpt/ready

# By pip, which keeps the wheel that it compiles of llama.cpp: minutes once, then seconds.
.venv-llamacpp/ready .venv-litgpt/ready: .venv-%/ready: requirements-%.txt
	@echo "setting up .venv-$*"
	@$(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

plan-all: setup
	@$(BIN)/python tests/golden_plans.py

lint: setup $(READY)-requirements-lint.txt
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)-requirements-lint.txt
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-* runs
