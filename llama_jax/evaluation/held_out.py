"""The held-out losses of a finished run beside those of n-gram models."""

import math

from rich.console import Console
from rich.table import Table

from llama_jax.config import Experiment
from llama_jax.evaluation.ngrams import ngram_losses
from llama_jax.evaluation.perplexity import mixture_loss


def print_losses(title: str, losses: dict[str, float], experiment: Experiment) -> None:
    """Print loss and perplexity by source, beside those of n-gram models of the training text."""
    ngrams = ngram_losses(experiment.data, experiment.upkeep.eval_rows)
    unigram = {source: pair[0] for source, pair in ngrams.items()}
    bigram = {source: pair[1] for source, pair in ngrams.items()}

    table = Table(title=f"{title}: held-out loss, nats a token", title_justify="left")
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
    Console(markup=False).print(table)
