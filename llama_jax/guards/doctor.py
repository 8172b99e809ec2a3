"""What may be wrong with the hosts of a pod, found before JAX takes their chips.

Each host looks at itself. Process 0 compares what they found, and tells all.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.config import Experiment, UserError
from llama_jax.data import store
from llama_jax.data.batches import TrainRows, check_held_out
from llama_jax.experiment import to_json
from llama_jax.guards import roll_call
from llama_jax.guards.agreement import digest_of_code
from llama_jax.guards.job import Job
from llama_jax.place import in_bucket

CALL_SECONDS = 25.0  # from the first host that comes to the last
FACTS_SECONDS = 5.0  # to hear what a host has found out
MOST_SKEW = 5.0  # seconds between two clocks: leases and their renewals allow for more
LEAST_DISK = 2 * 2**30  # bytes, for logs and the compilation's files
LOCK = Path("/tmp/libtpu_lockfile")  # which libtpu holds while a process has the chips
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
EQUAL = ("python", *PACKAGES, "code", "experiment", "store")  # on all hosts

Facts = dict[str, Any]


def examine(experiment: Experiment | None, workdir: epath.Path | None) -> Facts:
    """Return what this host finds out about itself; "problems" is a list of sentences."""
    facts: Facts = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "code": digest_of_code()[:12],
        "disk": shutil.disk_usage(Path.home()).free,
        "memory": os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "chips": len([*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]),
        "problems": [],
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "none"

    def attempt(check: Callable[[], None]) -> None:
        try:
            check()
        except (UserError, OSError) as e:
            facts["problems"].append(str(e))

    attempt(check_lock)
    if facts["disk"] < LEAST_DISK:
        left = f"{facts['disk'] / 2**30:.1f} GiB"
        facts["problems"].append(f"disk: {left} are free; free {LEAST_DISK / 2**30:.0f} GiB")
    if workdir is not None:
        attempt(lambda: facts.update(write_ms=probe(workdir)))
    if experiment is not None:
        facts["experiment"] = to_json(experiment)
        attempt(lambda: facts.update(store=check_store(experiment)))
    return facts


def check_lock() -> None:
    """Raise UserError if another process has the chips."""
    if not LOCK.exists():
        return
    with open(LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(f"chips: another process has them ({LOCK} is held); end it") from e


def probe(workdir: epath.Path) -> float:
    """Write, read and remove a file there, and return how many milliseconds that took.

    Raises UserError.
    """
    directory = workdir
    while not (in_bucket(directory) or directory.exists() or directory == directory.parent):
        directory = directory.parent  # in which a run would make it
    path, content = directory / f"doctor_{secrets.token_hex(4)}.tmp", secrets.token_bytes(64)
    began = time.monotonic()
    try:
        path.write_bytes(content)
        found = path.read_bytes()
        path.unlink()
        if in_bucket(workdir):
            from llama_jax import bucket

            bucket.check_kind(workdir)
    except OSError as e:
        raise UserError(f"workdir: cannot write to {workdir}: {e.strerror or e}") from e
    if found != content:
        raise UserError(f"workdir: {path} came back with other bytes than were written")
    return round(1e3 * (time.monotonic() - began), 1)


def check_store(experiment: Experiment) -> str:
    """Return the store's digest. Raise UserError if it is not complete, or not the tokenizer's."""
    data = experiment.data
    store.check_tokenizer(data, experiment.model.vocab_size)
    TrainRows(data)[0]
    check_held_out(data, 1)
    return store.digest(data)[:12]


def together(job: Job, facts: Facts, say: Callable[[str], None]) -> tuple[list[Facts], list[str]]:
    """Return what all hosts found, on process 0, and what is wrong, on all. Each calls this.

    say: is told what is waited for. Raises UserError if process 0 does not answer.
    """
    if job.index:
        (_, line) = roll_call.roll_call(job.address, job.processes, job.index, CALL_SECONDS)[0]
        line.settimeout(FACTS_SECONDS * job.processes)
        with line, line.makefile("rb") as messages:
            _send(line, facts | {"time": time.time()})
            try:
                return [], json.loads(messages.readline(roll_call.MOST_BYTES))
            except (OSError, ValueError) as e:
                raise UserError(f"--multihost: process 0 broke off: {e}") from e
    hosts: list[Facts] = [facts | {"skew": 0.0}]
    problems, lines = [], {}
    if job.processes > 1:
        hosts[0]["host"] = f"{facts['host']} (process 0)"
        say(f"waiting for {job.processes - 1} other hosts, {CALL_SECONDS:.0f} s at the most")
        lines, problem = roll_call.call(
            int(job.address.rpartition(":")[2]), job.processes, CALL_SECONDS
        )
        problems += [problem] * bool(problem)
    for index in sorted(lines):
        name, line = lines[index]
        line.settimeout(FACTS_SECONDS)
        asked = time.time()
        roll_call.tell(line, "")
        try:
            with line.makefile("rb") as messages:
                heard = json.loads(messages.readline(roll_call.MOST_BYTES))
            skew = heard["time"] - (asked + time.time()) / 2
            hosts.append(heard | {"host": f"{name} (process {index})", "skew": skew})
        except (OSError, ValueError, KeyError, TypeError) as e:
            problems.append(f"process {index} on {name} came, and then said nothing: {e}")
    problems += compare(hosts)
    for _, line in lines.values():
        with line:
            _send(line, problems)
    return hosts, problems


def _send(line: socket.socket, message: Any) -> None:
    """Send a line of JSON to one that may be gone."""
    try:
        line.sendall(json.dumps(message).encode() + b"\n")
    except OSError as e:
        print(f"doctor: a host is gone: {e}", file=sys.stderr)


def compare(hosts: list[Facts]) -> list[str]:
    """Return what is wrong with hosts, or different on them from most."""
    return [*_problems(hosts), *_differences(hosts)]


def _problems(hosts: list[Facts]) -> Iterator[str]:
    for host in hosts:
        for problem in host["problems"]:
            yield f"{host['host']}: {problem}"
        if abs(host["skew"]) > MOST_SKEW:
            yield (
                f"{host['host']}: its clock is {host['skew']:+.1f} s from that of "
                f"{hosts[0]['host']}; set it, by NTP"
            )


def _differences(hosts: list[Facts]) -> Iterator[str]:
    for name in EQUAL:
        found = [host.get(name, "none") for host in hosts]
        usual = max(found, key=found.count)
        for host, value in zip(hosts, found, strict=True):
            if value != usual:
                shown = f"{value}, {usual} on most" if name != "experiment" else "not that of most"
                remedy = "llama-jax pod install" if name in ("code", *PACKAGES) else "see there"
                yield f"{host['host']}: {name} is {shown}; {remedy}"
