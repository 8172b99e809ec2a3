"""A ladder of model sizes, and schedules matched to the length of a run: to write sweeps with.

Hoffmann et al., arXiv 2203.15556: a cosine that is longer than the run by a quarter shows in the
loss (figure A1), so that only the end of a run whose cosine ends there counts.
"""

import dataclasses

from llama_jax.config import Experiment, ModelConfig
from llama_jax.flops import num_params

# Layers, width and heads of some of Hoffmann's models (Table A9), which count 32k embeddings once.
LADDER = {
    "44M": (8, 512, 8),
    "74M": (10, 640, 10),
    "117M": (12, 768, 12),
    "175M": (14, 896, 14),
    "251M": (16, 1024, 16),
    "425M": (18, 1280, 10),
    "632M": (19, 1536, 12),
    "893M": (20, 1792, 14),
    "1266M": (22, 2048, 16),
    "1731M": (24, 2304, 18),
    "2639M": (30, 2560, 20),
    "4516M": (36, 3072, 24),
    "6796M": (40, 3584, 28),
    "9293M": (42, 4096, 32),
    "12569M": (47, 4608, 36),
}


def matched(
    base: Experiment, model: ModelConfig, tokens: float, *, evaluations: int, warmup_share: float
) -> Experiment:
    """Return base with another model, trained on `tokens` to the next step, where its cosine ends.

    The held-out loss is taken, and a checkpoint written, at `evaluations` evenly spaced steps.
    warmup_share: of the steps.
    """
    steps = max(2, round(tokens / (base.data.batch_size * base.data.seq_len)))
    every = -(-steps // evaluations)
    return dataclasses.replace(
        base,
        model=model,
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=int(warmup_share * steps)),
        run=dataclasses.replace(base.run, num_steps=steps),
        upkeep=dataclasses.replace(base.upkeep, eval_every=every, checkpoint_every=every),
    )


def tokens_for(model: ModelConfig, flops: float) -> float:
    """Return D of C = 6ND, embeddings counted."""
    return flops / (6 * num_params(model))
