"""A lease on a directory: a lock file that its holder renews, void after its expiry.

Of all processes on all machines that share a directory, one at a time holds a lease on it. Each
lease is a file of its own. A process that wants the directory writes one and then looks for others:
of two that do so at once, at least the later writer sees the other's file, and gives up. So a file
system only has to list what was written: local disks and buckets do.

The holder renews its file; one that was not renewed for as long as its name says belonged to a
process that died, and is deleted. Ages are differences of times that the file system itself gave,
so that no clocks have to agree. A holder that is too late to renew ends, see `hold`.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator

from etils import epath

LOST = 75  # the exit status of a process that may not go on; sysexits.h: try again later
LATEST = 0.75  # of its expiry, until when a lease may still be renewed
SUFFIX = ".lease"


@dataclasses.dataclass(frozen=True)
class Lease:
    path: epath.Path  # HOST_PID_RANDOM_EXPIRY.lease

    @property
    def expiry(self) -> float:
        """Return the seconds for which it holds after it was last renewed; none if its name does
        not say so, which no holder wrote."""
        try:
            seconds = float(self.path.name.removesuffix(SUFFIX).rsplit("_", 1)[-1])
        except ValueError:
            return 0.0
        return seconds if math.isfinite(seconds) else 0.0

    @property
    def owner(self) -> str:
        """Return its holder as host_pid."""
        return self.path.name.rsplit("_", 2)[0]

    def renew(self) -> None:
        self.path.write_text(datetime.datetime.now(datetime.UTC).isoformat())

    def release(self) -> None:
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(directory: epath.Path, expiry: float) -> Iterator[Lease | None]:
    """Acquire a lease as `acquire` does, and release it at the end."""
    lease = acquire(directory, expiry)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def acquire(directory: epath.Path, expiry: float) -> Lease | None:
    """Return a new lease, or None if another one is alive. Delete those that are not alive."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}_{expiry:g}{SUFFIX}"
    mine = Lease(directory / name)
    mine.renew()
    now = mine.path.stat().mtime
    found = leases(directory)
    alive = living(found, now)
    if alive != [mine]:
        mine.release()
        return None
    for lease in found:
        if lease not in alive:
            with contextlib.suppress(OSError):  # what cannot be deleted does no harm
                lease.release()
    return mine


def living(leases: list[Lease], now: float) -> list[Lease]:
    """Return the leases that have not expired at `now`, in seconds since the epoch."""
    found = []
    for lease in leases:
        try:
            age = now - lease.path.stat().mtime
        except FileNotFoundError:  # released since
            continue
        # mtime is in whole seconds. One far ahead is no sign of life: its holder would renew it.
        if abs(age) <= lease.expiry + 1:
            found.append(lease)
    return found


def leases(directory: epath.Path) -> list[Lease]:
    """Return all leases on a directory, expired ones too."""
    if not directory.exists():
        return []
    return [Lease(path) for path in directory.iterdir() if path.name.endswith(SUFFIX)]


def hold(lease: Lease, renewed: float, parent: int) -> None:
    """Renew the lease for as long as this process lives; run it in a thread.

    Ends the process, at once, when the lease is gone, when it was not renewed in time and another
    process may have taken over, or when its parent is dead.

    renewed: time.monotonic() before the lease was last written.
    """
    while True:
        start = time.monotonic()
        if start - renewed > lease.expiry * LATEST or os.getppid() != parent:
            os._exit(LOST)
        try:
            if not lease.path.exists():
                os._exit(LOST)
            lease.renew()
            if time.monotonic() - renewed > lease.expiry:  # it was held up before it wrote
                os._exit(LOST)
            renewed = start
        except Exception:  # whatever the file system has: the time that is left decides
            pass
        time.sleep(lease.expiry / 8)
