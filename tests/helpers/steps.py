"""An experiment of a few steps, and its batches."""

import dataclasses

import numpy as np

from llama_jax.config import (
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
)
from llama_jax.step import next_token_loss

BASE = Experiment(
    model=ModelConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        mlp_dim_override=48,
        vocab_size=64,
        compute_dtype="float32",
        init_std=0.1,
    ),
    data=DataConfig(store="", seq_len=24, batch_size=8),
    optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1),
    run=RunConfig(num_steps=10),
    upkeep=Upkeep(eval_every=10, eval_rows=8, checkpoint_every=10),
)


LOSS = next_token_loss(BASE.execution)


def replace(experiment: Experiment, section: str, **fields) -> Experiment:
    changed = dataclasses.replace(getattr(experiment, section), **fields)
    return dataclasses.replace(experiment, **{section: changed})


def packed_batch(step: int) -> dict[str, np.ndarray]:
    """Random rows of two documents each, with some targets that do not count; int32 [8, 24]."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (8, 25)).astype(np.int32)
    cut = rng.integers(4, 20, (8, 1))
    place = np.arange(24)[None]
    return {
        "tokens": tokens[:, :-1],
        "targets": np.where(place == cut - 1, -1, tokens[:, 1:]).astype(np.int32),
        "segments": (1 + (place >= cut)).astype(np.int32),
        "positions": np.where(place >= cut, place - cut, place).astype(np.int32),
    }
