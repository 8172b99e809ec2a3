"""Claims: of all processes on all machines that share a directory, one at a time may work in it.

A claim is a file of its own. Whoever wants the directory writes one and then looks for others': of
two that do so at once, at least the later writer sees the other's, and gives up. So it takes no
more of a file system than that it lists what was written: local disks and buckets do.

The holder renews its file; one that has not been renewed for as long as its name says belonged to a
process that died, and is cleared away. Ages are differences of times that the file system itself
gave, so that no clocks have to agree. A holder that comes too late to renew ends, see `hold`.
"""

import contextlib
import dataclasses
import datetime
import os
import secrets
import socket
import time
from collections.abc import Iterator

from etils import epath

LOST = 75  # the exit status of a process that may not go on; sysexits.h: try again later
LATEST = 0.75  # of its expiry, until when a claim may still be renewed
SUFFIX = ".claim"


@dataclasses.dataclass(frozen=True)
class Claim:
    path: epath.Path  # HOST_PID_RANDOM_EXPIRY.claim

    @property
    def expiry(self) -> float:
        return float(self.path.name.removesuffix(SUFFIX).rsplit("_", 1)[1])

    @property
    def owner(self) -> str:
        """As host_pid."""
        return self.path.name.rsplit("_", 2)[0]

    def renew(self) -> None:
        self.path.write_text(datetime.datetime.now(datetime.UTC).isoformat())

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(directory: epath.Path, expiry: float) -> Iterator[Claim | None]:
    """As acquire; releases it at the end."""
    claim = acquire(directory, expiry)
    try:
        yield claim
    finally:
        if claim is not None:
            claim.release()


def acquire(directory: epath.Path, expiry: float) -> Claim | None:
    """None if another claim is alive. Clears away those that are not."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}_{expiry:g}{SUFFIX}"
    mine = Claim(directory / name)
    mine.renew()
    now = mine.path.stat().mtime
    found = claims(directory)
    alive = living(found, now)
    if alive != [mine]:
        mine.release()
        return None
    for claim in found:
        if claim not in alive:
            claim.release()
    return mine


def living(claims: list[Claim], now: float) -> list[Claim]:
    """Those that are not expired at `now`, in seconds since the epoch."""
    found = []
    for claim in claims:
        try:
            age = now - claim.path.stat().mtime
        except FileNotFoundError:  # released since
            continue
        if age <= claim.expiry + 1:  # mtime is in whole seconds
            found.append(claim)
    return found


def claims(directory: epath.Path) -> list[Claim]:
    if not directory.exists():
        return []
    return [Claim(path) for path in directory.iterdir() if path.name.endswith(SUFFIX)]


def hold(claim: Claim, renewed: float, parent: int) -> None:
    """Renews the claim for as long as this process lives: for a thread. Ends the process, at once,
    when the claim is gone, when it was not renewed in time and another may have taken over, or
    when its parent is dead.

    renewed: time.monotonic() before the claim was last written.
    """
    while True:
        start = time.monotonic()
        if start - renewed > claim.expiry * LATEST or os.getppid() != parent:
            os._exit(LOST)
        try:
            if not claim.path.exists():
                os._exit(LOST)
            claim.renew()
            if time.monotonic() - renewed > claim.expiry:  # it was held up before it wrote
                os._exit(LOST)
            renewed = start
        except Exception:  # whatever the file system has: the time that is left decides
            pass
        time.sleep(claim.expiry / 8)
