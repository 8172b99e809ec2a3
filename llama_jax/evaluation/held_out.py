"""The held-out losses of a finished run beside those of n-gram models."""

import math

import jax
from etils import epath
from rich.console import Console
from rich.table import Table

from llama_jax.attention import check_platform
from llama_jax.config import Experiment
from llama_jax.evaluation.ngrams import ngram_losses
from llama_jax.evaluation.perplexity import mixture_loss, validation_losses
from llama_jax.run import checkpoint
from llama_jax.sharding import make_mesh
from llama_jax.step import make_eval_step, next_token_loss


def evaluate_run(workdir: epath.Path, step: int, experiment: Experiment) -> None:
    """Print loss and perplexity by source, beside those of n-gram models of the training text."""
    check_platform(experiment.execution)
    mesh = make_mesh(experiment.execution.mesh, jax.devices())
    with jax.set_mesh(mesh):
        params = checkpoint.restore_model(workdir, step, experiment)
        eval_step = make_eval_step(next_token_loss(experiment.execution))
        losses = validation_losses(eval_step, params, None, experiment, mesh)
    ngrams = ngram_losses(experiment.data, experiment.upkeep.eval_rows)
    unigram = {source: pair[0] for source, pair in ngrams.items()}
    bigram = {source: pair[1] for source, pair in ngrams.items()}

    table = Table(title=f"{workdir}@{step}: held-out loss, nats a token", title_justify="left")
    table.add_column("source")
    for column in ("model", "perplexity", "bigram", "unigram"):
        table.add_column(column, justify="right")
    for source, loss in losses.items():
        row = (loss, math.exp(loss), bigram[source], unigram[source])
        table.add_row(source, *(f"{x:.3f}" for x in row))
    table.add_section()
    mean, bigram_mean, unigram_mean = (
        mixture_loss(column, experiment.data) for column in (losses, bigram, unigram)
    )
    row = (mean, math.exp(mean), bigram_mean, unigram_mean)
    table.add_row("mixture", *(f"{x:.3f}" for x in row))
    Console().print(table)
