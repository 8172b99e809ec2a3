"""The commands of README.md and docs/ work as they stand, in the order of PAGES."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.pages import PAGES
from helpers.paths import ROOT


def test_every_command_works(tmp_path):
    text = "".join((ROOT / page).read_text() for page in PAGES)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert "make train" in commands and len(commands) >= 8
    # Where nothing was run before.
    shutil.copytree(ROOT, tmp_path / "x", ignore=shutil.ignore_patterns(".*", "runs", "shared"))
    # In this environment, whichever Python and JAX it is of; and not as a part of `make test`.
    bin_dir = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MAKEFLAGS", "MAKELEVEL")}
    env["PATH"] = f"{bin_dir}{os.pathsep}{env['PATH']}"
    for command in commands:
        if command.startswith("make "):
            command += f" PYTHON={sys.executable} VENV={bin_dir.parent}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path / "x", env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("make train"):
            check_quickstart(done.stdout + done.stderr, tmp_path / "x/runs/quickstart")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "x", env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shape, *text, losses, loss = done.stdout.splitlines()
    assert shape.startswith("(1, ") and text and "'commoncrawl': 3." in losses
    assert 7 < float(loss) < 8.5  # of initial weights: about the logarithm of 2,048


def check_quickstart(printed: str, workdir: Path) -> None:
    """It beats a bigram model that has counted all of the training text, and says where it is."""
    (row,) = [line for line in printed.splitlines() if line.startswith("│ mixture")]
    loss, _, bigram, unigram = map(float, re.findall(r"\d+\.\d+", row))
    assert loss < bigram - 0.2 and bigram < unigram - 1
    assert "The state of the Union" in printed
    assert (workdir / "loss.png").exists()
