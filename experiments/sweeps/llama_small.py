"""The paper's four sizes scaled down: an eighth of the width, a quarter of the depth.

Each has as many tokens per parameter as the original (148, 77, 43 and 21) and its learning rate.
Needs: a token store of the paper's seven sources, and a slice with 16 chips for each run at a time.
Takes: llama-jax sweep experiments/sweeps/llama_small.py --dry-run --slice v5p:2x2x4

llama-jax sweep experiments/sweeps/llama_small.py --workdir gs://BUCKET/llama_small
"""

import dataclasses

from llama_jax.config import (
    LLAMA_7B,
    LLAMA_13B,
    LLAMA_33B,
    LLAMA_65B,
    DataConfig,
    Execution,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
)
from llama_jax.flops import num_params
from llama_jax.sweeps.ladder import matched

WIDTH, DEPTH = 8, 4  # by which they are divided
HEAD_DIM = 64
# Tokens and peak learning rate: paper, Table 2.
SIZES = {
    "7B-small": (LLAMA_7B, 1.0e12, 3e-4),
    "13B-small": (LLAMA_13B, 1.0e12, 3e-4),
    "33B-small": (LLAMA_33B, 1.4e12, 1.5e-4),
    "65B-small": (LLAMA_65B, 1.4e12, 1.5e-4),
}


BASE = Experiment(
    model=LLAMA_7B,
    data=DataConfig(
        corpus="gs://BUCKET/corpus",
        tokenizer="gs://BUCKET/tokenizer.model",
        store="gs://BUCKET/store",
        seq_len=2048,
        batch_size=256,  # rows: 0.5M tokens
    ),
    optimizer=OptimizerConfig(peak_lr=3e-4),
    run=RunConfig(num_steps=10_000),
    execution=Execution(slice="v5p:2x2x4", mesh=MeshConfig(fsdp=16)),
    upkeep=Upkeep(eval_every=1_000, eval_rows=512, checkpoint_every=1_000),
)


def get_sweep() -> dict[str, Experiment]:
    sweep = {}
    for name, (original, tokens, rate) in SIZES.items():
        width = original.embed_dim // WIDTH
        model = dataclasses.replace(
            original,
            num_layers=original.num_layers // DEPTH,
            embed_dim=width,
            num_heads=width // HEAD_DIM,
        )
        base = dataclasses.replace(
            BASE, optimizer=dataclasses.replace(BASE.optimizer, peak_lr=rate)
        )
        ratio = tokens / num_params(original)
        sweep[name] = matched(
            base, model, ratio * num_params(model), evaluations=20, warmup_share=0.05
        )
    return sweep
