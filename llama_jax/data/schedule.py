"""Which global batch each step trains on: a pure function of the step, stored with the checkpoint.

A run that skips batches after a spike of its loss, or goes on with other ones, does so by an entry.
"""

import bisect
import dataclasses
from typing import NamedTuple


class Entry(NamedTuple):
    """From `step` on, steps take the batches `batch`, `batch` + 1, ..."""

    step: int  # updates made before
    batch: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Entries in the order of their steps, the first at step 0."""

    entries: tuple[Entry, ...] = (Entry(step=0, batch=0),)

    def batch(self, step: int) -> int:
        """Return the number of the batch that update number `step`, from 0, is computed from."""
        entry = self.entries[bisect.bisect_right(self.entries, step, key=lambda e: e.step) - 1]
        return entry.batch + step - entry.step

    def skip(self, step: int, batches: int) -> "Schedule":
        """Return the schedule that leaves out so many batches, the first of them that of `step`."""
        before = tuple(entry for entry in self.entries if entry.step < step)
        return Schedule((*before, Entry(step, self.batch(step) + batches)))
