"""Processes: how a child of ours is started, and how one of ours ends by a signal."""

import ctypes
import os
import signal
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # of prctl(2)
ENDING = (signal.SIGTERM, signal.SIGHUP)  # from kill, a scheduler; from a terminal that is gone


class Terminated(BaseException):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt it is no Exception, which many catch."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = signal.Signals(number)


def raise_on_signals() -> None:
    """Have SIGTERM and SIGHUP raise Terminated, so that what is half done is cleared away."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, _raise)


def _raise(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


def child_command(module: str) -> list[str]:
    """Return the command of a child that runs a module of ours, whose main() first calls
    end_with_parent(int(sys.argv[1])).

    -P: without it Python would import what lies in the current directory, ./jax.py for one.
    """
    return [sys.executable, "-P", "-m", module, str(os.getpid())]


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL; Linux only.

    parent: its process id, which tells if it has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
