"""The processes of a pod, watched: when one is gone, the others say which and end.

A collective waits for ever for a process that was killed, stopped or cut off, and what JAX says
after a minute names nobody. So each process keeps its line to process 0, from the roll call, while
it trains: a line that breaks, or on which nothing comes, tells who it was.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping

import jax

from llama_jax.guards.stop import Stopped

BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a process counts as gone
GRACE = 5.0  # seconds in which what went wrong may show on this process, too
STATUS = 1  # of a run that had to stop


class Pod:
    """Watches the others while a block runs. If one is gone, or ends with an exception, this
    process prints which, and ends with STATUS, whatever it waits for."""

    def __init__(self, index: int, lines: Mapping[int, tuple[str, socket.socket]]):
        """lines: (host, connection) by process; to all others on process 0, on others to it."""
        self.index = index
        self.lines = lines
        self.left = threading.Event()  # this process has
        self.lock = threading.Lock()  # one speaks at a time

    def __enter__(self) -> "Pod":
        for index in self.lines:
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind, exception: BaseException | None, _) -> None:
        if isinstance(exception, jax.errors.JaxRuntimeError):
            time.sleep(GRACE)  # of a collective, perhaps: whoever broke it off is named meanwhile
        self.left.set()
        if exception is None or isinstance(exception, Stopped):
            self._say("left")
        else:
            known = isinstance(exception, Exception) and str(exception).partition("\n")[0]
            reason = known or kind.__name__
            self._say("gone", f"process {self.index} on {socket.gethostname()} ended: {reason}")
        for _, connection in self.lines.values():
            connection.close()

    def _beat(self) -> None:
        while not self.left.wait(BEAT):
            self._say("here")

    def _say(self, *words: str, but: int | None = None) -> None:
        """Send a message to all that there is a line to."""
        with self.lock:
            for index, (_, connection) in self.lines.items():
                if index != but:
                    with contextlib.suppress(OSError):  # who listens there finds it out
                        connection.sendall(json.dumps(words).encode() + b"\n")

    def _listen(self, index: int) -> None:
        """Follow what a process says, until it leaves."""
        host, connection = self.lines[index]
        who = f"process {index} on {host}"
        connection.settimeout(SILENCE)
        try:
            with connection.makefile("rb") as messages:
                for message in messages:
                    word, *reason = json.loads(message)
                    if word == "left":
                        return
                    if word == "gone":
                        self._end(str(reason[0]), index, GRACE)
            reason = "it was killed, or its machine was"
        except TimeoutError:
            reason = f"nothing was heard of it for {SILENCE:.0f} s: it was stopped or cut off"
        except (OSError, ValueError) as e:
            reason = str(e)
        self._end(f"{who} is gone: {reason}", index, 0.0)

    def _end(self, reason: str, heard_of: int, grace: float) -> None:
        """Tell the others, and end this process, unless it leaves in time."""
        if self.left.is_set():
            return
        self._say("gone", reason, but=heard_of)
        if not self.left.wait(grace):
            remedy = "the same command on every host goes on from the newest checkpoint"
            with contextlib.suppress(OSError):  # of a terminal that is gone
                print(f"llama-jax train: {reason}; {remedy}", file=sys.stderr, flush=True)
            os._exit(STATUS)  # the main thread may wait in a collective, for ever
