"""A tiny run, and what it leaves behind."""

from pathlib import Path

from etils import epath

from llama_jax.config import Experiment
from llama_jax.data import store, tokenizer
from llama_jax.run import checkpoint
from llama_jax.run.metrics import read_metrics

NUM_STEPS = 12

EXPERIMENT = """
from llama_jax.config import *

def get_experiment():
    return Experiment(
        model=ModelConfig(num_layers=2, embed_dim=32, num_heads=4, vocab_size=512,
                          compute_dtype="float32"),
        data={data!r},
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
        run=RunConfig(num_steps={num_steps}),
        upkeep=Upkeep(eval_every=6, eval_rows=8, checkpoint_every=3, keep_last=2, keep_every=6),
    )
"""


def fingerprints(workdir: Path, step: int = NUM_STEPS) -> dict[str, int]:
    return checkpoint.read_meta(epath.Path(workdir), step).fingerprints


def origin_of(experiment: Experiment) -> checkpoint.Origin:
    """Return what a run of the experiment is made from."""
    data = experiment.data
    return checkpoint.Origin(store.digest(data), tokenizer.sha256(data.tokenizer))


def losses(workdir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(epath.Path(workdir)) if "loss" in r}
