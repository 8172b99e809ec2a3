"""Cross-entropy of the output head, a few rows of logits at a time. Shape letters: sharding.py.

The logits of a LLaMA batch are its largest array (32,000 floats a token), and are needed once: for
each chunk of tokens the forward pass computes logits, loss and, when it is differentiated, at once
the gradients for the hidden states and the head. Nothing of size V is kept or recomputed, and the
head's gradient is reduced over the mesh once, not once a chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from llama_jax.collectives import all_gather, reduce_scatter, slice_of_D
from llama_jax.config import LOSS_CHUNK
from llama_jax.sharding import ACTIVATION_RULES, activation_spec, param_spec


def cross_entropy(x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array):
    """Return the sum of -log softmax(x @ head)[target] in nats, fp32, and the number of targets.

    Targets of -1 do not count. Logits, softmax and sums are fp32 whatever the dtype of x and head.
    """
    return _cross_entropy(
        reshard(x_BTD, activation_spec("BTD")),
        reshard(head_DV, param_spec("DV")),
        reshard(targets_BT, activation_spec("BT")),
    )


@jax.custom_vjp
def _cross_entropy(x_BTD, head_DV, targets_BT):
    loss, count, _, _ = _on_mesh(False, x_BTD, head_DV, targets_BT)
    return loss, count


def _forward(x_BTD, head_DV, targets_BT):
    loss, count, dx_BTD, dhead_DV = _on_mesh(True, x_BTD, head_DV, targets_BT)
    return (loss, count), (dx_BTD, dhead_DV)


def _backward(grads, cotangents):
    dx_BTD, dhead_DV = grads
    scale = cotangents[0]
    return (dx_BTD * scale).astype(dx_BTD.dtype), (dhead_DV * scale).astype(dhead_DV.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _on_mesh(with_grads: bool, x_BTD, head_DV, targets_BT):
    """Return loss, count, dx_BTD and dhead_DV, the last two None without grads."""
    x_spec, targets_spec = activation_spec("BTD"), activation_spec("BT")
    head_spec = P(None, "tensor")
    on_device = jax.shard_map(
        partial(_on_device, with_grads),
        in_specs=(x_spec, head_spec, targets_spec),
        out_specs=(P(), P(), x_spec, param_spec("DV")),
        check_vma=False,
    )
    return on_device(x_BTD, all_gather(head_DV, "DV"), targets_BT)


def _on_device(with_grads: bool, x_BTD, head_DV, targets_BT):
    """Compute the same on one device's rows and its share of the vocabulary, N tokens at a time."""
    (B, T, D), V = x_BTD.shape, head_DV.shape[1]
    N = min(LOSS_CHUNK, B * T)
    pad = -(B * T) % N
    x_CND = jnp.pad(x_BTD.reshape(B * T, D), ((0, pad), (0, 0))).reshape(-1, N, D)
    targets_CN = jnp.pad(targets_BT.reshape(B * T), (0, pad), constant_values=-1).reshape(-1, N)
    first_id = jax.lax.axis_index("tensor") * V

    def chunk(total, rows):
        loss, dhead_DV = total
        x_ND, targets_N = rows
        logits_NV = jnp.dot(x_ND, head_DV, preferred_element_type=jnp.float32)
        max_N1 = jax.lax.pmax(jnp.max(logits_NV, axis=-1, keepdims=True), "tensor")
        exp_NV = jnp.exp(logits_NV - max_N1)
        sum_N1 = jax.lax.psum(jnp.sum(exp_NV, axis=-1, keepdims=True), "tensor")
        column_N1 = targets_N[:, None] - first_id
        here_N1 = (column_N1 >= 0) & (column_N1 < V)
        target_N1 = jnp.take_along_axis(logits_NV, jnp.clip(column_N1, 0, V - 1), axis=-1)
        target_N1 = jax.lax.psum(jnp.where(here_N1, target_N1, 0.0), "tensor")
        counts_N1 = targets_N[:, None] >= 0
        loss += jnp.sum((jnp.log(sum_N1) + max_N1 - target_N1) * counts_N1)
        if not with_grads:
            return (loss, None), None
        dlogits_NV = (exp_NV / sum_N1 - (column_N1 == jnp.arange(V)[None])) * counts_N1
        dlogits_NV = dlogits_NV.astype(x_ND.dtype)
        dhead_DV += jnp.dot(x_ND.T, dlogits_NV, preferred_element_type=jnp.float32)
        return (loss, dhead_DV), jax.lax.psum(jnp.dot(dlogits_NV, head_DV.T), "tensor")

    zeros = jnp.zeros((D, V), jnp.float32) if with_grads else None
    (loss, dhead_DV), dx_CND = jax.lax.scan(chunk, (jnp.zeros(()), zeros), (x_CND, targets_CN))
    batch_axes = ACTIVATION_RULES["B"]
    loss = jax.lax.psum(loss, batch_axes)
    count = jax.lax.psum(jnp.sum(targets_BT >= 0), batch_axes)
    if dx_CND is None:
        return loss, count, None, None
    assert dhead_DV is not None
    dhead_DV = reduce_scatter(partial(slice_of_D, dhead_DV, "DV"), "DV").astype(head_DV.dtype)
    return loss, count, dx_CND.reshape(-1, D)[: B * T].reshape(B, T, D), dhead_DV
