"""Which global batch each step trains on: a pure function of the step, stored with the checkpoint.

To skip batches, or to go on with other ones, is an entry of the schedule.
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

    def from_step(self, step: int, batch: int) -> "Schedule":
        """Return one that takes `batch` at `step`, and the next ones after it."""
        before = tuple(entry for entry in self.entries if entry.step < step)
        return Schedule((*before, Entry(step, batch)))
