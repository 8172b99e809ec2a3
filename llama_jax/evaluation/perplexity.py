"""Held-out loss by source."""

from typing import Any

import jax

from llama_jax.config import DataConfig, Experiment
from llama_jax.data.batches import validation_batches
from llama_jax.sharding import batch_sharding
from llama_jax.step import Loss


def validation_losses(
    eval_step: Loss, params: Any, frozen: Any, experiment: Experiment, mesh: jax.sharding.Mesh
) -> dict[str, float]:
    """Compute the mean loss in nats a token of each source's first upkeep.eval_rows held-out rows.

    Batches have the size of a training micro-batch, so they need no more memory than training; or
    what the mesh makes of it, if it is not the one of training.
    """
    data, execution = experiment.data, experiment.execution
    sharding = batch_sharding(mesh, execution.mesh, "BT")
    ways = mesh.size // mesh.shape["tensor"]
    rows = -(-data.batch_size // execution.micro_batches // ways) * ways
    losses = {}
    for source, _ in data.mixture:
        batches = validation_batches(data, source, experiment.upkeep.eval_rows, rows, sharding)
        sums = [eval_step(params, frozen, batch) for batch in batches]
        loss, targets = (sum(column) for column in zip(*jax.device_get(sums), strict=True))
        losses[source] = float(loss) / int(targets)
    return losses


def mixture_loss(losses: dict[str, float], data: DataConfig) -> float:
    """Return the mean of the sources' losses, weighted as in training."""
    return sum(rate * losses[source] for source, rate in data.mixture)
