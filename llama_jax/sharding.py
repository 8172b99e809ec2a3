"""One table maps the letters of our shape suffixes to mesh axes.

Dimension key (a suffix is the logical shape, whatever the sharding):
    A micro-batches   B batch rows   T time, whole   D embed   V vocabulary   F MLP width
    G key/value heads   R query heads per key/value head   K head dim   C time of the keys
    N rows times key/value heads   H is GRK as one
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from llama_jax.config import MeshConfig, UserError

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


def make_mesh(cfg: MeshConfig, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """A mesh over all of `devices`. Raises UserError unless the axes multiply to their number.

    The replicas are spread over the slices, if there are several: parameters are gathered within a
    slice, and only sums of gradients cross the data-centre network. Of fsdp, mesh.ring devices are
    laid along one side of the torus, see reduce_scatter; if the rest spans the whole torus, `line`
    is along one of its axes, see gather.
    """
    shape = (cfg.replica, cfg.fsdp, cfg.tensor)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh: replica * fsdp * tensor = {' * '.join(map(str, shape))} = {math.prod(shape)}, "
            f"but there are {len(devices)} devices ({devices[0].device_kind})"
        )
    num_slices = len({getattr(d, "slice_index", 0) for d in devices})
    if cfg.replica % num_slices:
        raise UserError(
            f"mesh.replica: got {cfg.replica}, expected a multiple of the {num_slices} slices"
        )
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
    """How many devices of fsdp, from the first, follow one axis of the torus; 1 if they do not span
    the whole torus, or there is none. grid: devices, [replica, ring, the rest of fsdp, tensor]."""
    if not hasattr(grid.flat[0], "coords"):
        return 1
    fsdp = [device.coords for device in grid[0, 0, :, 0]]
    if _axes(fsdp) < _axes([device.coords for device in grid.flat]):
        return 1
    n = max((n for n in range(1, len(fsdp)) if _axes(fsdp[:n]) < 2), default=1)
    return n if len(fsdp) % n == 0 else 1


def _axes(coords: Sequence[tuple[int, ...]]) -> int:
    """In how many dimensions they differ."""
    return sum(len(set(places)) > 1 for places in zip(*coords, strict=True))


def param_spec(dims: str) -> P:
    return P(*(PARAM_RULES.get(d) for d in dims))


def activation_spec(dims: str) -> P:
    return P(*(ACTIVATION_RULES.get(d) for d in dims))


def batch_sharding(mesh: jax.sharding.Mesh, cfg: MeshConfig, dims: str) -> NamedSharding:
    """Of an integer batch, "ABT" or "BT". The residual stream follows the tokens (see Llama), so
    tokens that are split in time over `tensor` make the model sequence-parallel."""
    rules = ACTIVATION_RULES | ({"T": "tensor"} if cfg.sequence_parallel else {})
    return NamedSharding(mesh, P(*(rules.get(d) for d in dims)))


def einsum(
    spec: str, x: jax.Array, w: jax.Array, out: P | None = None, dtype: DTypeLike | None = None
) -> jax.Array:
    """jnp.einsum whose result is sharded by the letters of its own output, or as `out` says.

    dtype: of the result and its accumulation; by default that of x and w.
    """
    out = out or activation_spec(spec.split("->")[1])
    return _einsum(spec, out, dtype, x, w)


def gather(w: jax.Array, dims: str) -> jax.Array:
    """A weight that is whole along fsdp, and split over `tensor` as before.

    In stages where fsdp spans the whole torus, because libtpu makes of one gather over all its axes
    an all-reduce of zeros and shares, which moves every byte twice and which nothing overlaps.
    """
    whole_torus = jax.sharding.get_abstract_mesh().shape["tensor"] == 1
    for rest in (FSDP[:2], FSDP[:1], ()) if whole_torus else ((),):
        w = reshard(
            w, P(*(rest if PARAM_RULES.get(d) == FSDP else PARAM_RULES.get(d) for d in dims))
        )
    return w


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _einsum(spec: str, out: P, dtype: DTypeLike | None, x: jax.Array, w: jax.Array) -> jax.Array:
    if _is_weight(spec):
        w = gather(w, spec[spec.index(",") + 1 : spec.index("->")])
    return jnp.einsum(spec, x, w, out_sharding=out, preferred_element_type=dtype)


def _is_weight(spec: str) -> bool:
    """Whether the second operand has no batch: in attention, both are activations."""
    return "B" not in spec[spec.index(",") : spec.index("->")]


def _einsum_forward(spec, out, dtype, x, w):
    return _einsum(spec, out, dtype, x, w), (x, w)


def _einsum_backward(spec, out, dtype, operands, grad):
    # By our own rule, because JAX's writes the gradient of w as (grad^T x)^T. The transposed copy
    # of grad, the wider operand, cost a fifth of a 110M model's step on a CPU.
    x, w = operands
    x_dims, w_dims, out_dims = spec.replace("->", ",").split(",")
    x_spec = f"{out_dims},{w_dims}->{x_dims}"
    w_spec = f"{x_dims},{out_dims}->{w_dims}"
    if not _is_weight(spec):
        return _like(x, x_spec, grad, w), _like(w, w_spec, x, grad)
    grad = reshard(grad, activation_spec(out_dims))  # gathers, once, what is split in time
    return _like(x, x_spec, grad, gather(w, w_dims)), _weight_gradient(w_spec, x, grad, w.dtype)


def _like(operand: jax.Array, spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    sharding = jax.typeof(operand).sharding.spec
    return jnp.einsum(spec, a, b, out_sharding=sharding, preferred_element_type=operand.dtype)


def _weight_gradient(spec: str, x: jax.Array, grad: jax.Array, dtype: DTypeLike) -> jax.Array:
    x_dims, grad_dims, w_dims = spec.replace("->", ",").split(",")
    d_first = f"{x_dims},{grad_dims}->D{w_dims.replace('D', '')}"

    def on_device(x, grad):
        def share(part):
            a, b = (take(y, dims, part) for y, dims in ((x, x_dims), (grad, grad_dims)))
            return jnp.einsum(d_first, a, b, preferred_element_type=dtype)

        return reduce_scatter(share, w_dims)

    return jax.shard_map(
        on_device,
        in_specs=(activation_spec(x_dims), activation_spec(grad_dims)),
        out_specs=param_spec(w_dims),
        check_vma=False,
    )(x, grad)


def take(x: jax.Array, dims: str, part: jax.Array) -> jax.Array:
    """Of x, one of as many parts along D as fsdp's ring is long; all of it if it has no D."""
    if "D" not in dims:
        return x
    axis = dims.index("D")
    size = x.shape[axis] // jax.lax.axis_size("ring")
    return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)


