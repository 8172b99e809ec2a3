"""A step's figures: a row, a line, and the end of the run if they are not finite."""

import collections
import contextlib
import math
import statistics
import time
from typing import Any, NoReturn

import jax
from etils import epath

from llama_jax.config import Experiment
from llama_jax.data.batches import describe
from llama_jax.data.schedule import Schedule
from llama_jax.evaluation.perplexity import mixture_loss
from llama_jax.flops import model_flops_per_token, num_params, peak_flops
from llama_jax.guards.pod import Pod
from llama_jax.guards.spikes import MOST_IN_A_ROW, WINDOW, Diverged, RollBack, Spikes
from llama_jax.guards.watchdog import Watchdog, end, print_stacks
from llama_jax.hosts import gather
from llama_jax.model import by_name
from llama_jax.progress import Progress, duration
from llama_jax.run.attempt import Attempt
from llama_jax.run.fingerprint import not_finite
from llama_jax.run.goodput import goodput_table, plot_goodput, read_attempts
from llama_jax.run.loss_figure import plot_losses
from llama_jax.run.managers import Manager
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

PACE_STEPS = 20  # whose median tells a slow host
FIRST_STEPS = 2  # of a process, which wait for compilation and for data


class Monitor:
    """Turns steps into lines, files and, if the loss jumps or a step hangs, the end."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.Path,
        schedule: Schedule,
        start: int,
        step_flops: int,
        manager: Manager,
        attempt: Attempt,
        spikes: Spikes,
        pod: Pod | None,
    ):
        """Open the run's files. start: updates made. step_flops: executed, of all devices."""
        self.attempt, self.spikes, self.pod = attempt, spikes, pod
        if pod is not None:
            pod.phase = lambda: attempt.phase
        self.watchdog = Watchdog(experiment.upkeep.hang_seconds, self.hung)
        self.experiment, self.workdir, self.step_flops = experiment, workdir, step_flops
        self.run = experiment.run
        self.schedule, self.manager, self.start = schedule, manager, start
        self.num_steps = experiment.run.num_steps
        self.tokens_per_step = experiment.data.batch_size * experiment.data.seq_len
        self.flops_per_token = model_flops_per_token(experiment.model, experiment.data.seq_len)
        self.peak, peak_source = peak_flops()
        self.writer = Writer(workdir, start, experiment.upkeep.wandb_project)
        lost = [row["seconds"] for row in self.writer.dropped if "seconds" in row]
        attempt.lose(len(lost), sum(lost))
        # Of the last steps, what this process took beside waiting for its devices.
        self.own_seconds: collections.deque[float] = collections.deque(maxlen=PACE_STEPS)
        self.unwritten = False  # rows that the disk has not taken
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
        self.enter("step")

    def note(self, text: str) -> None:
        if self.progress is not None:
            self.progress.note(text)

    def trouble(self, kind: str, text: str) -> None:
        """Say, and keep in the record of this attempt, what did not go as it should."""
        self.note(f"WARNING: {text}")
        self.attempt.event(kind, text)

    def hung(self, idle: float) -> None:
        """Print stacks and end the process, which has done nothing for so many seconds."""
        reason = f"step {self.attempt.step} was the last, {idle:.0f} s ago: the next one hangs"
        if self.pod is not None:
            self.pod.hung(reason)
        else:
            print_stacks()
            end(reason)

    def enter(self, phase: str) -> None:
        """Begin a phase, see attempt.py. The clock of steps leaves out what is none."""
        self.attempt.enter(phase)
        self.watchdog.feed()
        self.clock = time.monotonic()

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Report the update that led to `step`; waits for it. Raises Diverged and RollBack."""
        asked = time.monotonic()
        values: dict[str, Any] = {k: v.item() for k, v in jax.device_get(metrics).items()}
        now = time.monotonic()
        self.own_seconds.append(asked - self.clock)
        seconds, self.clock = now - self.clock, now
        self.watchdog.feed()
        self.attempt.update(step)
        if self.pod is not None:
            known = len(self.own_seconds) == PACE_STEPS
            remark = self.pod.report(step, statistics.median(self.own_seconds) if known else 0.0)
            if remark is not None:
                self.trouble("slow", remark)
        self.check_loss(step, values)
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
        self.write(step, values)
        if self.progress is not None:
            self.progress.update(
                step,
                f"loss {values['loss']:.4f}  {rate:,.0f} tok/s  {utilisation}",
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a row. What a full disk does not take is written with a later one."""
        try:
            self.writer.write(step, values)
            self.unwritten = False
        except OSError as e:
            if not self.unwritten:
                self.trouble("metrics", f"step {step}: its figures are not written yet: {e}")
            self.unwritten = True

    def check_loss(self, step: int, values: dict[str, Any]) -> None:
        """Do what run.on_spike says if a loss is not as expected."""
        loss, limit = values["loss"], self.spikes.limit(step)
        finite = math.isfinite(loss) and math.isfinite(values["grad_norm"])
        if finite and loss <= limit:
            self.spikes.add(step, loss)
            return
        found = f"loss is {loss}, gradient norm {values['grad_norm']}"
        if finite:
            found = (
                f"loss is {loss:.4f}, above {limit:.4f}, which is {self.run.spike_deviations:g} "
            )
            found += f"standard deviations over the mean of the {WINDOW} before"
        self.spikes.in_a_row += 1
        if self.run.on_spike == "skip" and self.spikes.in_a_row <= MOST_IN_A_ROW:
            rows = "; ".join(self.list_rows(step))
            self.trouble("spike", f"step {step}: {found}; its update was skipped; {rows}")
        else:
            self.end(step, found)

    def end(self, step: int, found: str) -> NoReturn:
        """Raise RollBack if that is what run.on_spike says, else Diverged."""
        if self.run.on_spike == "roll_back":
            with contextlib.suppress(OSError):  # the one before is there
                self.manager.wait()
            newest = (gather(steps(self.workdir))[0] or [0])[-1]
            after = self.schedule.batch(step - 1) + 1
            text = f"step {step}: {found}"
            left_out = f"{self.schedule.batch(newest)} to {after - 1}"
            rows = "; ".join(self.list_rows(step))
            self.trouble(
                "roll-back",
                f"{text}; rolled back to step {newest}, without batches {left_out}; {rows}",
            )
            raise RollBack(text, newest, after)
        raise Diverged(self.explain(step, found))

    def check_state(self, step: int, state: TrainState) -> None:
        """Do as `end` if the update that led to `step` has made a state not to be kept."""
        broken = not_finite(by_name(state.params) | by_name(state.opt_state))
        if broken:
            others = f" and {len(broken) - 1} more are" if len(broken) > 1 else " is"
            self.end(step, f"after the update, array {broken[0]}{others} not finite")

    def validation(self, step: int, losses: dict[str, float]) -> None:
        mean = mixture_loss(losses, self.experiment.data)
        values = {f"validation_loss/{source}": loss for source, loss in losses.items()}
        self.write(step, {"tokens": step * self.tokens_per_step, "validation_loss": mean, **values})
        by_source = "  ".join(f"{source} {loss:.3f}" for source, loss in losses.items())
        self.note(f"step {step}: held-out loss {mean:.4f}  ({by_source})")

    def flush(self) -> None:
        """Have the rows so far outlive this process, but for what a full disk does not take."""
        with contextlib.suppress(OSError):
            self.writer.flush()

    def list_rows(self, step: int) -> list[str]:
        """Return the first rows of the batch of the update that led to `step`, and list all in a
        file of the workdir."""
        rows = describe(self.experiment.data, self.schedule.batch(step - 1))
        path = nonfinite_file(self.workdir, step)
        if jax.process_index() == 0:
            write_whole(path, "\n".join(rows) + "\n")
        where = f"the {len(rows)} rows of the batch are listed in {path}: {rows[0]}"
        return [where, *rows[1:4], *["..."] * (len(rows) > 4)]

    def explain(self, step: int, found: str) -> str:
        rows = self.list_rows(step)
        with contextlib.suppress(OSError):
            self.manager.wait()
        saved = steps(self.workdir)
        kept = (
            f"checkpoint {saved[-1]} is the last good one"
            if saved
            else "no checkpoint was saved yet"
        )
        return f"step {step}: {found}; training stopped; {kept}; " + "; ".join(rows)

    def summary(self) -> None:
        if self.progress is None:
            return
        self.progress.close()
        self.attempt.end()
        self.note(
            f"trained to step {self.num_steps} in {duration(time.monotonic() - self.began)}\n"
            f"  figure       {plot_losses(self.workdir)}\n"
            f"  metrics      {metrics_file(self.workdir)}\n"
            f"  time         {plot_goodput(self.workdir)}\n"
            f"  TensorBoard  tensorboard --logdir {tensorboard_dir(self.workdir)}\n"
            f"  checkpoints  {checkpoints_dir(self.workdir)}\n"
            f"  experiment   {config_file(self.workdir)}"
        )
        self.progress.table(goodput_table(read_attempts(self.workdir)))

    def __enter__(self) -> "Monitor":
        self.watchdog.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        """Give back files and terminal, however the run ended."""
        self.watchdog.__exit__(*exception)
        self.attempt.write()
        # What could not be written is known by then.
        with contextlib.suppress(OSError) if exception[0] else contextlib.nullcontext():
            self.writer.close()
        if self.progress is not None:
            self.progress.close()
