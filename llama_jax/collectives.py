"""Products and look-ups of sharded arrays: weights are gathered for them, gradients scattered.

Shape letters: sharding.py. Nothing here changes a result; it says how bytes move.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jax.typing import DTypeLike

from llama_jax.sharding import FSDP, PARAM_RULES, activation_spec, param_spec


def einsum(
    spec: str, x: jax.Array, w: jax.Array, out: P | None = None, dtype: DTypeLike | None = None
) -> jax.Array:
    """Compute a jnp.einsum whose result is sharded by its own letters, or as `out` says.

    dtype: of the result and its accumulation; by default that of x and w.
    """
    out = out or activation_spec(spec.split("->")[1])
    return _einsum(spec, out, dtype, x, w)


def all_gather(w: jax.Array, dims: str) -> jax.Array:
    """Gather a weight along fsdp; it stays split over `tensor`.

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
        w = all_gather(w, spec[spec.index(",") + 1 : spec.index("->")])
    return jnp.einsum(spec, x, w, out_sharding=out, preferred_element_type=dtype)


def _is_weight(spec: str) -> bool:
    """Say whether the second operand has no batch: in attention, both are activations."""
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
    return _like(x, x_spec, grad, all_gather(w, w_dims)), _weight_gradient(w_spec, x, grad, w.dtype)


def _like(operand: jax.Array, spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    sharding = jax.typeof(operand).sharding.spec
    return jnp.einsum(spec, a, b, out_sharding=sharding, preferred_element_type=operand.dtype)


def _weight_gradient(spec: str, x: jax.Array, grad: jax.Array, dtype: DTypeLike) -> jax.Array:
    x_dims, grad_dims, w_dims = spec.replace("->", ",").split(",")
    d_first = f"{x_dims},{grad_dims}->D{w_dims.replace('D', '')}"

    def on_device(x, grad):
        def partial_gradient(part):
            a, b = (slice_of_D(y, dims, part) for y, dims in ((x, x_dims), (grad, grad_dims)))
            return jnp.einsum(d_first, a, b, preferred_element_type=dtype)

        return reduce_scatter(partial_gradient, w_dims)

    return jax.shard_map(
        on_device,
        in_specs=(activation_spec(x_dims), activation_spec(grad_dims)),
        out_specs=param_spec(w_dims),
        check_vma=False,
    )(x, grad)


def slice_of_D(x: jax.Array, dims: str, part: jax.Array) -> jax.Array:
    """Return the `part`-th of the ring's equal slices of x along D; x, if it has no D."""
    if "D" not in dims:
        return x
    axis = dims.index("D")
    size = x.shape[axis] // jax.lax.axis_size("ring")
    return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)


def reduce_scatter(partial_gradient: Callable[[jax.Array], jax.Array], dims: str) -> jax.Array:
    """Sum all devices' gradients of a weight, in shard_map; each device is left with its part.

    partial_gradient(part): this device's gradient of one part, see slice_of_D, with D first.

    libtpu overlaps no reduce-scatter with computation. So along the ring, if execution.mesh.ring
    asks for one, it is written out: a sum goes from device to device while the next one computes
    what it will add. That pays where little else overlaps, as in a step of one micro-batch; it
    costs an addition per hop and half of the links. The rest goes in two stages, D first, because
    libtpu makes an all-reduce, which moves every byte twice, of a reduce-scatter over all axes of a
    torus at once or over less than a tile of lanes.
    """
    n = jax.lax.axis_size("ring")
    # To the end of the line in steps of two and back: without wraparound, too, every hop is short.
    order = [*range(0, n, 2), *reversed(range(1, n, 2))]
    rank = jnp.array([order.index(i) for i in range(n)])[jax.lax.axis_index("ring")]
    total = partial_gradient(jnp.array(order)[(rank - 1) % n])
    for hop in range(2, n + 1):
        total = jax.lax.ppermute(total, "ring", [(order[i - 1], order[i]) for i in range(n)])
        total += partial_gradient(jnp.array(order)[(rank - hop) % n])
    for stage in FSDP[1:]:
        total = jax.lax.psum_scatter(total, stage, scatter_dimension=0, tiled=True)
    return jnp.moveaxis(jax.lax.psum(total, "replica"), 0, dims.index("D"))


_einsum.defvjp(_einsum_forward, _einsum_backward)


@jax.custom_vjp
def embed(embed_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Look up the rows of embed_VD, as x_BTD.

    The residual stream is split as the tokens are, in time, too, if they are.
    """
    residual = P(*jax.typeof(tokens_BT).sharding.spec, None)
    return all_gather(embed_VD, "VD").at[tokens_BT].get(out_sharding=residual)


def _embed_forward(embed_VD, tokens_BT):
    return embed(embed_VD, tokens_BT), (embed_VD, tokens_BT)


def _embed_backward(operands, grad_BTD):
    embed_VD, tokens_BT = operands

    def on_device(tokens_BT, grad_BTD):
        V = embed_VD.shape[0] // jax.lax.axis_size("tensor")
        row_BT = tokens_BT - jax.lax.axis_index("tensor") * V
        row_BT = jnp.where(row_BT < 0, V, row_BT)  # out of range: some other device's
        # In fp32, so that the gradients of a frequent token are not added up in bf16.
        sum_VD = jnp.zeros((V, grad_BTD.shape[-1]), jnp.float32)
        sum_VD = sum_VD.at[row_BT].add(grad_BTD.astype(jnp.float32), mode="drop")
        sum_VD = sum_VD.astype(embed_VD.dtype)
        return reduce_scatter(lambda part: slice_of_D(sum_VD, "VD", part).T, "VD")

    tokens_BT = reshard(tokens_BT, activation_spec("BT"))
    grad_BTD = reshard(grad_BTD, activation_spec("BTD"))
    grad_VD = jax.shard_map(
        on_device,
        in_specs=(activation_spec("BT"), activation_spec("BTD")),
        out_specs=param_spec("VD"),
        check_vma=False,
    )(tokens_BT, grad_BTD)
    return grad_VD, None


embed.defvjp(_embed_forward, _embed_backward)
