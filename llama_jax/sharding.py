"""One table maps the letters of our shape suffixes to mesh axes.

Dimension key (a suffix is the logical shape, whatever the sharding):
    A micro-batches   B batch rows   T time, whole   D embed   V vocabulary   F MLP width
    G key/value heads   R query heads per key/value head   K head dim   C time of the keys
    N rows times key/value heads   H is GRK as one
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import Experiment, MeshConfig, UserError
from llama_jax.layout import on_devices, spread

# What mesh.fsdp counts are three axes of the mesh, see make_mesh.
FSDP = ("ring", "plane", "line")
MESH_AXES = ("replica", *FSDP, "tensor")
PARAM_RULES = {"D": FSDP, "G": "tensor", "F": "tensor", "V": "tensor"}
ACTIVATION_RULES = {
    "B": ("replica", *FSDP),
    "G": "tensor",
    "H": "tensor",
    "F": "tensor",
    "V": "tensor",
    "N": ("replica", *FSDP, "tensor"),
}


def mesh_of(experiment: Experiment, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """Make the experiment's mesh over all of `devices`. Raises UserError, as on_devices does."""
    laid_out = on_devices(experiment, len(devices), named(devices), count_slices(devices))
    return make_mesh(laid_out.execution.mesh, devices)


def named(devices: Sequence[Any]) -> str:
    return f"there are {len(devices)} devices ({devices[0].device_kind})"


def count_slices(devices: Sequence[Any]) -> int:
    return len({getattr(device, "slice_index", 0) for device in devices})


def check_host_memory(num_bytes: int, what: str) -> None:
    """Raise UserError, naming what, if the hosts cannot hold so much in all: they would try, until
    the operating system ends them without a word."""
    has = jax.process_count() * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > has:
        raise UserError(f"{what} take {num_bytes:.2g} bytes, and the host has {has:.2g}")


def make_mesh(cfg: MeshConfig, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """Make a mesh over all of `devices`. Raises UserError unless the axes multiply to their number.

    The replicas are spread over the slices, if there are several: parameters are gathered within a
    slice, and only sums of gradients cross the data-centre network. Of fsdp, mesh.ring devices are
    laid along one side of the torus, see collectives.reduce_scatter; if the rest spans the whole
    torus, `line` is along one of its axes, see collectives.all_gather.
    """
    num_slices = count_slices(devices)
    cfg = spread(cfg, len(devices), named(devices), num_slices)
    # The ring comes last, as mesh_utils lays out the last axes first: so it is one whole side.
    shape = (cfg.replica // num_slices, cfg.fsdp // cfg.ring, cfg.tensor, cfg.ring)
    grid = (
        mesh_utils.create_hybrid_device_mesh(
            shape, (num_slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
        if num_slices > 1
        else mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    )
    grid = np.moveaxis(grid, -1, 1)
    line = line_length(grid)
    return jax.sharding.Mesh(
        grid.reshape(cfg.replica, cfg.ring, -1, line, cfg.tensor),
        MESH_AXES,
        axis_types=(AxisType.Explicit,) * len(MESH_AXES),
    )


def line_length(grid: np.ndarray) -> int:
    """Count the devices of fsdp, from the first, that follow one axis of the torus.

    1 if they do not span the whole torus, or there is none. grid: devices, [replica, ring, the rest
    of fsdp, tensor].
    """
    if not hasattr(grid.flat[0], "coords"):
        return 1
    fsdp = [device.coords for device in grid[0, 0, :, 0]]
    if _axes(fsdp) < _axes([device.coords for device in grid.flat]):
        return 1
    n = max((n for n in range(1, len(fsdp)) if _axes(fsdp[:n]) < 2), default=1)
    return n if len(fsdp) % n == 0 else 1


def _axes(coords: Sequence[tuple[int, ...]]) -> int:
    """Count the dimensions in which coordinates differ."""
    return sum(len(set(places)) > 1 for places in zip(*coords, strict=True))


def param_spec(dims: str) -> P:
    """Return how a parameter with these letters is split."""
    return P(*(PARAM_RULES.get(d) for d in dims))


def activation_spec(dims: str) -> P:
    """Return how an activation with these letters is split."""
    return P(*(ACTIVATION_RULES.get(d) for d in dims))


def batch_sharding(mesh: jax.sharding.Mesh, cfg: MeshConfig, dims: str) -> NamedSharding:
    """Return the sharding of an integer batch, "ABT" or "BT".

    The residual stream follows the tokens (see Llama), so tokens that are split in time over
    `tensor` make the model sequence-parallel.
    """
    rules = ACTIVATION_RULES | ({"T": "tensor"} if cfg.sequence_parallel else {})
    return NamedSharding(mesh, P(*(rules.get(d) for d in dims)))


def abstract(fn: Callable[..., Any], *args: Any) -> Any:
    """Return what fn(*args) would, as ShapeDtypeStructs with concrete shardings."""
    mesh = jax.sharding.get_mesh()

    def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, jax.eval_shape(fn, *args))
