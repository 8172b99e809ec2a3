"""The processes of a pod, watched: when one is gone, the others say which and end.

A collective waits for ever for a process that was killed, stopped or cut off, and what JAX says
after a minute names nobody. So each process keeps its line to process 0, from the roll call, while
it trains: a line that breaks, or on which nothing comes, tells who it was.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping

import jax

from llama_jax.guards.stop import Stopped
from llama_jax.guards.watchdog import end, print_stacks

BEAT = 2.0  # seconds between two signs of life
SECONDS_BETWEEN_REMARKS = 600.0  # about a process that is slow
SILENCE = 30.0  # seconds without one, after which a process counts as gone
SLOW = 0.1  # seconds of a step that are worth a remark
GRACE = 5.0  # seconds in which what went wrong may show on this process, too
# Seconds that process 0 stays for the others to say why they end: without its coordination
# service, XLA ends them with a page of C++.
FAREWELL = 5.0


class Pod:
    """Watches the others while a block runs. If one is gone, or ends with an exception, this
    process prints which, and ends with STATUS, whatever it waits for."""

    def __init__(self, index: int, lines: Mapping[int, tuple[str, socket.socket]]):
        """lines: (host, connection) by process; to all others on process 0, on others to it."""
        self.index = index
        self.lines = lines
        self.who = {i: f"process {i} on {host}" for i, (host, _) in lines.items()}
        self.who[index] = f"process {index} on {socket.gethostname()}"
        # By process: updates made, seconds of a step that it took for itself, and its phase.
        self.pace: dict[int, tuple[int, float, str]] = {}
        self.phase: Callable[[], str] = str  # of this process, now
        self.remarked = 0.0
        self.left = threading.Event()  # this process has
        self.lock = threading.Lock()  # one speaks at a time
        self.ending = threading.Lock()  # taken for ever by whoever says why
        self.listeners: list[threading.Thread] = []

    def __enter__(self) -> "Pod":
        for index in self.lines:
            listener = threading.Thread(target=self._listen, args=(index,), daemon=True)
            self.listeners.append(listener)
            listener.start()
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
            self._say("failed", f"{self.who[self.index]} ended: {reason}")
        for _, connection in self.lines.values():
            connection.close()

    def report(self, step: int, own_seconds: float) -> str | None:
        """Say how far this process is, and how long it takes for itself alone in a step.

        Returns, on process 0 and now and then, which process the others wait for in each step.
        """
        self.pace[self.index] = step, own_seconds, ""
        now = time.monotonic()
        if self.index or len(self.pace) < len(self.who) or now < self.remarked:
            return None
        seconds = {index: own for index, (_, own, _) in list(self.pace.items())}
        slowest = max(seconds, key=seconds.__getitem__)
        others = max(own for index, own in seconds.items() if index != slowest)
        if seconds[slowest] < max(2 * others, SLOW):
            return None
        self.remarked = now + SECONDS_BETWEEN_REMARKS
        return (
            f"{self.who[slowest]} is slow: it takes {seconds[slowest]:.2f} s of a step for itself, "
            f"in which the others wait, and these {others:.2f} s at the most; look at its disk, "
            "its network and what else runs there"
        )

    def hung(self, reason: str) -> None:
        """End all processes, because this one hangs, after each has printed its stacks."""
        self._hang(reason, None)

    def _hang(self, reason: str, heard_of: int | None) -> None:
        if self.index == 0:
            reason += self._behind()
        self._say("hung", reason, but=heard_of)
        print_stacks()
        self._end(reason, heard_of, 0.0)

    def _behind(self) -> str:
        """Return, on process 0, which processes the others wait for, as far as it is known."""
        pace = {**self.pace}
        if self.index in pace:
            pace[self.index] = (*pace[self.index][:2], self.phase())
        last = min((step for step, _, _ in pace.values()), default=0)
        behind = [i for i, (step, _, _) in pace.items() if step == last]
        if len(behind) == len(pace):
            behind = [i for i, (_, _, phase) in pace.items() if phase == "input"]
        named = ", ".join(f"{self.who[i]}, in {pace[i][2]} at step {last}" for i in sorted(behind))
        return f"; the others wait for {named}" if named else ""

    def _beat(self) -> None:
        while not self.left.wait(BEAT):
            pace = self.pace.get(self.index)
            self._say("here", *(pace and (*pace[:2], self.phase()) or ()))

    def _say(self, *words: str | float, but: int | None = None) -> None:
        """Send a message to all that there is a line to."""
        with self.lock:
            for index, (_, connection) in self.lines.items():
                if index != but:
                    with contextlib.suppress(OSError):  # who listens there finds it out
                        connection.sendall(json.dumps(words).encode() + b"\n")

    def _listen(self, index: int) -> None:
        """Follow what a process says, until it leaves."""
        connection = self.lines[index][1]
        connection.settimeout(SILENCE)
        try:
            with connection.makefile("rb") as messages:
                for message in messages:
                    word, *rest = json.loads(message)
                    if word == "left":
                        return
                    if word == "here" and rest:
                        self.pace[index] = int(rest[0]), float(rest[1]), str(rest[2])
                    if word == "failed":
                        self._end(str(rest[0]), index, GRACE)
                    if word == "gone":
                        self._end(str(rest[0]), index, 0.0)
                    if word == "hung":
                        self._hang(str(rest[0]), index)
            reason = "it was killed, or its machine was"
        except TimeoutError:
            reason = f"nothing was heard of it for {SILENCE:.0f} s: it was stopped or cut off"
        except (OSError, ValueError) as e:
            reason = str(e)
        self._end(f"{self.who[index]} is gone: {reason}", index, 0.0)

    def _end(self, reason: str, heard_of: int | None, grace: float) -> None:
        """Tell the others, and end this process, unless it leaves in time."""
        if self.left.is_set() or not self.ending.acquire(blocking=False):
            return
        self._say("failed" if grace else "gone", reason, but=heard_of)
        if not self.left.wait(grace):
            end(reason, self._see_off)

    def _see_off(self) -> None:
        """Wait, on process 0, until the others have ended."""
        until = time.monotonic() + FAREWELL
        for listener in self.listeners if self.index == 0 else ():
            if listener is not threading.current_thread():
                listener.join(max(0.0, until - time.monotonic()))
