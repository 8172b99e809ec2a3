"""What the processes of a pod tell each other, so that all of them do the same.

A process that fails alone leaves the others in a collective without end.
"""

import json
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def this_process() -> str:
    """Return how this one is named to people."""
    return f"{socket.gethostname()} (process {jax.process_index()})"


def gather(mine: Any) -> list[Any]:
    """Return what each process gives, JSON, in the order of the processes; each calls this."""
    if jax.process_count() == 1:
        return [mine]
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def together(call: Callable[[], T], *kinds: type[Exception]) -> T:
    """Return what `call` returns, if it does on all processes; each calls this.

    kinds: of the failures that may come on some and not on others, special ones first. If one
    comes, all processes raise the kind of the first that has one, which is named to the others.
    """
    result, failure, mine = None, None, None
    try:
        result = call()
    except kinds as e:
        own = next(i for i, kind in enumerate(kinds) if isinstance(e, kind))
        failure, mine = e, [own, str(e), this_process()]
    found = [failed for failed in gather(mine) if failed]
    if not found:
        return result  # pyright: ignore[reportReturnType]
    kind, text, process = found[0]
    if failure is not None and mine is not None and mine[0] == kind:
        raise failure
    raise kinds[kind](f"on {process}: {text}")
