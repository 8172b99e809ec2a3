"""Peak learning rate times batch size, at one size of model and one number of tokens.

Needs: a token store of the paper's seven sources, and a slice with 16 chips for each run at a time.
Takes: llama-jax sweep experiments/sweeps/lr_batch.py --dry-run --slice v5p:2x2x4

llama-jax sweep experiments/sweeps/lr_batch.py --workdir gs://BUCKET/lr_batch --shard 1/4
"""

import dataclasses

from llama_jax.config import (
    LLAMA_110M,
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

RATES = (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3)
ROWS = (64, 128, 256, 512)  # 0.13M to 1M tokens a step
TOKENS_PER_PARAM = 20
BASE = Experiment(
    model=LLAMA_110M,
    data=DataConfig(
        corpus="gs://BUCKET/corpus",
        tokenizer="gs://BUCKET/tokenizer.model",
        store="gs://BUCKET/store",
        seq_len=2048,
        batch_size=256,
    ),
    optimizer=OptimizerConfig(peak_lr=6e-4),
    run=RunConfig(num_steps=10_000),
    execution=Execution(slice="v5p:2x2x4", mesh=MeshConfig(fsdp=16)),
    upkeep=Upkeep(eval_every=1_000, eval_rows=512, checkpoint_every=1_000),
)


def get_sweep() -> dict[str, Experiment]:
    tokens = TOKENS_PER_PARAM * num_params(LLAMA_110M)
    sweep = {}
    for rows in ROWS:
        for rate in RATES:
            base = dataclasses.replace(
                BASE,
                data=dataclasses.replace(BASE.data, batch_size=rows),
                optimizer=dataclasses.replace(BASE.optimizer, peak_lr=rate),
            )
            sweep[f"{rows}-rows-{rate:g}"] = matched(
                base, LLAMA_110M, tokens, evaluations=10, warmup_share=0.05
            )
    return sweep
