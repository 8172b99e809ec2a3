"""Causal attention, within packed documents or over a cache. Shape letters: sharding.py.

Queries come scaled by 1 / sqrt(K) already.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llama_jax.config import ModelConfig, UserError
from llama_jax.sharding import activation_spec, einsum

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}  # what a kernel needs; the reference runs anywhere
MASKED = -1e30  # finite, so that a row without any visible key is not NaN
QUERY_BLOCKS = 4  # a block of queries skips the keys after it: 5/8 of the square is computed


def attend(q_BTGRK: jax.Array, k_BCGK: jax.Array, v_BCGK: jax.Array, mask_BTC: jax.Array):
    """softmax(q k^T) v over the keys that mask_BTC allows. Logits and softmax in fp32.

    The sum of the weights is divided out at the end, as flash attention does.
    """
    logits_BGRTC = einsum("BTGRK,BCGK->BGRTC", q_BTGRK, k_BCGK, dtype=jnp.float32)
    logits_BGRTC = jnp.where(mask_BTC[:, None, None], logits_BGRTC, MASKED)
    max_BGRT1 = jax.lax.stop_gradient(jnp.max(logits_BGRTC, axis=-1, keepdims=True))
    weights_BGRTC = jnp.exp(logits_BGRTC - max_BGRT1)
    sum_BTGR = jnp.einsum("BGRTC->BTGR", weights_BGRTC)
    out_BTGRK = einsum("BGRTC,BCGK->BTGRK", weights_BGRTC.astype(v_BCGK.dtype), v_BCGK)
    return (out_BTGRK / sum_BTGR[..., None]).astype(v_BCGK.dtype)


def check_platform(cfg: ModelConfig) -> None:
    """Raises UserError unless cfg's kernel runs on the devices of this process."""
    needed, found = PLATFORMS.get(cfg.attention), jax.default_backend()
    if needed not in (None, found):
        raise UserError(
            f"model.attention: {cfg.attention!r} needs a {needed}, but the devices are {found}; "
            "--set model.attention=reference runs anywhere"
        )


def attend_within_documents(cfg: ModelConfig, q_BTGRK, k_BTGK, v_BTGK, segments_BT):
    """A token attends to itself and to the earlier tokens of its own document, by cfg's kernel."""
    if cfg.attention == "splash":
        return splash(q_BTGRK, k_BTGK, v_BTGK, segments_BT, cfg.attention_block)
    if cfg.attention == "cudnn":
        return cudnn(q_BTGRK, k_BTGK, v_BTGK, segments_BT)
    return reference(q_BTGRK, k_BTGK, v_BTGK, segments_BT)


def splash(q_BTGRK, k_BTGK, v_BTGK, segments_BT, block: int, interpret: bool = False):
    """The TPU's flash attention, one call a device: no T x T array exists, and tiles of `block`
    queries and keys above the diagonal are not computed."""
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
    """cuDNN's flash attention on NVIDIA GPUs, one call a device."""

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
    """on_device of each device's rows and heads: attention needs nothing of another device."""
    dims = "BTGRK", "BTGK", "BTGK", "BT"
    return jax.shard_map(
        on_device,
        in_specs=tuple(map(activation_spec, dims)),
        out_specs=activation_spec("BTGRK"),
        check_vma=False,
    )(*qkv_and_segments)


def reference(q_BTGRK, k_BTGK, v_BTGK, segments_BT):
    T = segments_BT.shape[1]
    blocks = []
    for start in range(0, T, -(-T // QUERY_BLOCKS)):
        stop = min(start + -(-T // QUERY_BLOCKS), T)
        same_BTC = segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]
        causal_TC = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        mask_BTC = same_BTC & causal_TC[None]
        blocks.append(attend(q_BTGRK[:, start:stop], k_BTGK[:, :stop], v_BTGK[:, :stop], mask_BTC))
    return checkpoint_name(jnp.concatenate(blocks, axis=1), "context")


KVCache = tuple[jax.Array, jax.Array]  # k_NCK and v_NKC: what attention sums over is last


def new_cache(cfg: ModelConfig, batch_size: int, length: int) -> KVCache:
    """Zeros for the keys and values of one layer, in cfg.compute_dtype, or in fp32 on a CPU, where
    XLA would widen all of them at each step. N is rows times heads."""
    N, C, K = batch_size * cfg.kv_heads, length, cfg.head_dim
    dtype = jnp.float32 if jax.default_backend() == "cpu" else cfg.compute_dtype
    spec = activation_spec("NCK")  # and of NKC
    k_NCK = jnp.zeros((N, C, K), dtype, out_sharding=spec)
    return k_NCK, jnp.zeros((N, K, C), dtype, out_sharding=spec)


def attend_to_cache(start, mask_BTC, cache: KVCache, q_BTGRK, k_BTGK, v_BTGK):
    """(out_BTH, cache) of a device's rows and heads. The T new keys and values go to `start`; a
    token sees the keys that mask_BTC allows. Logits and softmax in fp32."""
    B, T, G, R, K = q_BTGRK.shape
    k_NTK = jnp.einsum("BTGK->BGTK", k_BTGK).reshape(B * G, T, K).astype(cache[0].dtype)
    v_NKT = jnp.einsum("BTGK->BGKT", v_BTGK).reshape(B * G, K, T).astype(cache[1].dtype)
    # The barrier, and that rows and heads are one axis, keep XLA:CPU from copying the whole cache.
    k_NTK, v_NKT = jax.lax.optimization_barrier((k_NTK, v_NKT))
    k_NCK = jax.lax.dynamic_update_slice_in_dim(cache[0], k_NTK, start, axis=1)
    v_NKC = jax.lax.dynamic_update_slice_in_dim(cache[1], v_NKT, start, axis=2)
    q_NRTK = jnp.einsum("BTGRK->BGRTK", q_BTGRK).reshape(B * G, R, T, K)
    logits_NRTC = jnp.einsum("NRTK,NCK->NRTC", q_NRTK, k_NCK, preferred_element_type=jnp.float32)
    mask_NRTC = jnp.repeat(mask_BTC, G, axis=0)[:, None]
    logits_NRTC = jnp.where(mask_NRTC, logits_NRTC, MASKED)
    weights_NRTC = jnp.exp(logits_NRTC - jnp.max(logits_NRTC, axis=-1, keepdims=True))
    total_NRT = jnp.sum(weights_NRTC, axis=-1)
    weights_NRTC = weights_NRTC.astype(v_NKC.dtype)
    out_NRTK = jnp.einsum("NRTC,NKC->NRTK", weights_NRTC, v_NKC, preferred_element_type=jnp.float32)
    # Divided last, in the shape that wo takes: why, decoder.py says where SwiGLU does the same.
    out_BGRTK = out_NRTK.reshape(B, G, R, T, K)
    out_BTH = jnp.einsum("BGRTK->BTGRK", out_BGRTK).reshape(B, T, -1)
    total_BTGR = jnp.einsum("BGRT->BTGR", total_NRT.reshape(B, G, R, T))
    out_BTH /= jnp.repeat(total_BTGR.reshape(B, T, -1), K, axis=-1)
    return out_BTH.astype(q_BTGRK.dtype), (k_NCK, v_NKC)
