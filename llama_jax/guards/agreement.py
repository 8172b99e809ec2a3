"""What the hosts of a pod must have in common before the first step.

Hosts with another experiment, code, tokenizer or store would train on together, to wrong losses;
and one that is refused alone leaves the others in a collective without end. So each makes its
checks, and then all tell each other how these went.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

import llama_jax
from llama_jax.config import Experiment, UserError
from llama_jax.experiment import PLACES, changes, from_json, to_json
from llama_jax.hosts import gather, this_process
from llama_jax.run.checkpoint import Origin

T = TypeVar("T")


def agree(experiment: Experiment, check: Callable[[], tuple[T, Origin]]) -> tuple[T, Origin]:
    """Return what `check` returns: anything, and what the run is made from.

    On a pod all processes call this. Raise UserError on every one of them, naming hosts, if `check`
    fails on one or if they differ in the experiment, what it is made from, or the code.
    """
    if jax.process_count() == 1:
        return check()
    mine = {
        "host": this_process(),
        "code": digest_of_code(),
        "experiment": to_json(experiment),
    }
    checked, failure = None, None
    try:
        checked = check()
        mine |= {"store": checked[1].data_digest, "tokenizer": checked[1].tokenizer_sha256}
    except Exception as e:  # whatever it is, the others have to know
        failure, mine["refused"] = e, str(e) or type(e).__name__
    hosts = gather(mine)
    if failure is not None:
        raise failure
    if refused := [f"{host['host']}: {host['refused']}" for host in hosts if "refused" in host]:
        raise UserError(f"--multihost: refused on {'; '.join(refused)}")
    if found := [text for host in hosts[1:] for text in _differences(hosts[0], host)]:
        raise UserError(f"--multihost: the hosts differ: {'; '.join(found)}")
    assert checked is not None
    return checked


def _differences(first: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    """Yield what two hosts differ in, but for the places of what is compared by its content."""
    here, there = first["host"], other["host"]
    for name in ("code", "store", "tokenizer"):
        a, b = first[name], other[name]
        if a != b:
            yield f"SHA-256 of the {name}: {a[:12]} on {here}, {b[:12]} on {there}"
    if first["code"] == other["code"]:  # or they might not read each other's experiment
        experiments = (from_json(host["experiment"], host["host"]) for host in (first, other))
        for name, (a, b) in changes(*experiments).items():
            if name not in PLACES:
                yield f"{name}: {a!r} on {here}, {b!r} on {there}"


def digest_of_code() -> str:
    """Return the SHA-256, in hex, of all modules of this package and their names."""
    package = Path(llama_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
