"""One attempt at a run, from its process's start to its end: what its time went into.

WORKDIR/attempts/NUMBER.json is written anew every few seconds, so a kill costs the record as many.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from llama_jax.place import in_bucket
from llama_jax.run.workdir import attempts_dir, write_whole

# start: until the first program is compiled. input: the devices had nothing to do, for want of a
# batch. save: until the state is copied; the files follow in the background.
PHASES = ("start", "compile", "step", "input", "evaluate", "save")
SECONDS_BETWEEN_WRITES, IN_BUCKET = 5.0, 30.0


class Attempt:
    """Counts the seconds of each phase. The first process writes them down."""

    def __init__(self, workdir: epath.Path, began: float):
        """began: time.time() at the start of the process."""
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.phase, self.began, self.since = "start", began, began
        self.first_step = self.step = 0  # updates made at its begin, and by now
        self.lost_steps, self.lost_seconds = 0, 0.0  # of others, computed again by this one
        self.events: list[dict[str, Any]] = []
        self.directory = attempts_dir(workdir)
        self.path: epath.Path | None = None
        self.written = 0.0

    def enter(self, phase: str) -> None:
        """End the phase that there is, and begin another."""
        now = max(time.time(), self.since)  # a clock may be set back
        self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now

    @contextlib.contextmanager
    def input(self, metrics: dict[str, jax.Array]) -> Iterator[None]:
        """Count a block, which waits for a batch, as input if at its end the step that gives
        `metrics` has ended, too: the devices had nothing to do."""
        before = self.phase
        self.enter("input")
        yield
        if not metrics["loss"].is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            self.phase = before
        self.enter(before)

    def begin(self, step: int) -> None:
        """Say from where on it trains. From here on there is a record."""
        if self.path is None and jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            there = [int(p.stem) for p in self.directory.glob("*.json") if p.stem.isdecimal()]
            self.path = self.directory / f"{max(there, default=0) + 1:04}.json"
            self.first_step = step
        self.step = step
        self.write()

    def lose(self, steps: int, seconds: float) -> None:
        """Say what is computed again, of other attempts or of this one before a roll-back."""
        self.lost_steps += steps
        self.lost_seconds += seconds

    def update(self, step: int) -> None:
        """Say how many updates are made."""
        self.step = step
        seconds = IN_BUCKET if in_bucket(self.directory) else SECONDS_BETWEEN_WRITES
        if time.time() - self.written > seconds:
            self.write()

    def event(self, kind: str, text: str) -> None:
        """Record something that did not go as it should."""
        self.events.append({"time": time.time(), "step": self.step, "event": kind, "text": text})
        self.write()

    def write(self) -> None:
        """Write the record, unless the disk is full: the next one holds all that this one would."""
        self.enter(self.phase)
        self.written = self.since
        if self.path is not None:
            record = {
                "began": self.began,
                "written": self.written,
                "first_step": self.first_step,
                "step": self.step,
                "lost_steps": self.lost_steps,
                "lost_seconds": self.lost_seconds,
                "seconds": self.seconds,
                "events": self.events,
            }
            with contextlib.suppress(OSError):
                write_whole(self.path, json.dumps(record))

    def end(self) -> None:
        """Write the record for the last time: what comes is no part of the run."""
        self.write()
        self.path = None


def first_began(workdir: epath.Path, attempt: Attempt) -> float:
    """Return when the first attempt at a run began, which tells it from others: it may be `attempt`
    itself."""
    directory = attempts_dir(workdir)
    records = sorted(directory.glob("*.json")) if directory.exists() else []
    for path in records:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return float(json.loads(path.read_text())["began"])
    return attempt.began
