"""A ladder of sizes, each trained on four numbers of tokens over a factor of 16: Approach 1.

Each horizon is a run of its own, whose cosine ends where it does (arXiv 2203.15556, section 3.1).
Needs: a token store of the paper's seven sources, and a slice with 16 chips for each run at a time.
Takes: llama-jax sweep experiments/sweeps/token_ladder.py --dry-run --slice v5p:2x2x4

llama-jax sweep experiments/sweeps/token_ladder.py --workdir gs://BUCKET/token_ladder --shard 1/4
"""

from llama_jax.config import (
    DataConfig,
    Execution,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    Upkeep,
)
from llama_jax.flops import num_params
from llama_jax.sweeps.ladder import LADDER, matched

RATIOS = (5, 12.6, 31.7, 80)  # tokens per parameter
SIZES = ("44M", "74M", "117M", "175M", "251M", "425M", "632M", "893M", "1266M")
BASE = Experiment(
    model=ModelConfig(num_layers=8, embed_dim=512, num_heads=8, vocab_size=32_000),
    data=DataConfig(
        corpus="gs://BUCKET/corpus",
        tokenizer="gs://BUCKET/tokenizer.model",
        store="gs://BUCKET/store",
        seq_len=2048,
        batch_size=256,  # rows: 0.5M tokens
    ),
    optimizer=OptimizerConfig(peak_lr=2e-4),
    run=RunConfig(num_steps=10_000),
    execution=Execution(slice="v5p:2x2x4", mesh=MeshConfig(fsdp=16)),
    upkeep=Upkeep(eval_every=1_000, eval_rows=512, checkpoint_every=1_000),
)


def get_sweep() -> dict[str, Experiment]:
    sweep = {}
    for name in SIZES:
        layers, width, heads = LADDER[name]
        model = ModelConfig(num_layers=layers, embed_dim=width, num_heads=heads, vocab_size=32_000)
        for ratio in RATIOS:
            tokens = ratio * num_params(model)
            sweep[f"{name}-x{ratio:g}"] = matched(
                BASE, model, tokens, evaluations=40, warmup_share=0.05
            )
    return sweep
