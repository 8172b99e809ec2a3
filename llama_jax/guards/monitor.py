"""A step's figures: a row, a line, and the end of the run if they are not finite."""

import contextlib
import math
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from llama_jax.config import Experiment
from llama_jax.data.batches import describe
from llama_jax.data.schedule import Schedule
from llama_jax.evaluation.perplexity import mixture_loss
from llama_jax.flops import model_flops_per_token, num_params, peak_flops
from llama_jax.model import by_name
from llama_jax.progress import Progress, duration
from llama_jax.run import checkpoint
from llama_jax.run.fingerprint import not_finite
from llama_jax.run.loss_figure import plot_losses
from llama_jax.run.metrics import Writer
from llama_jax.run.workdir import (
    checkpoints_dir,
    config_file,
    metrics_file,
    nonfinite_file,
    steps,
    tensorboard_dir,
    write_whole,
)
from llama_jax.step import TrainState

FIRST_STEPS = 2  # of a process, which wait for compilation and for data


class NonFiniteLoss(RuntimeError):
    """Training cannot go on; the message names the step, its rows and the checkpoint before it."""

    status = 1  # to exit with


class Monitor:
    """Turns the metrics of steps into lines, files and, if the loss is not finite, the end."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.Path,
        schedule: Schedule,
        start: int,
        step_flops: int,
        manager: ocp.CheckpointManager,
    ):
        """Open the run's files. start: updates made. step_flops: executed, of all devices."""
        self.experiment, self.workdir, self.step_flops = experiment, workdir, step_flops
        self.schedule, self.manager, self.start = schedule, manager, start
        self.num_steps = experiment.run.num_steps
        self.tokens_per_step = experiment.data.batch_size * experiment.data.seq_len
        self.flops_per_token = model_flops_per_token(experiment.model, experiment.data.seq_len)
        self.peak, peak_source = peak_flops()
        self.writer = Writer(workdir, start, experiment.upkeep.wandb_project)
        self.began = time.monotonic()
        self.progress = Progress(self.num_steps, start) if jax.process_index() == 0 else None
        self.note(
            f"{num_params(experiment.model):,} parameters on {jax.device_count()} x "
            f"{jax.devices()[0].device_kind}, {self.tokens_per_step:,} tokens a step, "
            f"steps {start} to {self.num_steps}\n"
            f"peak {self.peak / 1e12:.3g} TFLOP/s ({peak_source}); "
            f"{self.flops_per_token / 1e6:.3g} MFLOP a token for MFU, "
            f"{step_flops / self.tokens_per_step / 1e6:.3g} executed for HFU"
        )
        self.restart_clock()

    def note(self, text: str) -> None:
        if self.progress is not None:
            self.progress.note(text)

    def restart_clock(self) -> None:
        """Leave out what was not a step: evaluation and saving."""
        self.clock = time.monotonic()

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Report the update that led to `step`; waits for it. Raises NonFiniteLoss."""
        values: dict[str, Any] = {k: v.item() for k, v in jax.device_get(metrics).items()}
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            found = f"loss is {values['loss']}, gradient norm {values['grad_norm']}"
            raise NonFiniteLoss(self.explain(step, found))
        rate = self.tokens_per_step / seconds
        values |= {
            "tokens": step * self.tokens_per_step,
            "seconds": seconds,
            "tokens_per_second": rate,
        }
        utilisation = "MFU n/a"
        if step > self.start + FIRST_STEPS:
            mfu = rate * self.flops_per_token / self.peak
            hfu = self.step_flops / seconds / self.peak
            values |= {"mfu": mfu, "hfu": hfu}
            utilisation = f"MFU {mfu:.1%}  HFU {hfu:.1%}"
        self.writer.write(step, values)
        if self.progress is not None:
            self.progress.update(
                step,
                f"loss {values['loss']:.4f}  {rate:,.0f} tok/s  {utilisation}",
            )

    def check_state(self, step: int, state: TrainState) -> None:
        """Raise NonFiniteLoss if the update that led to `step` has made a state not to be kept."""
        broken = not_finite(by_name(state.params) | by_name(state.opt_state))
        if broken:
            others = f" and {len(broken) - 1} more are" if len(broken) > 1 else " is"
            found = f"after the update, array {broken[0]}{others} not finite"
            raise NonFiniteLoss(self.explain(step, found))

    def validation(self, step: int, losses: dict[str, float]) -> None:
        mean = mixture_loss(losses, self.experiment.data)
        values = {f"validation_loss/{source}": loss for source, loss in losses.items()}
        self.writer.write(
            step, {"tokens": step * self.tokens_per_step, "validation_loss": mean, **values}
        )
        by_source = "  ".join(f"{source} {loss:.3f}" for source, loss in losses.items())
        self.note(f"step {step}: held-out loss {mean:.4f}  ({by_source})")

    def flush(self) -> None:
        """Have the rows so far outlive this process."""
        self.writer.flush()

    def explain(self, step: int, found: str) -> str:
        rows = describe(self.experiment.data, self.schedule.batch(step - 1))
        path = nonfinite_file(self.workdir, step)
        if jax.process_index() == 0:
            write_whole(path, "\n".join(rows) + "\n")
        checkpoint.wait(self.manager)
        saved = steps(self.workdir)
        kept = (
            f"checkpoint {saved[-1]} is the last good one"
            if saved
            else "no checkpoint was saved yet"
        )
        return (
            f"step {step}: {found}; training stopped; {kept}; "
            f"the {len(rows)} rows of the batch are listed in {path}: "
            + "; ".join(rows[:4] + ["..."] * (len(rows) > 4))
        )

    def summary(self) -> None:
        if self.progress is None:
            return
        self.progress.close()
        self.note(
            f"trained to step {self.num_steps} in {duration(time.monotonic() - self.began)}\n"
            f"  figure       {plot_losses(self.workdir)}\n"
            f"  metrics      {metrics_file(self.workdir)}\n"
            f"  TensorBoard  tensorboard --logdir {tensorboard_dir(self.workdir)}\n"
            f"  checkpoints  {checkpoints_dir(self.workdir)}\n"
            f"  experiment   {config_file(self.workdir)}"
        )

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *exception) -> None:
        """Give back files and terminal, however the run ended."""
        # What could not be written is known by then.
        with contextlib.suppress(OSError) if exception[0] else contextlib.nullcontext():
            self.writer.close()
        if self.progress is not None:
            self.progress.close()
