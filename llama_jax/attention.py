"""Causal attention within packed documents. Shape letters: sharding.py.

Queries come scaled by 1 / sqrt(K) already.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama_jax.collectives import einsum
from llama_jax.config import Execution, UserError
from llama_jax.sharding import activation_spec

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}  # what a kernel needs; the reference runs anywhere
MASKED = -1e30  # finite, so that a row without any visible key is not NaN
QUERY_BLOCKS = 4  # a block of queries skips the keys after it: 5/8 of the square is computed


def attend(q_BTGRK: jax.Array, k_BCGK: jax.Array, v_BCGK: jax.Array, mask_BTC: jax.Array):
    """Compute softmax(q k^T) v over the keys that mask_BTC allows. Logits and softmax in fp32.

    The sum of the weights is divided out at the end, as flash attention does.
    """
    logits_BGRTC = einsum("BTGRK,BCGK->BGRTC", q_BTGRK, k_BCGK, dtype=jnp.float32)
    logits_BGRTC = jnp.where(mask_BTC[:, None, None], logits_BGRTC, MASKED)
    max_BGRT1 = jax.lax.stop_gradient(jnp.max(logits_BGRTC, axis=-1, keepdims=True))
    weights_BGRTC = jnp.exp(logits_BGRTC - max_BGRT1)
    sum_BTGR = jnp.einsum("BGRTC->BTGR", weights_BGRTC)
    out_BTGRK = einsum("BGRTC,BCGK->BTGRK", weights_BGRTC.astype(v_BCGK.dtype), v_BCGK)
    return (out_BTGRK / sum_BTGR[..., None]).astype(v_BCGK.dtype)


def check_platform(execution: Execution) -> None:
    """Raise UserError unless the kernel runs on the devices of this process."""
    needed, found = PLATFORMS.get(execution.attention), jax.default_backend()
    if needed not in (None, found):
        raise UserError(
            f"execution.attention: {execution.attention!r} needs a {needed}, but the devices are "
            f"{found}; --set execution.attention=reference runs anywhere"
        )


def attend_within_documents(execution: Execution, q_BTGRK, k_BTGK, v_BTGK, segments_BT):
    """Let a token attend to itself and the earlier tokens of its document, by the chosen kernel."""
    if execution.attention == "splash":
        return splash(q_BTGRK, k_BTGK, v_BTGK, segments_BT, execution.attention_block)
    if execution.attention == "cudnn":
        return cudnn(q_BTGRK, k_BTGK, v_BTGK, segments_BT)
    return reference(q_BTGRK, k_BTGK, v_BTGK, segments_BT)


def splash(q_BTGRK, k_BTGK, v_BTGK, segments_BT, block: int, interpret: bool = False):
    """Attend by the TPU's flash attention, one call a device: no T x T array exists.

    Tiles of `block` queries and keys above the diagonal are not computed.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    T = segments_BT.shape[1]
    tile = min(block, T)
    sizes = kernels.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=min(2 * block, T),  # each adds a partial dq, T x K, to be summed
        use_fused_bwd_kernel=True,  # one kernel for dq, dk and dv: 5 products instead of 7
    )

    def on_device(q_BTGRK, k_BTGK, v_BTGK, segments_BT):
        B, T, G, R, K = q_BTGRK.shape
        attend = kernels.make_splash_mha(
            masks.MultiHeadMask([masks.CausalMask((T, T))] * (G * R)),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="context",
            interpret=interpret,
        )
        q_BHTK = q_BTGRK.reshape(B, T, G * R, K).swapaxes(1, 2)
        out_BHTK: jax.Array = jax.vmap(attend)(  # pyright: ignore[reportAssignmentType]
            q_BHTK,
            k_BTGK.swapaxes(1, 2),
            v_BTGK.swapaxes(1, 2),
            kernels.SegmentIds(segments_BT, segments_BT),
        )
        return out_BHTK.swapaxes(1, 2).reshape(q_BTGRK.shape)

    return _on_mesh(on_device, q_BTGRK, k_BTGK, v_BTGK, segments_BT)


def cudnn(q_BTGRK, k_BTGK, v_BTGK, segments_BT, implementation: Literal["cudnn", "xla"] = "cudnn"):
    """Attend by cuDNN's flash attention on NVIDIA GPUs, one call a device."""

    def on_device(q_BTGRK, k_BTGK, v_BTGK, segments_BT):
        B, T, G, R, K = q_BTGRK.shape
        same_BTC = segments_BT[:, :, None] == segments_BT[:, None, :]
        out_BTHK = jax.nn.dot_product_attention(
            q_BTGRK.reshape(B, T, G * R, K),
            k_BTGK,
            v_BTGK,
            mask=same_BTC[:, None],
            scale=1.0,
            is_causal=True,
            implementation=implementation,
        )
        return checkpoint_name(out_BTHK.reshape(q_BTGRK.shape), "context")

    return _on_mesh(on_device, q_BTGRK, k_BTGK, v_BTGK, segments_BT)


def _on_mesh(on_device: Callable, *qkv_and_segments):
    """Run on_device on each device's rows and heads: attention needs nothing of another device."""
    dims = "BTGRK", "BTGK", "BTGK", "BT"
    return jax.shard_map(
        on_device,
        in_specs=tuple(map(activation_spec, dims)),
        out_specs=activation_spec("BTGRK"),
        check_vma=False,
    )(*qkv_and_segments)


def reference(q_BTGRK, k_BTGK, v_BTGK, segments_BT):
    """Attend by XLA's own operations, on any device."""
    T = segments_BT.shape[1]
    blocks = []
    for start in range(0, T, -(-T // QUERY_BLOCKS)):
        stop = min(start + -(-T // QUERY_BLOCKS), T)
        same_BTC = segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]
        causal_TC = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        mask_BTC = same_BTC & causal_TC[None]
        blocks.append(attend(q_BTGRK[:, start:stop], k_BTGK[:, :stop], v_BTGK[:, :stop], mask_BTC))
    return checkpoint_name(jnp.concatenate(blocks, axis=1), "context")
