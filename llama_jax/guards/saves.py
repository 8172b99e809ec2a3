"""Saves that may fail: a full disk, or storage that does not answer, does not end a run at once.

The files of a save are written in the background while training goes on. If that fails the run says
so, saves again every tenth of upkeep.checkpoint_every steps, and ends when twice as many steps as
that are at risk.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from llama_jax.hosts import gather, this_process, together
from llama_jax.run import checkpoint
from llama_jax.run.managers import Manager

LAST_TRIES = 3  # of what is saved at the end, before which nobody can mend anything
PAUSE = 5.0  # seconds between these


class Saves:
    """Saves a run's state whenever it is due, and again when that failed."""

    def __init__(
        self,
        manager: Manager,
        every: int,
        step: int,
        trouble: Callable[[str, str], None],
        feed: Callable[[], None],
        local: bool = False,
    ):
        """every: so many steps a save is due. step: of the newest whole checkpoint, or 0.
        trouble: tells of a failure, see Monitor. feed: keeps the watchdog quiet while a slow save
        is waited for. local: on the hosts' own disks, where a failure never ends a run."""
        self.local = local
        self.manager, self.trouble, self.feed, self.good = manager, trouble, feed, step
        self.retry = max(1, every // 10)  # steps
        self.most_at_risk = 2 * every
        self.step: int | None = None  # of a save whose outcome is not known to all
        self.writing: threading.Thread | None = None
        self.reason: str | None = None  # why it failed on this process

    def due(self, step: int) -> bool:
        """Say whether to save anew after so many updates, as the last save failed.

        Each process calls this for each step. Raises OSError if too many steps are at risk.
        """
        if self.step is None or (step - self.step) % self.retry or step == self.step:
            return False
        assert self.writing is not None
        return self._settle(step, wait=False) is False

    def save(self, step: int, *what: Any) -> None:
        """Save after so many updates. what: state, experiment, schedule and origin.

        Returns when the state is copied and may be donated. Raises OSError as due does.
        """
        if self.step is not None:
            self._settle(step, wait=True)
        self.step, self.reason, self.writing = step, None, None
        try:
            together(lambda: checkpoint.save(self.manager, *what), OSError)
        except OSError as e:
            self.reason = str(e)
        self.writing = threading.Thread(target=self._wait, daemon=True)
        self.writing.start()

    def finish(self, step: int, *what: Any) -> None:
        """Wait until the state after so many updates, whose save has begun, is whole on the disk.

        what: as of save. Raises OSError if that fails, in several tries.
        """
        for left in reversed(range(LAST_TRIES)):
            if self._settle(step, wait=True, last=left == 0):
                return
            time.sleep(PAUSE)
            self.save(step, *what)

    def _wait(self) -> None:
        if self.reason is None:
            try:
                self.manager.wait()
            except OSError as e:
                self.reason = str(e) if jax.process_count() == 1 else f"{this_process()}: {e}"

    def _settle(self, step: int, wait: bool, last: bool = False) -> bool | None:
        """Say how the save went on all processes; None: it is not known yet."""
        assert self.writing is not None
        while wait and self.writing.is_alive():
            self.writing.join(1.0)
            self.feed()
        ended = not self.writing.is_alive()
        outcomes = gather([ended, self.reason])
        failed = [reason for _, reason in outcomes if reason]
        if not failed:
            if not all(ended for ended, _ in outcomes):
                return None
            self.good, self.step = self.step or 0, None
            return True
        at_risk = step - self.good
        what = f"step {self.step}: could not be saved: {failed[0]}"
        if self.local:
            self.trouble("local save", f"{what}; those of the workdir go on")
        elif last or at_risk >= self.most_at_risk:
            raise OSError(f"{what}; {at_risk} steps are at risk")
        else:
            self.trouble(
                "save",
                f"{what}; {at_risk} steps are at risk; it is tried again every {self.retry} steps, "
                f"and training ends when {self.most_at_risk} are",
            )
        self.step = None
        together(self.manager.renew, OSError)
        return False
