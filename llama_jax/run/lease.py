"""A lease on a directory: a lock file that its holder renews, void after its expiry.

Of all processes on all machines that share a directory, one at a time holds a lease on it. Each
lease is a file of its own. A process that wants the directory writes one and then looks for others:
of two that do so at once, at least the later writer sees the other's file, and gives up. So a file
system only has to list what was written: local disks and buckets do.

The holder renews its file; one that was not renewed for as long as its name says belonged to a
process that died, and is deleted, as is that of a process of this host that is no more. Ages are
differences of times that the file system itself gave, so that no clocks have to agree. A holder
that is too late to renew has to end, see `hold`.
"""

import contextlib
import dataclasses
import datetime
import os
import random
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

from etils import epath

from llama_jax.config import UserError
from llama_jax.plain_file import plain

LATEST = 0.75  # of its expiry, until when a lease may still be renewed
RUN_EXPIRY = 60.0  # seconds
NAME = re.compile(r"(.+)_(\d+)_[0-9a-f]{8}_(\d+(?:\.\d+)?)\.lease")  # HOST_PID_RANDOM_EXPIRY


@dataclasses.dataclass(frozen=True)
class Lease:
    path: epath.Path
    host: str
    pid: int
    expiry: float  # seconds for which it holds after it was last renewed

    def renew(self, since: str) -> None:
        """Write it anew. since: the time that people are told."""
        self.path.write_text(since)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def is_of_the_dead(self) -> bool:
        """Say whether its holder was a process of this host that is no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            return False
        return False


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
    name = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}_{expiry:.3f}.lease"
    mine = parse(directory / name)
    assert mine
    mine.renew(_now())
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
    """Return the leases whose holders live, as far as is known, and that have not expired at `now`,
    in seconds since the epoch."""
    found = []
    for lease in leases:
        try:
            age = now - lease.path.stat().mtime
        except FileNotFoundError:  # released since
            continue
        # mtime is in whole seconds. One far ahead is no sign of life: its holder would renew it.
        if abs(age) <= lease.expiry + 1 and not lease.is_of_the_dead():
            found.append(lease)
    return found


def leases(directory: epath.Path) -> list[Lease]:
    """Return all leases on a directory, expired ones too."""
    if not directory.exists():
        return []
    return [lease for path in directory.iterdir() if (lease := parse(path))]


def parse(path: epath.Path) -> Lease | None:
    """Return the lease that a path names, None if it names none."""
    match = NAME.fullmatch(path.name)
    return match and Lease(path, match[1], int(match[2]), float(match[3]))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")


def hold(
    lease: Lease, renewed: float, parent: int | None = None, end: threading.Event | None = None
) -> str:
    """Renew the lease until it is lost, and return why: the process may not go on then, as another
    one may have taken over. Return "" at the `end`. Run it in a thread.

    renewed: time.monotonic() before the lease was last written. parent: the process that has to
    live, if one has to.
    """
    end, since = end or threading.Event(), _now()
    while True:
        start = time.monotonic()
        if parent is not None and os.getppid() != parent:
            return f"the process {parent} that started this one has ended"
        late = f"{lease.path} could not be renewed in time"
        if start - renewed > lease.expiry * LATEST:
            return late
        try:
            if not lease.path.exists():
                return f"{lease.path} is gone: the directory was removed, renamed or taken over"
            lease.renew(since)
            if time.monotonic() - renewed > lease.expiry:  # it was held up before it wrote
                return late
            renewed = start
        except Exception:  # whatever the file system has: the time that is left decides
            pass
        if end.wait(lease.expiry / 8):
            return ""


@contextlib.contextmanager
def one_at_a_time(workdir: epath.Path) -> Iterator[None]:
    """Hold a lease on a run's workdir while a block runs, and end the process if it is lost.

    Raise UserError if another process holds one, with its host, pid and since when.
    """
    seen: list[Lease] = []
    while True:
        start = time.monotonic()
        try:
            lease = acquire(workdir, RUN_EXPIRY)
        except OSError as e:
            raise UserError(f"workdir: cannot write to {str(workdir)!r}: {e.strerror or e}") from e
        if lease is not None:
            break
        others = living(leases(workdir), time.time())
        for other in others:
            if other in seen:
                raise UserError(_in_use(workdir, other))
        seen += others
        time.sleep(random.uniform(0.2, 1))  # of two that come at once, both may have given up
    end = threading.Event()

    def keep() -> None:
        if lost := hold(lease, start, end=end):
            print(f"llama-jax: training ended: {lost}", file=sys.stderr, flush=True)
            os._exit(1)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        with contextlib.suppress(OSError):  # what cannot be deleted ends by itself
            lease.release()


def _in_use(workdir: epath.Path, other: Lease) -> str:
    try:
        since = plain(other.path).read_text()
    except OSError:  # released since
        since = ""
    return (
        f"workdir: {workdir} is in use by process {other.pid} on {other.host}, since "
        f"{since or 'a moment ago'}; wait for it, end it, or use another --workdir (if it was "
        f"killed, its claim ends {RUN_EXPIRY:g} s after)"
    )
