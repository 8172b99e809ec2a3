"""Losses that jump, or are no numbers: what counts as one, and what run.on_spike does about it.

stop ends the run. skip leaves parameters and optimizer as they were before that update, as OLMo's
SkipStepOptimizer does. roll_back goes back to the checkpoint before it and leaves out the batches
since then, as PaLM (arXiv 2204.02311, section 5.1) was trained. Each is a function of the losses
before, and the same when a run is killed and goes on.
"""

import bisect
import math

import jax
import numpy as np
from etils import epath

from llama_jax.config import RunConfig
from llama_jax.hosts import gather
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import metrics_file

WINDOW = 128  # losses that a loss is compared with; before there are so many, any is as expected
DELAY = 2  # an update is computed while the one before is, so it is compared with earlier ones
MOST_IN_A_ROW = 10  # updates that are skipped before the run ends
MOST_ROLL_BACKS = 3  # to one checkpoint


class Diverged(RuntimeError):
    """Training cannot go on; the message names the step, its rows and the checkpoint before it."""

    status = 1  # to exit with


class RollBack(RuntimeError):
    """Training goes on from the newest checkpoint, without some batches."""

    def __init__(self, message: str, start: int, next_batch: int):
        """start: updates that were made at the checkpoint. next_batch: to be taken from there."""
        super().__init__(message)
        self.start, self.next_batch, self.times = start, next_batch, 1

    def after(self, earlier: "RollBack | None") -> "RollBack":
        """Return this one, counted. Raise Diverged if it is one too many from its checkpoint."""
        if earlier is not None and earlier.start == self.start:
            self.times = earlier.times + 1
        if self.times > MOST_ROLL_BACKS:
            raise Diverged(f"{self}; rolled back to step {self.start} {MOST_ROLL_BACKS} times")
        return self.with_traceback(None)  # which holds the state


class Spikes:
    """Remembers the losses that later ones are compared with."""

    def __init__(self, run: RunConfig, workdir: epath.Path, start: int):
        """start: updates made; the losses before are read from the run's metrics."""
        self.run = run
        self.steps: list[int] = []  # updates made after each
        self.losses: list[float] = []
        self.in_a_row = 0  # skipped
        if run.spike_deviations is not None and start:
            here = jax.process_index() == 0 and metrics_file(workdir).exists()
            rows = read_metrics(workdir) if here else []
            losses = [(r["step"], r["loss"]) for r in rows if _counts(r) and r["step"] <= start]
            for step, loss in gather(losses[-WINDOW - DELAY :])[0]:
                self.add(step, loss)

    def add(self, step: int, loss: float) -> None:
        """Take a loss that is as expected."""
        self.in_a_row = 0
        self.steps.append(step)
        self.losses.append(loss)
        del self.steps[: -WINDOW - DELAY], self.losses[: -WINDOW - DELAY]

    def limit(self, step: int) -> np.float32:
        """Return the largest loss that is as expected of the update that leads to `step`."""
        known = self.losses[: bisect.bisect_right(self.steps, step - DELAY)][-WINDOW:]
        if self.run.spike_deviations is None or len(known) < WINDOW:
            return np.float32(np.inf)
        return np.float32(np.mean(known) + self.run.spike_deviations * np.std(known))

    def limits(self, step: int, mesh: jax.sharding.Mesh) -> tuple[jax.Array, ...]:
        """Return what make_train_step's step takes besides state and batch."""
        if self.run.on_spike != "skip":
            return ()
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        limit = np.asarray(self.limit(step))
        return (jax.make_array_from_callback((), replicated, lambda index: limit[index]),)


def _counts(row: dict[str, float]) -> bool:
    return "loss" in row and not row.get("skipped") and math.isfinite(row["loss"])
