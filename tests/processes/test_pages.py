"""The commands of README.md and docs/ work as they stand, in the order of PAGES."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.pages import PAGES
from helpers.paths import ROOT

TRAIN = "make train"


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A copy of the repository in which nothing was run before."""
    place = tmp_path_factory.mktemp("pages") / "x"
    return shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "runs", "shared"))


@pytest.fixture(scope="module")
def run(place) -> Callable[..., str]:
    """Run a command there; return its standard output.

    In this environment, whichever Python and JAX it is of; and not as a part of `make test`.
    """
    bin_dir = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MAKEFLAGS", "MAKELEVEL")}
    env["PATH"] = f"{bin_dir}{os.pathsep}{env['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def quickstart(run) -> str:
    """The output of `make train`; the run is what the other commands use."""
    return run(
        "bash", "-c", f"{TRAIN} PYTHON={sys.executable} VENV={Path(sys.executable).parents[1]}"
    )


def test_the_quickstart_beats_a_bigram_model_of_all_its_text(quickstart, place):
    """And says where it is."""
    (row,) = [line for line in quickstart.splitlines() if line.startswith("│ mixture")]
    loss, _, bigram, unigram = map(float, re.findall(r"\d+\.\d+", row))
    assert loss < bigram - 0.2 and bigram < unigram - 1
    assert "The state of the Union" in quickstart
    assert (place / "runs/quickstart/loss.png").exists()


def test_there_are_commands_to_run():
    assert TRAIN in commands("README.md")
    assert len([command for page in PAGES for command in commands(page)]) >= 8


@pytest.mark.parametrize("page", PAGES)
def test_every_command_works(quickstart, run, page):
    """A page may use what those before it have made."""
    for command in commands(page):
        if command != TRAIN:
            run("bash", "-c", command)


def test_the_readmes_python_works(quickstart, run):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shape, *text, losses, loss = run(sys.executable, "-c", code).splitlines()
    assert shape.startswith("(1, ") and text and "'commoncrawl': 3." in losses
    assert 7 < float(loss) < 8.5  # of initial weights: about the logarithm of 2,048
