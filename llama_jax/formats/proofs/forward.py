"""Logits of exported files, by a forward pass in plain NumPy in the format's own conventions."""

import math

import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.formats.proofs.files import Conventions, Files, Inputs


def logits_of_files(
    files: Files,
    cfg: ModelConfig,
    conventions: Conventions,
    tokens_BT: np.ndarray,
    dtype: type[np.floating] = np.float64,
    inputs: Inputs | None = None,
) -> np.ndarray:
    """Return fp32 [B, T, V] of files that have the shapes of cfg.

    dtype: of the arithmetic; inputs: what is multiplied with a tensor, where it is to be rounded.
    Go layer by layer, so that a model needs no more memory than one of its layers.
    """
    c = conventions

    def norm(x: np.ndarray, role: str, layer: int = 0) -> np.ndarray:
        scale = files.tensor(role, layer).whole()
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_eps) * scale

    def linear(x: np.ndarray, role: str, layer: int = 0, out: type = dtype) -> np.ndarray:
        if c.swapped:
            role = {"gate": "up", "up": "gate"}.get(role, role)
        tensor = files.tensor(role, layer)
        x = inputs(x, tensor) if inputs else x
        if role == c.transposed:
            return x @ tensor.whole().astype(dtype)
        y = np.empty((*x.shape[:-1], tensor.shape[0]), out)
        for rows, matrix in tensor.blocks():
            y[..., rows] = x @ matrix.T.astype(dtype)
        return y

    (B, T), H, G, K = tokens_BT.shape, cfg.num_heads, cfg.kv_heads, cfg.head_dim
    x = np.empty((B, T, cfg.embed_dim), dtype)
    for rows, matrix in files.tensor("embedding", 0).blocks():
        inside = (rows.start <= tokens_BT) & (tokens_BT < rows.stop)
        x[inside] = matrix[tokens_BT[inside] - rows.start]
    angle = np.outer(np.arange(T), c.rope_theta ** (-np.arange(0, K, 2) / K))
    turn = np.exp(1j * angle)[:, None]
    future = np.triu(np.full((T, T), -np.inf, dtype), 1)

    def rotated(heads: np.ndarray, pairs: bool) -> np.ndarray:
        if pairs:
            a, b = heads[..., 0::2], heads[..., 1::2]
        else:
            a, b = np.split(heads, 2, -1)
        z = (a + 1j * b) * turn
        return np.concatenate([z.real, z.imag], -1).astype(dtype)  # in one order, whichever it was

    for layer in range(cfg.num_layers):
        y = norm(x, "attn_norm", layer)
        q = rotated(linear(y, "q", layer).reshape(B, T, H, K), c.q_pairs)
        k = rotated(linear(y, "k", layer).reshape(B, T, G, K), c.k_pairs)
        v = linear(y, "v", layer).reshape(B, T, G, K)
        k, v = np.repeat(k, H // G, axis=2), np.repeat(v, H // G, axis=2)
        scores = np.einsum("bqhk,bchk->bhqc", q, k) / math.sqrt(K) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        context = np.einsum("bhqc,bchk->bqhk", scores, v).reshape(B, T, -1)
        x = x + linear(context, "o", layer)
        y = norm(x, "mlp_norm", layer)
        gate = linear(y, "gate", layer)
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "up", layer), "down", layer)
    return linear(norm(x, "final_norm"), "head", out=np.float32)
