"""Placements of an experiment on a slice: mesh, number of micro-batches and remat policy."""

import dataclasses
import itertools
from collections.abc import Iterator

from llama_jax.config import REMAT_POLICIES, Experiment
from llama_jax.hardware import Slice
from llama_jax.layout import TENSOR_WAYS, divisors, is_valid, with_execution

MIN_SPARE = 0.05  # share of HBM that a placement must leave
ROUGH = 1.15  # arithmetic may be wrong by this factor before it rules a placement out


def meshes(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh over the slice's devices that divides its model."""
    n = target.num_devices
    for tensor in TENSOR_WAYS:
        for replica in (r for r in divisors(n) if r % target.num_slices == 0):
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


def rings(target: Slice, fsdp: int) -> list[int]:
    """Return the side of the torus for fsdp's ring, or none: of 8 or more, because a short ring
    leaves much to its planes, and the shortest, because the matmuls of a long one are too small."""
    return sorted(side for side in target.shape if side >= 8 and fsdp % side == 0)[:1]


def placements(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh, in every number of micro-batches, under every remat
    policy."""
    for e, micro_batches, remat in itertools.product(
        meshes(experiment, target), divisors(experiment.data.batch_size), REMAT_POLICIES
    ):
        candidate = with_execution(e, remat=remat, micro_batches=micro_batches)
        if is_valid(candidate):
            yield candidate
