"""Which processes a job has: as JAX finds them on a pod, or as the user says."""

import dataclasses
import re
from collections.abc import Sequence

from llama_jax.config import UserError

FORM = "no value on a pod that JAX knows, or ADDRESS:PORT,PROCESSES,INDEX"
SECONDS = 60  # for JAX to find the pod


@dataclasses.dataclass(frozen=True)
class Job:
    """The arguments of jax.distributed.initialize."""

    address: str  # HOST:PORT of process 0
    processes: int
    index: int  # of this one
    devices: Sequence[int] | None  # of this process; None: all of its host


def find(text: str) -> Job:
    """Return the job that --multihost names; "auto": the one that JAX finds. Raises UserError."""
    if text != "auto":
        match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text, re.ASCII)
        if not match:
            raise UserError(f"--multihost: got {text!r}, expected {FORM}")
        return Job(match[1], int(match[2]), int(match[3]), None)
    from jax._src.clusters import ClusterEnv

    try:  # as jax.distributed.initialize() does
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, SECONDS
        )
    except (ValueError, RuntimeError) as e:
        raise UserError(f"--multihost: JAX found no pod here; expected {FORM}; {e}") from e
    address, processes, index, devices = found
    if address is None or processes is None or index is None:
        raise UserError(f"--multihost: JAX knows of no pod here; expected {FORM}")
    return Job(address, processes, index, devices)
