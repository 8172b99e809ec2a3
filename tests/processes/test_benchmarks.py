"""benchmarks/gpu.py where there is no GPU, and where a part fails."""

import os
import re
import subprocess
import sys

import gpu
from helpers.paths import ROOT


def test_without_a_card_it_says_so_in_one_line():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"jax \S+ sees no GPU here, only cpu\n", done.stderr)


def test_a_part_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(gpu, "__file__", str(ROOT / "benchmarks/gpu_that_is_not_there.py"))
    failed = gpu.ask("limits", seconds=60)
    assert failed.rows == [] and failed.failure == "ended with status 2"
