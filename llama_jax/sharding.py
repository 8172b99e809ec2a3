"""One table maps the letters of our shape suffixes to mesh axes.

Dimension key (a suffix is the logical shape, whatever the sharding):
    A micro-batches   B batch rows   T time, whole   D embed   V vocabulary   F MLP width
    G key/value heads   R query heads per key/value head   K head dim   C time of the keys
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from llama_jax.config import MeshConfig, UserError

MESH_AXES = ("replica", "fsdp", "tensor")
PARAM_RULES = {"D": "fsdp", "G": "tensor", "F": "tensor", "V": "tensor"}
ACTIVATION_RULES = {"B": ("replica", "fsdp"), "G": "tensor", "F": "tensor", "V": "tensor"}


def make_mesh(cfg: MeshConfig, devices: Sequence[Any]) -> jax.sharding.Mesh:
    """A mesh over all of `devices`. Raises UserError unless the axes multiply to their number."""
    shape = (cfg.replica, cfg.fsdp, cfg.tensor)
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh: replica * fsdp * tensor = {' * '.join(map(str, shape))} = {math.prod(shape)}, "
            f"but there are {len(devices)} devices ({devices[0].device_kind})"
        )
    return jax.make_mesh(
        shape, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES), devices=devices
    )


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _einsum(spec: str, out: P, dtype: DTypeLike | None, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(spec, x, w, out_sharding=out, preferred_element_type=dtype)


def _einsum_forward(spec, out, dtype, x, w):
    return _einsum(spec, out, dtype, x, w), (x, w)


def _einsum_backward(spec, out, dtype, operands, grad):
    # By our own rule, because JAX's writes the gradient of w as (grad^T x)^T. The transposed copy
    # of grad, the wider operand, cost a fifth of a 110M model's step on a CPU.
    x, w = operands
    x_dims, w_dims, out_dims = spec.replace("->", ",").split(",")
    return (
        _like(x, f"{out_dims},{w_dims}->{x_dims}", grad, w),
        _like(w, f"{x_dims},{out_dims}->{w_dims}", x, grad),
    )


def _like(operand: jax.Array, spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    sharding = jax.typeof(operand).sharding.spec
    return jnp.einsum(spec, a, b, out_sharding=sharding, preferred_element_type=operand.dtype)


_einsum.defvjp(_einsum_forward, _einsum_backward)


def abstract(fn: Callable[..., Any], *args: Any) -> Any:
    """What fn(*args) would return, as ShapeDtypeStructs with concrete shardings."""
    mesh = jax.sharding.get_mesh()

    def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, jax.eval_shape(fn, *args))
