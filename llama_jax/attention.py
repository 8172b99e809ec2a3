"""Causal attention, within packed documents or over a cache. Shape letters: sharding.py."""

import jax
import jax.numpy as jnp

from llama_jax.config import ModelConfig
from llama_jax.sharding import activation_spec, einsum

MASKED = -1e30  # finite, so that a row without any visible key is not NaN
QUERY_BLOCKS = 4  # a block of queries skips the keys after it: 5/8 of the square is computed


def attend(q_BTGRK: jax.Array, k_BCGK: jax.Array, v_BCGK: jax.Array, mask_BTC: jax.Array):
    """softmax(q k^T / sqrt(K)) v over the keys that mask_BTC allows. Logits and softmax in fp32.

    The sum of the weights is divided out at the end, as flash attention does.
    """
    logits_BGRTC = einsum("BTGRK,BCGK->BGRTC", q_BTGRK, k_BCGK, dtype=jnp.float32)
    logits_BGRTC *= q_BTGRK.shape[-1] ** -0.5
    logits_BGRTC = jnp.where(mask_BTC[:, None, None], logits_BGRTC, MASKED)
    max_BGRT1 = jax.lax.stop_gradient(jnp.max(logits_BGRTC, axis=-1, keepdims=True))
    weights_BGRTC = jnp.exp(logits_BGRTC - max_BGRT1)
    sum_BTGR = jnp.einsum("BGRTC->BTGR", weights_BGRTC)
    out_BTGRK = einsum("BGRTC,BCGK->BTGRK", weights_BGRTC.astype(v_BCGK.dtype), v_BCGK)
    return (out_BTGRK / sum_BTGR[..., None]).astype(v_BCGK.dtype)


def attend_within_documents(q_BTGRK, k_BTGK, v_BTGK, segments_BT):
    """A token attends to itself and to the earlier tokens of its own document."""
    T = segments_BT.shape[1]
    blocks = []
    for start in range(0, T, -(-T // QUERY_BLOCKS)):
        stop = min(start + -(-T // QUERY_BLOCKS), T)
        same_BTC = segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]
        causal_TC = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        mask_BTC = same_BTC & causal_TC[None]
        blocks.append(attend(q_BTGRK[:, start:stop], k_BTGK[:, :stop], v_BTGK[:, :stop], mask_BTC))
    return jnp.concatenate(blocks, axis=1)


KVCache = tuple[jax.Array, jax.Array]


def new_cache(cfg: ModelConfig, batch_size: int, length: int) -> KVCache:
    """Zeros for the keys and values of all layers, each [layers, B, C, G, K]."""
    shape = (cfg.num_layers, batch_size, length, cfg.kv_heads, cfg.head_dim)
    spec = activation_spec("LBCGK")
    keys = jnp.zeros(shape, cfg.compute_dtype, out_sharding=spec)
    return keys, jnp.zeros_like(keys)


def attend_to_cache(start: jax.Array, cache: KVCache, q_BTGRK, k_BTGK, v_BTGK):
    """(output, cache). The T new keys and values go to `start`; a token sees all up to its own."""
    k_BCGK, v_BCGK = (
        jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
        for old, new in zip(cache, (k_BTGK, v_BTGK), strict=True)
    )
    T, C = k_BTGK.shape[1], k_BCGK.shape[1]
    mask_TC = jnp.arange(C)[None] <= (start + jnp.arange(T))[:, None]
    return attend(q_BTGRK, k_BCGK, v_BCGK, mask_TC[None]), (k_BCGK, v_BCGK)
