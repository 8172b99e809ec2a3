"""An experiment laid out over the devices that there are, or the nearest that could be. No jax."""

import dataclasses
import itertools
import math

from llama_jax.config import Experiment, MeshConfig, UserError
from llama_jax.experiment import changes, validate

TENSOR_WAYS = (1, 2, 4, 8)


def spread(mesh: MeshConfig, num_devices: int, found: str, num_slices: int = 1) -> MeshConfig:
    """Return the mesh over so many devices. found: such as "v5e:2x2 has 4 devices", for the error.

    Raise UserError unless the axes multiply to their number, and replicas to that of the slices.
    """
    others = mesh.replica * mesh.tensor
    fsdp = mesh.fsdp or (1 if num_devices % others else num_devices // others)
    if fsdp * others != num_devices:
        ways = f"{mesh.replica} * {fsdp} * {mesh.tensor}"
        raise UserError(
            f"execution.mesh: replica * fsdp * tensor = {ways} = {fsdp * others}, but {found}"
        )
    if mesh.replica % num_slices:
        raise UserError(
            f"execution.mesh.replica: got {mesh.replica}, expected a multiple of the {num_slices} "
            "slices"
        )
    return dataclasses.replace(mesh, fsdp=fsdp)


def on_devices(
    experiment: Experiment, num_devices: int, found: str, num_slices: int = 1
) -> Experiment:
    """Return the experiment on so many devices, validated; see spread.

    Raise UserError, with the options that make the nearest layout of it, if there is one.
    """
    try:
        mesh = spread(experiment.execution.mesh, num_devices, found, num_slices)
        laid_out = with_execution(experiment, mesh=mesh)
        validate(laid_out)
    except UserError as e:
        near = nearest(experiment, num_devices, num_slices)
        if near is None:
            raise
        raise UserError(f"{e}; the nearest that works is {override_flags(experiment, near)}") from e
    return laid_out


def nearest(experiment: Experiment, num_devices: int, num_slices: int = 1) -> Experiment | None:
    """Return the valid layout whose mesh and micro-batches differ least from the experiment's."""
    old = experiment.execution

    def distance(other: Experiment) -> float:
        pairs = [
            (getattr(old.mesh, axis), getattr(other.execution.mesh, axis))
            for axis in ("replica", "fsdp", "ring", "tensor")
        ]
        pairs.append((old.micro_batches, other.execution.micro_batches))
        return sum(abs(math.log(a / b)) for a, b in pairs if a)  # fsdp may not be given

    replicas = [n for n in divisors(num_devices) if n % num_slices == 0]
    found = []
    for replica, tensor in itertools.product(replicas, TENSOR_WAYS):
        fsdp, rest = divmod(num_devices, replica * tensor)
        if rest:
            continue
        mesh = MeshConfig(
            replica=replica,
            fsdp=fsdp,
            ring=old.mesh.ring if fsdp % old.mesh.ring == 0 else 1,
            tensor=tensor,
            sequence_parallel=tensor > 1,
        )
        for micro_batches in divisors(experiment.data.batch_size):
            found.append(with_execution(experiment, mesh=mesh, micro_batches=micro_batches))
    return min(filter(is_valid, found), key=distance, default=None)


def is_valid(experiment: Experiment) -> bool:
    try:
        validate(experiment)
    except UserError:
        return False
    return True


def divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def with_execution(experiment: Experiment, **fields: object) -> Experiment:
    """Return the experiment with some fields of its execution replaced."""
    return dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, **fields)
    )


def override_flags(old: Experiment, new: Experiment) -> str:
    """Return the --set options that make one of the other."""
    return " ".join(f"--set {name}={value}" for name, (_, value) in changes(old, new).items())
