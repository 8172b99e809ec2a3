"""A sweep of tiny models."""

from etils import epath

from helpers.paths import ROOT
from llama_jax.config import Experiment
from llama_jax.sweeps import sweep

SWEEP = """
from llama_jax.config import *

def get_sweep():
    return {{
        f"{{dim}}-{{steps}}": Experiment(
            model=ModelConfig(num_layers=1, embed_dim=dim, num_heads=2, vocab_size=vocab_size,
                              compute_dtype="float32"),
            data={data!r},
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
            run=RunConfig(num_steps=steps),
            upkeep=Upkeep(eval_every=steps // 2, eval_rows=2, checkpoint_every=steps // 4),
        )
        for dim, steps, vocab_size in {runs}
    }}
"""


# The sweeps of the repository


def shipped(name: str) -> dict[str, Experiment]:
    path = ROOT / f"experiments/sweeps/{name}.py"
    return {run.name: run.experiment for run in sweep.load(str(path), [], epath.Path("x"))}
