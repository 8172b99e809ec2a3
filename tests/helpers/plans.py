"""A tiny model to plan for slices that are not there."""

import importlib.util

import pytest

from helpers.paths import EXPERIMENTS
from llama_jax.hardware import parse_slice
from llama_jax.plan import slices

EXPERIMENT = str(EXPERIMENTS / "llama_7b.py")

SLICE = parse_slice("v5e:2x2")

TINY = [
    "model.num_layers=2",
    "model.embed_dim=128",
    "model.num_heads=1",
    "model.vocab_size=256",
    "execution.attention=splash",
    "execution.remat=qkv",
    "data.seq_len=256",
    "data.batch_size=8",
    "execution.micro_batches=1",
    "execution.compiler_options=()",
    "execution.mesh.replica=1",
    "execution.mesh.fsdp=4",
    "execution.mesh.tensor=1",
    "execution.mesh.sequence_parallel=false",
]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; it needs no TPU",
)


def tiny(*changes: str, target=SLICE):
    return slices.load(EXPERIMENT, [*TINY, *changes], target)


def sets(*overrides: str) -> list[str]:
    """Return the --set options of the tiny model, changed."""
    return [word for text in (*TINY, *overrides) for word in ("--set", text)]
