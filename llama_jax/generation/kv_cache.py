"""The keys and values of a decoder's earlier tokens, and attention over them.

Shape letters: sharding.py. Queries come scaled by 1 / sqrt(K) already.
"""

import os

import jax
import jax.numpy as jnp

from llama_jax.attention import MASKED
from llama_jax.config import ModelConfig, UserError
from llama_jax.sharding import activation_spec

KVCache = tuple[jax.Array, jax.Array]  # k_NCK and v_NKC: what attention sums over is last


def check_memory(cfg: ModelConfig, batch_size: int, length: int) -> None:
    """Raise UserError if the caches of all layers are larger than the memory of this machine, or
    of its devices."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    on_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = sum(limit for limit in limits if limit) or on_host
    values = 2 * cfg.num_layers * batch_size * length * cfg.kv_heads * cfg.head_dim
    needed = values * _dtype(cfg).itemsize
    if needed > memory:
        raise UserError(
            f"max_tokens: the keys and values of {length:,} tokens a text need "
            f"{needed / 1e9:,.1f} GB, and there are {memory / 1e9:,.1f} GB of memory; expected "
            f"{length * memory // needed:,} tokens at the most, with the prompt"
        )


def new_cache(cfg: ModelConfig, batch_size: int, length: int) -> KVCache:
    """Return zeros for the keys and values of one layer; N is rows times heads."""
    N, C, K = batch_size * cfg.kv_heads, length, cfg.head_dim
    dtype, spec = _dtype(cfg), activation_spec("NCK")  # and of NKC
    k_NCK = jnp.zeros((N, C, K), dtype, out_sharding=spec)
    return k_NCK, jnp.zeros((N, K, C), dtype, out_sharding=spec)


def _dtype(cfg: ModelConfig) -> jnp.dtype:
    """Return cfg.compute_dtype, or fp32 on a CPU, where XLA would widen all of it at each step."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else cfg.compute_dtype)


def attend_to_cache(start, mask_BTC, cache: KVCache, q_BTGRK, k_BTGK, v_BTGK):
    """Return out_BTH and the cache of a device's rows and heads.

    The T new keys and values go to `start`; a token sees the keys that mask_BTC allows. Logits and
    softmax in fp32.
    """
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
    # Normalise after the sum, in the shape that wo takes: see `product` in decoder.py.
    out_BGRTK = out_NRTK.reshape(B, G, R, T, K)
    out_BTH = jnp.einsum("BGRTK->BTGRK", out_BGRTK).reshape(B, T, -1)
    total_BTGR = jnp.einsum("BGRT->BTGR", total_NRT.reshape(B, G, R, T))
    out_BTH /= jnp.repeat(total_BTGR.reshape(B, T, -1), K, axis=-1)
    return out_BTH.astype(q_BTGRK.dtype), (k_NCK, v_NKC)
