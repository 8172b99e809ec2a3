"""A step that hangs: nothing JAX waits for has an end of its own, so a clock runs beside it."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

STATUS = 1  # of a run that had to stop


class Watchdog:
    """While a block runs, calls `hung` from a thread of its own if nobody has called `feed` for so
    many seconds; once."""

    def __init__(self, seconds: float, hung: Callable[[float], None]):
        self.seconds, self.hung = seconds, hung
        self.fed = time.monotonic()
        self.ended = threading.Event()

    def feed(self) -> None:
        self.fed = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.feed()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()

    def _watch(self) -> None:
        while not self.ended.wait(max(0.05, self.fed + self.seconds - time.monotonic())):
            idle = time.monotonic() - self.fed
            if idle >= self.seconds:
                self.hung(idle)
                return


def end(reason: str, see_off: Callable[[], None] = lambda: None) -> None:
    """End this process, whatever its main thread waits for: a collective does so for ever.

    see_off: is called once the reason is printed.
    """
    remedy = "the same command on every host goes on from the newest checkpoint"
    with contextlib.suppress(OSError):  # of a terminal that is gone
        # In one piece, as other processes may have the same terminal.
        sys.stderr.write(f"llama-jax train: {reason}; {remedy}\n")
        sys.stderr.flush()
    see_off()
    os._exit(STATUS)


def print_stacks() -> None:
    """Print where each thread of this process is, to stderr."""
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
