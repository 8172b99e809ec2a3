"""A stop after a whole step: SIGTERM or SIGHUP asks for it, and the run saves before it ends.

A preempted machine gets SIGTERM, and a terminal that closes sends SIGHUP. On a pod all processes
stop after the same step: there JAX's preemption service takes SIGTERM, tells the others, and names
a step that none has passed yet.
"""

import os
import signal
import threading
from types import FrameType

import jax
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.run.workdir import checkpoints_dir

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(RuntimeError):
    """The run was asked to end, and did; the message says what was saved."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status  # to exit with


class Stop:
    """Takes the signals while a block runs, and says when to stop."""

    def __init__(self):
        self.signal: int | None = None
        self.pod = jax.process_count() > 1

    def asked(self, step: int) -> bool:
        """Say whether to save and end after so many updates; on a pod, call it for every step."""
        if self.pod:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None

    def after(self, step: int, workdir: epath.Path) -> Stopped:
        """Return what to raise once the state after so many updates is saved."""
        number = signal.Signals(self.signal or signal.SIGTERM)
        saved = checkpoints_dir(workdir) / str(step)
        return Stopped(
            f"stopped by {number.name}: step {step} is saved in {saved}; the same command goes on",
            128 + number,
        )

    def __enter__(self) -> "Stop":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # others may not take signals
            for number in SIGNALS:
                of_service = self.pod and number == signal.SIGTERM
                ignored = signal.getsignal(number) == signal.SIG_IGN  # as it is under nohup
                if not of_service and not ignored:
                    self.before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        if self.pod:
            os.kill(os.getpid(), signal.SIGTERM)  # which the service takes, and tells to all
