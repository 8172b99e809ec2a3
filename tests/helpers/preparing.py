"""prepare, run in its own environment, and what it has made."""

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import environment

ENVIRONMENT = ROOT / ".venv-prepare"
PYTHON = ENVIRONMENT / "bin/python"
LONG = " and so on" * 40  # more than a short page has
# Rules of Common Crawl that need models.
WITHOUT = [word for name in ("language", "perplexity", "reference") for word in ("--without", name)]


def need_environment() -> None:
    """Skip the test where it is missing."""
    if not PYTHON.exists():
        pytest.skip("no environment .venv-prepare: make prepare")


def llama_jax(*args) -> subprocess.CompletedProcess:
    command = [str(PYTHON), "-m", "llama_jax", *map(str, args)]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)


def prepare(source: str, *args) -> subprocess.CompletedProcess:
    return llama_jax("prepare", source, *args)


def documents(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("train-*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
