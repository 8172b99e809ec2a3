"""Placements of an experiment on a slice: mesh, number of micro-batches and remat policy."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from llama_jax.config import REMAT_POLICIES, Experiment, UserError
from llama_jax.experiment import changes, validate
from llama_jax.hardware import Slice

TENSOR_WAYS = (1, 2, 4, 8)
MIN_SPARE = 0.05  # share of HBM that a placement must leave
ROUGH = 1.15  # arithmetic may be wrong by this factor before it rules a placement out


def meshes(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh over the slice's devices that divides its model."""
    n = target.num_devices
    for tensor in TENSOR_WAYS:
        for replica in (
            r for r in range(target.num_slices, n + 1, target.num_slices) if n % r == 0
        ):
            fsdp, rest = divmod(n, replica * tensor)
            if rest or (replica & (replica - 1) and replica != target.num_slices):
                continue
            for ring in (1, *rings(target, fsdp)):
                mesh = dataclasses.replace(
                    experiment.execution.mesh,
                    replica=replica,
                    fsdp=fsdp,
                    ring=ring,
                    tensor=tensor,
                    sequence_parallel=tensor > 1,
                )
                yield with_execution(experiment, mesh=mesh)


def with_execution(experiment: Experiment, **fields: object) -> Experiment:
    """Return the experiment with some fields of its execution replaced."""
    return dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, **fields)
    )


def rings(target: Slice, fsdp: int) -> list[int]:
    """Return the side of the torus for fsdp's ring, or none: of 8 or more, because a short ring
    leaves much to its planes, and the shortest, because the matmuls of a long one are too small."""
    return sorted(side for side in target.shape if side >= 8 and fsdp % side == 0)[:1]


def _valid(experiment: Experiment) -> bool:
    try:
        validate(experiment)
    except UserError:
        return False
    return True


def nearest(experiment: Experiment, target: Slice) -> Experiment | None:
    """Return the valid placement whose mesh and micro-batches differ least from the
    experiment's."""

    def distance(other: Experiment) -> float:
        pairs = [
            (getattr(experiment.execution.mesh, a), getattr(other.execution.mesh, a))
            for a in ("replica", "fsdp", "ring", "tensor")
        ]
        pairs.append((experiment.execution.micro_batches, other.execution.micro_batches))
        return sum(abs(math.log(a / b)) for a, b in pairs)

    candidates = (
        with_execution(e, micro_batches=micro_batches)
        for e in meshes(experiment, target)
        for micro_batches in _divisors(experiment.data.batch_size)
    )
    return min(filter(_valid, candidates), key=distance, default=None)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def placements(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh, in every number of micro-batches, under every remat
    policy."""
    for e, micro_batches, remat in itertools.product(
        meshes(experiment, target), _divisors(experiment.data.batch_size), REMAT_POLICIES
    ):
        candidate = with_execution(e, remat=remat, micro_batches=micro_batches)
        if _valid(candidate):
            yield candidate


def override_flags(old: Experiment, new: Experiment) -> str:
    """Return the --set options that make one of the other."""
    return " ".join(f"--set {name}={value}" for name, (_, value) in changes(old, new).items())
