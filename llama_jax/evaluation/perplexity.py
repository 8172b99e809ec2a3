"""Held-out loss by source."""

from collections.abc import Callable

import jax

from llama_jax.config import DataConfig, Experiment
from llama_jax.data.batches import validation_batches
from llama_jax.model import Llama
from llama_jax.sharding import batch_sharding


def validation_losses(
    eval_step: Callable, model: Llama, experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Mean loss in nats a token of each source's first run.eval_rows held-out rows.

    Batches have the size of a training micro-batch, so they need no more memory than training.
    """
    data, run = experiment.data, experiment.run
    sharding = batch_sharding(mesh, experiment.mesh, "BT")
    losses = {}
    for source, _ in data.mixture:
        rows = data.batch_size // run.micro_batches
        batches = validation_batches(data, source, run.eval_rows, rows, sharding)
        sums = [eval_step(model, batch) for batch in batches]
        loss, targets = (sum(column) for column in zip(*jax.device_get(sums), strict=True))
        losses[source] = float(loss) / int(targets)
    return losses


def mixture_loss(losses: dict[str, float], data: DataConfig) -> float:
    """The sources' losses weighted as in training."""
    return sum(rate * losses[source] for source, rate in data.mixture)
