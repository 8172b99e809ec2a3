"""The progress of long work: a bar where someone watches, a line now and then in a log file.

And numbers as people read them: durations, and quantities with three digits and a letter.
"""

import contextlib
import math
import sys
import time
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

SECONDS_BETWEEN_LINES = 15.0


class _Stderr:
    """A stderr that may be gone: work goes on when the terminal that showed it is closed."""

    def __init__(self, file: IO[str]):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


class Progress:
    """A display on stderr of how much of `total` is done, some figures, and the time left."""

    def __init__(self, total: int, done: int):
        stderr: Any = _Stderr(sys.stderr)
        self.console = Console(file=stderr, highlight=False, soft_wrap=True)
        columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Bar(
            *columns,
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, completed=done, figures="")
        self.total, self.first = total, done
        self.start = self.last_line = time.monotonic()
        self.bar.start()

    def update(self, done: int, figures: str) -> None:
        self.bar.update(self.task, completed=done, figures=figures)
        now = time.monotonic()
        due = now - self.last_line >= SECONDS_BETWEEN_LINES or done == self.total
        if not self.console.is_terminal and due:
            left = (now - self.start) / (done - self.first) * (self.total - done)
            self.console.print(
                f"{done}/{self.total}  {figures}  {duration(left)} left", markup=False
            )
            self.last_line = now

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self.console.print(text, markup=False)

    def table(self, table: Table) -> None:
        self.console.print(table, markup=False)

    def close(self) -> None:
        self.bar.stop()


class Meter:
    """Progress in bytes of tensors, shown in MB."""

    def __init__(self, num_bytes: int):
        self._total, self._done = math.ceil(num_bytes / 1e6), 0.0
        self._progress = Progress(self._total, 0)

    def add(self, num_bytes: int, doing: str) -> None:
        """Count some more bytes, and show what is being done."""
        before = math.ceil(self._done)
        self._done += num_bytes / 1e6
        if before < math.ceil(self._done) <= self._total:
            self._progress.update(math.ceil(self._done), f"MB  {doing}")

    def close(self) -> None:
        self._progress.close()


def duration(seconds: float) -> str:
    """Return a time as 3d 04h, 2h 05m or 4m 09s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h"
    return f"{h}h {m:02}m" if h else f"{m}m {s:02}s"


def quantity(value: float) -> str:
    """Return a number as 6.97B or 1.25T; "-" for NaN, "never" for an infinite demand."""
    if math.isnan(value):
        return "-"
    if value == math.inf:
        return "never"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1e15:
        return f"{value:.2e}"
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(rounded) >= factor:
            return f"{rounded / factor:.3g}{letter}"
    return f"{rounded:.3g}"