def reduce_scatter(share: Callable[[jax.Array], jax.Array], dims: str) -> jax.Array:
    """In shard_map: the sum of all devices' gradients of a weight, each device left with its part.

    share(part): this device's gradient of one part, see take, with D as its first axis.

    libtpu overlaps no reduce-scatter with computation. So along the ring, if mesh.ring asks for
    one, it is written out: a sum goes from device to device while the next one computes what it
    will add. That pays where little else overlaps, as in a step of one micro-batch; it costs an
    addition per hop and half of the links. The rest goes in two stages, and with D first, because
    libtpu makes an all-reduce, which moves every byte twice, of a reduce-scatter over all axes of a
    torus at once or over less than a tile of lanes.
    """
    n = jax.lax.axis_size("ring")
    # To the end of the line in steps of two and back: without wraparound, too, every hop is short.
    order = [*range(0, n, 2), *reversed(range(1, n, 2))]
    place = jnp.array([order.index(i) for i in range(n)])[jax.lax.axis_index("ring")]
    total = share(jnp.array(order)[(place - 1) % n])
    for hop in range(2, n + 1):
        total = jax.lax.ppermute(total, "ring", [(order[i - 1], order[i]) for i in range(n)])
        total += share(jnp.array(order)[(place - hop) % n])
    for stage in FSDP[1:]:
        total = jax.lax.psum_scatter(total, stage, scatter_dimension=0, tiled=True)
    return jnp.moveaxis(jax.lax.psum(total, "replica"), 0, dims.index("D"))


_einsum.defvjp(_einsum_forward, _einsum_backward)


def abstract(fn: Callable[..., Any], *args: Any) -> Any:
    """What fn(*args) would return, as ShapeDtypeStructs with concrete shardings."""
    mesh = jax.sharding.get_mesh()

    def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, jax.eval_shape(fn, *args))
