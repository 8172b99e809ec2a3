"""Benchmarks: data.py at a tiny size; gpu.py where there is no GPU, and where a part fails."""

import os
import re
import subprocess
import sys

import gpu
from helpers.paths import ROOT


def test_the_data_benchmark_prints_each_beside_its_limit():
    done = subprocess.run(
        [sys.executable, "benchmarks/data.py"]
        + ["--rounds", "1", "--mb", "0.7", "--seq-len", "128"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"\u2502 +(\S.*?) \u2502 +([\d.]+) \u2502.*\u2502 +([\d.]+) \u2502", done.stdout
    )
    assert [name for name, _, _ in rows] == [
        *("training input, from the store", "limit: a memory map"),
        *("cache, its tokenizing", "SentencePiece", "tokenizers"),
    ]
    rates = [float(rate) for _, rate, _ in rows]
    for (_, _, ratio), rate, first in zip(rows, rates, rates[:1] * 2 + rates[2:3] * 3, strict=True):
        assert abs(float(ratio) - first / rate) < 0.1 * float(ratio) + 0.02


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
