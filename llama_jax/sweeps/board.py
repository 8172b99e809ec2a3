"""What a sweep says: the table before it starts, and the live one while it goes."""

import dataclasses
import time
from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from llama_jax.config import UserError
from llama_jax.data import store
from llama_jax.hardware import Slice
from llama_jax.layout import nearest
from llama_jax.plan.compile import cached
from llama_jax.plan.plan import make_plan
from llama_jax.progress import duration, quantity
from llama_jax.sweeps.sweep import Run, State, state

REFRESH_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 15.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Time and cost of a whole run, as intervals (low, high) if there are two estimates."""

    seconds: tuple[float, float]
    cost: tuple[float, float] | None = None  # dollars
    compiled: bool = False
    mfu: tuple[float, float] | None = None

    def part(self, share: float) -> "Prediction":
        """Return the prediction for a share of the run."""
        seconds, cost = (
            found and (found[0] * share, found[1] * share) for found in (self.seconds, self.cost)
        )
        return dataclasses.replace(self, seconds=seconds, cost=cost)


NO_MESH, NO_ROOM = "no mesh", "does not fit"


def on_slice(run: Run, target: Slice, price: float | None) -> Prediction | str | None:
    """Return a prediction by what plan has compiled, else by its arithmetic; why not, if the slice
    will not do; None if the time is unknown."""
    placed = nearest(run.experiment, target.num_devices, target.num_slices)
    if placed is None:
        return NO_MESH
    result = cached(placed, target) if target.chip.dimensions else None
    plan = make_plan(run.name, placed, target, result, price)
    if not plan.fits:
        return NO_ROOM
    if plan.days is None:
        return None
    low, high = plan.days
    return Prediction((low * 86400, high * 86400), plan.cost, result is not None, plan.mfu)


def as_before(run: Run, runs: list[Run], states: list[State]) -> Prediction | None:
    """Return the time predicted from the throughput of the started run nearest in size, started
    here or elsewhere."""
    begun = [
        (abs(other.params - run.params), found.tokens_per_second * other.full_flops / other.tokens)
        for other, found in zip(runs, states, strict=True)
        if found.tokens_per_second
    ]
    if not begun:
        return None
    seconds = run.full_flops / min(begun)[1]
    return Prediction((seconds, seconds))


def share_left(run: Run, found: State) -> float:
    """Return the share of the run's steps that is left; none of what is finished, and none of what
    failed, which nobody works on."""
    if found.status in ("finished", "failed"):
        return 0.0
    return 1 - found.step / run.experiment.run.num_steps


def print_plan(runs: list[Run], target: Slice | None, price: float | None) -> None:
    """Print the runs of a sweep, what is done of them, and what they will take.

    target: the slice to predict for; None predicts by what has run of the sweep. price: dollars for
    one chip and hour.
    """
    states = [state(run) for run in runs]
    columns = ["run", "N", "(no emb.)", "D", "D/N", "6ND", "full", "steps", "time"]
    table = Table(*columns, *(["cost, dollars"] if price is not None else []), "state", box=SIMPLE)
    predictions = [
        on_slice(run, target, price) if target else as_before(run, runs, states) for run in runs
    ]
    for run, found, predicted in zip(runs, states, predictions, strict=True):
        table.add_row(
            run.name,
            quantity(run.params),
            quantity(run.params_without_embeddings),
            quantity(run.tokens),
            f"{run.tokens / run.params:.3g}",
            f"{run.flops:.2e}",
            f"{run.full_flops:.2e}",
            f"{run.experiment.run.num_steps:,}",
            *_time_and_cost(predicted, price),
            _words(found),
        )
    table.add_section()
    shares = [share_left(run, found) for run, found in zip(runs, states, strict=True)]
    for label, counted in (("all", [1.0] * len(runs)), ("left", shares)):
        part = [i for i, share in enumerate(counted) if share]

        def total(values: list[int], counted=counted) -> float:
            return sum(share * value for share, value in zip(counted, values, strict=True))

        table.add_row(
            f"{label}: {len(part)} runs",
            *("", ""),
            quantity(total([run.tokens for run in runs])),
            "",
            f"{total([run.flops for run in runs]):.2e}",
            f"{total([run.full_flops for run in runs]):.2e}",
            f"{total([run.experiment.run.num_steps for run in runs]):,.0f}",
            *_total_time_and_cost([(predictions[i], counted[i]) for i in part], price),
            _count([states[i] for i in part]),
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.width = max(console.width, 140)  # the table says too much for 80 columns
    console.print(table)
    if target:
        console.print(f"time and cost: estimates for {target.name}, {_basis(predictions)}")
    elif None in predictions:
        console.print("time: unknown until a run has begun; --slice estimates it for a TPU or GPU")
    else:
        console.print(
            "time: by the tokens/s of the run of nearest size; starting and evaluating come on top"
        )
    for text in repeated_text(runs):
        console.print(f"warning: {text}")


def repeated_text(runs: list[Run]) -> Iterator[str]:
    """Yield which runs read a source more than once, if that is known: laws hold for a single
    epoch."""
    for run in runs:
        data = run.experiment.data
        try:
            index = store.read_index(data)
        except UserError:  # not there yet, or out of this machine's reach
            continue
        epochs = {s: run.tokens * rate / index[s]["train"].num_tokens for s, rate in data.mixture}
        most = max(epochs, key=lambda source: epochs[source])
        if epochs[most] > 1:
            yield f"{run.name} reads {most} {epochs[most]:.1f} times"


def _time_and_cost(predicted: Prediction | str | None, price: float | None) -> list[str]:
    """Return the table cells for time and, if priced, cost."""
    if not isinstance(predicted, Prediction):
        return [predicted or "?", *([] if price is None else ["-" if predicted else "?"])]
    cells = [" to ".join(dict.fromkeys(map(duration, predicted.seconds)))]
    if price is not None:
        cells.append(" to ".join(dict.fromkeys(map(_dollars, predicted.cost or (0, 0)))))
    return cells


def _total_time_and_cost(
    parts: list[tuple[Prediction | str | None, float]], price: float | None
) -> list[str]:
    """Return the same cells for such shares of runs, one after another; without those that the
    slice will not do."""
    if any(predicted is None for predicted, _ in parts):
        return _time_and_cost(None, price)
    known = [p.part(share) for p, share in parts if isinstance(p, Prediction)]
    costs = [p.cost or (0, 0) for p in known]
    seconds = sum(p.seconds[0] for p in known), sum(p.seconds[1] for p in known)
    cost = sum(low for low, _ in costs), sum(high for _, high in costs)
    return _time_and_cost(Prediction(seconds, cost), price)


def _dollars(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"


def _basis(predictions: list[Prediction | str | None]) -> str:
    """Return what the estimates of a slice rest on, and what they leave out."""
    known = [p for p in predictions if isinstance(p, Prediction)]
    words = ["one run after another"]
    for compiled, by in (
        (True, "by the compiler at an expected"),
        (False, "by arithmetic at an assumed"),
    ):
        mfu = [share for p in known if p.compiled == compiled for share in p.mfu or ()]
        if mfu:
            runs = sum(p.compiled == compiled for p in known)
            assumed = " to ".join(dict.fromkeys(f"{end(mfu):.0%}" for end in (min, max)))
            words.append(f"{runs} {by} MFU of {assumed}")
    for why in (NO_ROOM, NO_MESH):
        if count := predictions.count(why):
            words.append(f"{count} left out: {why}")
    return "; ".join(words)


def _words(found: State) -> str:
    step = f"at step {found.step:,}" if found.step and found.status != "finished" else ""
    return " ".join(filter(None, (found.status, step, found.note)))


def _count(states: list[State]) -> str:
    kinds = [found.status for found in states]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


class Board:
    """The table of all runs, live on a terminal; in a log file a line for each change, and now and
    then one for the run in hand."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.live = None
        self.states = [state(run) for run in runs]
        self.refreshed = self.last_line = time.monotonic()
        if self.console.is_terminal:
            self.live = Live(self.table(), console=self.console, auto_refresh=False)
            self.live.start()

    def update(self, in_hand: Run | None) -> None:
        now = time.monotonic()
        if now - self.refreshed < REFRESH_SECONDS:
            return
        self.refresh(in_hand)

    def refresh(self, in_hand: Run | None) -> None:
        self.refreshed = now = time.monotonic()
        before = self.states
        # What is finished stays so.
        self.states = [
            found if found.status == "finished" else state(run)
            for run, found in zip(self.runs, before, strict=True)
        ]
        if self.live:
            self.live.update(self.table(), refresh=True)
            return
        for run, old, new in zip(self.runs, before, self.states, strict=True):
            # With none in hand, what others run is waited for.
            shown = run is in_hand or in_hand is None and new.status == "running"
            due = shown and now - self.last_line >= SECONDS_BETWEEN_LINES
            if old.status != new.status or due:
                self.console.print(f"{run.name}: {self.progress(run, new)}")
                self.last_line = now

    def progress(self, run: Run, found: State) -> str:
        figures = [
            f"{found.step:,}/{run.experiment.run.num_steps:,}",
            f"loss {found.loss:.4f}" if found.loss is not None else "",
            f"{found.tokens_per_second:,.0f} tok/s" if found.tokens_per_second else "",
            found.note,
        ]
        return "  ".join(filter(None, (found.status, *figures)))

    def left(self) -> str:
        """Return the time left for what is neither finished nor failed, one run after another."""
        seconds = 0.0
        for run, found in zip(self.runs, self.states, strict=True):
            share = share_left(run, found)
            predicted = as_before(run, self.runs, self.states)
            if share and predicted is None:
                return "unknown"
            if predicted is not None:
                seconds += predicted.seconds[0] * share
        return duration(seconds)

    def table(self) -> Table:
        table = Table("run", "N", "D", "step", "loss", "tok/s", "state")
        for run, found in zip(self.runs, self.states, strict=True):
            table.add_row(
                run.name,
                quantity(run.params),
                quantity(run.tokens),
                f"{found.step:,}/{run.experiment.run.num_steps:,}",
                "" if found.loss is None else f"{found.loss:.4f}",
                f"{found.tokens_per_second:,.0f}" if found.tokens_per_second else "",
                " ".join(filter(None, (found.status, found.note))),
            )
        table.caption = f"{_count(self.states)}; left: {self.left()}"
        return table

    def close(self) -> None:
        self.refresh(None)
        if self.live:
            self.live.stop()
