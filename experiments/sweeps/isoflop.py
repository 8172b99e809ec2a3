"""IsoFLOP curves: budgets of training FLOPs, and at each models from too small to too large.

Needs: a token store of the paper's seven sources, and a slice with 16 chips for each run at a time.
Takes: llama-jax sweep experiments/sweeps/isoflop.py --dry-run --slice v5p:2x2x4 --price DOLLARS

llama-jax sweep experiments/sweeps/isoflop.py --workdir gs://BUCKET/isoflop --shard 1/4
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
from llama_jax.sweeps.ladder import LADDER, matched, tokens_for

BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # arXiv 2203.15556, figure 3
SPREAD = 4  # sizes from the optimum over SPREAD to the optimum times SPREAD
BASE = Experiment(
    model=ModelConfig(num_layers=8, embed_dim=512, num_heads=8, vocab_size=32_000),
    data=DataConfig(
        corpus="gs://BUCKET/corpus",
        tokenizer="gs://BUCKET/tokenizer.model",
        store="gs://BUCKET/store",
        seq_len=2048,
        batch_size=256,  # rows: 0.5M tokens
    ),
    optimizer=OptimizerConfig(peak_lr=2e-4),  # theirs; 1.25e-4 for their largest
    run=RunConfig(num_steps=10_000),
    execution=Execution(slice="v5p:2x2x4", mesh=MeshConfig(fsdp=16)),
    upkeep=Upkeep(eval_every=1_000, eval_rows=512, checkpoint_every=1_000),
)


def get_sweep() -> dict[str, Experiment]:
    sweep = {}
    for flops in BUDGETS:
        optimum = 0.1 * flops**0.5  # parameters, about; Hoffmann's Approach 2 has 0.149 C^0.489
        for name, (layers, width, heads) in LADDER.items():
            model = ModelConfig(
                num_layers=layers, embed_dim=width, num_heads=heads, vocab_size=32_000
            )
            if optimum / SPREAD <= num_params(model) <= optimum * SPREAD:
                tokens = tokens_for(model, flops)
                sweep[f"{flops:.0e}-{name}"] = matched(
                    BASE, model, tokens, evaluations=10, warmup_share=0.05
                )
    return sweep
