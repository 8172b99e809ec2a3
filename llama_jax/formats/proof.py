"""Whether an export computes what its checkpoint does.

One side is the training model itself; the other, the files as readers.py reads them, run through a
forward pass in plain NumPy in the format's own conventions. Both go layer by layer, so that a model
needs no more memory than one of its layers.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llama_jax.attention import attend_within_documents
from llama_jax.checkpoint import by_name
from llama_jax.config import ModelConfig
from llama_jax.formats.readers import ROLES, Conventions, Files
from llama_jax.formats.weights import Checkpoint, Place, from_matrix
from llama_jax.model import Block, RMSNorm, lookup, rotation_of
from llama_jax.sharding import einsum

# Of the logits' standard deviation: fp32 rounding is 3e-6 to 3e-5 of it in most models. In those
# where it is more, the limit is a multiple of what it does to the reading of the files.
TOLERANCE, TIMES_ROUNDING = 1e-4, 16
PROMPT = (
    "The quick brown fox jumps over the lazy dog.  In 1889, def f(x):\n    return x ** 2; "
    "une phrase en français, ein Satz auf Deutsch."
)
PROMPT_TOKENS = 64


def prompts(checkpoint: Checkpoint) -> np.ndarray:
    """int32 [2, PROMPT_TOKENS]: a text, and tokens from all over the vocabulary."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=checkpoint.tokenizer)
    text = [processor.bos_id(), *processor.encode(PROMPT)]
    repeated = np.resize(text, PROMPT_TOKENS)
    everywhere = np.random.default_rng(0).integers(0, checkpoint.cfg.vocab_size, PROMPT_TOKENS)
    return np.stack([repeated, everywhere]).astype(np.int32)


def logits_of_checkpoint(
    checkpoint: Checkpoint,
    tokens_BT: np.ndarray,
    rounded: Callable[[np.ndarray, Place], np.ndarray],
) -> np.ndarray:
    """fp32 [B, T, V] by the training model's own blocks, under jax.set_mesh of one device.

    rounded: what is to be computed with in place of a matrix.
    """
    cfg = dataclasses.replace(checkpoint.cfg, compute_dtype="float32", attention="reference")

    def parameter(name: str, layer: int | None = None) -> jax.Array:
        place = Place(name, layer)
        matrix = rounded(checkpoint.matrix(place), place)
        return jnp.asarray(from_matrix(matrix, name, cfg))

    block = jax.eval_shape(lambda: Block(cfg, nnx.Rngs(0)))
    names = ["layers/" + name for name in by_name(block)]
    x_BTD = _lookup(parameter("embed_VD"), tokens_BT)
    for layer in range(cfg.num_layers):
        leaves = [parameter(name, layer) for name in names]
        x_BTD = _run_block(cfg, jax.tree.unflatten(jax.tree.structure(block), leaves), x_BTD)
        jax.block_until_ready(x_BTD)
        del leaves
    norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
    norm.scale_D[...] = parameter("final_norm/scale_D")
    head_DV = parameter("embed_VD").T if cfg.tie_embeddings else parameter("lm_head_DV")
    return np.asarray(_logits(norm(x_BTD), head_DV))


_lookup = jax.jit(lookup)
_logits = jax.jit(partial(einsum, "BTD,DV->BTV"))


@partial(jax.jit, static_argnums=0)
def _run_block(cfg: ModelConfig, block: Block, x_BTD: jax.Array) -> jax.Array:
    segments_BT = jnp.ones(x_BTD.shape[:2], jnp.int32)
    positions_BT = jnp.zeros_like(segments_BT) + jnp.arange(x_BTD.shape[1])[None]
    rotation = rotation_of(positions_BT, cfg.head_dim, cfg.rope_theta)

    def attend(q_BTGRK, k_BTGK, v_BTGK):
        return attend_within_documents(cfg, q_BTGRK, k_BTGK, v_BTGK, segments_BT)

    return block(x_BTD, rotation, attend)


def logits_of_files(
    files: Files,
    conventions: Conventions,
    tokens_BT: np.ndarray,
    dtype: type[np.floating] = np.float64,
) -> np.ndarray:
    """[B, T, V] in NumPy. dtype: of the arithmetic."""
    c = conventions

    def tensor(role: str, layer: int = 0) -> np.ndarray:
        if c.swapped:
            role = {"gate": "up", "up": "gate"}.get(role, role)
        matrix = files.tensor(role, layer)
        return matrix.T if role == c.transposed else matrix

    def norm(x: np.ndarray, role: str, layer: int = 0) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_eps) * tensor(role, layer)

    def linear(x: np.ndarray, role: str, layer: int = 0) -> np.ndarray:
        matrix = tensor(role, layer)
        # Some rows at a time, of which there is then a copy in dtype.
        rows = (matrix[i : i + 4096] for i in range(0, len(matrix), 4096))
        return np.concatenate([x @ part.T.astype(dtype) for part in rows], axis=-1)

    (B, T), H, G = tokens_BT.shape, c.num_heads, c.kv_heads
    x = tensor("embedding")[tokens_BT].astype(dtype)
    K = x.shape[-1] // H
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

    for layer in range(c.num_layers):
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
    return linear(norm(x, "final_norm"), "head")


def compare(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far logits are from reference, both [B, T, V]."""
    difference = np.abs(logits - reference)
    p, q = (np.float64(x) - _logsumexp(np.float64(x)) for x in (reference, logits))
    return {
        "max_abs": float(difference.max()),
        "max_rel": float(difference.max() / reference.std()),  # of the standard deviation
        "kl": float(np.mean(np.sum(np.exp(p) * (p - q), -1))),  # nats a token
        "greedy_agreement": float(np.mean(logits.argmax(-1) == reference.argmax(-1))),
    }


def _logsumexp(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return top + np.log(np.sum(np.exp(x - top), -1, keepdims=True))


def causes(
    files: Files, cfg: ModelConfig, tokens_BT: np.ndarray, reference: np.ndarray, tolerance: float
) -> list[str]:
    """The known mistakes that, undone, make the files right: each one tried."""
    c = files.conventions
    q_other, k_other = dict(q_pairs=not c.q_pairs), dict(k_pairs=not c.k_pairs)
    tries = {
        "Q/K permutation: the rows of wq and wk are in the other rotary layout": q_other | k_other,
        "Q/K permutation: the rows of wq are in the other rotary layout": q_other,
        "Q/K permutation: the rows of wk are in the other rotary layout": k_other,
        f"norm eps: the files say {c.norm_eps:g}, the checkpoint {cfg.norm_eps:g}": dict(
            norm_eps=cfg.norm_eps
        ),
        f"rope base: the files say {c.rope_theta:g}, the checkpoint {cfg.rope_theta:g}": dict(
            rope_theta=cfg.rope_theta
        ),
        "gate and up are swapped": dict(swapped=True),
    }
    for role in ROLES:
        rows, columns = files.tensor(role, 0).shape
        if rows == columns:
            tries[f"transposed matrix: {role}"] = dict(transposed=role)
    found = []
    for cause, change in tries.items():
        changed = dataclasses.replace(c, **change)
        if changed != c:
            logits = logits_of_files(files, changed, tokens_BT)
            if compare(logits, reference)["max_rel"] <= tolerance:
                found.append(cause)
    return found
