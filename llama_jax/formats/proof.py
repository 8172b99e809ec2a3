"""Whether an export computes what its checkpoint does.

One side is the training model itself; the other, the files as readers.py reads them: each tensor
within what its type rounds, and all of them in a forward pass in plain NumPy in the format's own
conventions. Both go layer by layer, so that a model needs no more memory than one of its layers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llama_jax.attention import attend_within_documents
from llama_jax.collectives import einsum
from llama_jax.config import Execution, ModelConfig
from llama_jax.formats.readers import ROLES, ROWS, Conventions, Files, Tensor, Unreadable
from llama_jax.formats.weights import (
    EMBEDDING,
    HEAD,
    KEY,
    QUERY,
    TYPES,
    VALUE,
    Checkpoint,
    Place,
    from_matrix,
    places,
)
from llama_jax.model import Block, RMSNorm, rotation_of
from llama_jax.run.checkpoint import by_name

# Of the logits' standard deviation: fp32 rounding is 3e-6 to 3e-5 of it in most models. In those
# where it is more, the limit is a multiple of what it does to the reading of the files.
TOLERANCE, TIMES_ROUNDING = 1e-4, 16
PROMPT = (
    "The quick brown fox jumps over the lazy dog.  In 1889, def f(x):\n    return x ** 2; "
    "une phrase en français, ein Satz auf Deutsch."
)
PROMPT_TOKENS = 64
ROLE_OF = {
    EMBEDDING: "embedding",
    "layers/attn_norm/scale_D": "attn_norm",
    QUERY: "q",
    KEY: "k",
    VALUE: "v",
    "layers/attn/wo_GRKD": "o",
    "layers/mlp_norm/scale_D": "mlp_norm",
    "layers/mlp/w_gate_DF": "gate",
    "layers/mlp/w_up_DF": "up",
    "layers/mlp/w_down_FD": "down",
    "final_norm/scale_D": "final_norm",
    HEAD: "head",
}


def prompts(checkpoint: Checkpoint) -> np.ndarray:
    """int32 [2, PROMPT_TOKENS]: a text, and tokens from all over the vocabulary."""
    processor = _processor(checkpoint)
    text = [processor.bos_id(), *processor.encode(PROMPT)]
    repeated = np.resize(text, PROMPT_TOKENS)
    everywhere = np.random.default_rng(0).integers(0, checkpoint.cfg.vocab_size, PROMPT_TOKENS)
    return np.stack([repeated, everywhere]).astype(np.int32)


def _processor(checkpoint: Checkpoint):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=checkpoint.tokenizer)


def wrong_tensors(checkpoint: Checkpoint, files: Files, type: str) -> list[str]:
    """What is said of each tensor that is further from the checkpoint's than its type rounds.

    Raises Unreadable for one that is missing or of another shape.
    """
    cfg = checkpoint.cfg
    wrong = []
    for place in places(cfg):
        roles = [ROLE_OF[place.name]]
        if place.name == EMBEDDING and cfg.tie_embeddings:
            roles.append("head")
        matrix = checkpoint.matrix(place)
        for role in roles:
            tensor = files.tensor(role, place.layer or 0)
            c = files.conventions
            pairs = (role == "q" and c.q_pairs) or (role == "k" and c.k_pairs)
            wrong += _difference(matrix, tensor, type, cfg.head_dim if pairs else None)
    return wrong


def _difference(matrix: np.ndarray, tensor: Tensor, type: str, pairs_of: int | None) -> list[str]:
    """pairs_of: the head_dim, if the tensor's rotary partners are neighbours."""
    if tensor.shape != matrix.shape:
        raise Unreadable(f"{tensor.name}: has shape {tensor.shape}, expected {matrix.shape}")
    order = np.arange(len(matrix))
    if pairs_of:
        order = order.reshape(-1, 2, pairs_of // 2).swapaxes(1, 2).ravel()
    differences, excess = [], []
    for rows, values in tensor.blocks():
        expected = matrix[order[rows]]
        for where, x in (("the checkpoint", expected), ("the files", values)):
            if not np.isfinite(x).all():
                return [f"{tensor.name} has values in {where} that are not finite"]
        difference = np.abs(values - expected)
        differences.append(difference.max())
        excess.append((difference - rounding(expected, type)).max())
    if max(excess) <= 0:
        return []
    return [f"{tensor.name} differs by up to {max(differences):.2g}, more than {type} rounds"]


def rounding(x: np.ndarray, type: str) -> np.ndarray | float:
    """The most that values of a type, or of a finer one, are from the fp32 values x."""
    if type == "f32":
        return 0.0
    if type in TYPES:
        info = jnp.finfo(TYPES[type])
        return np.abs(x) * float(info.eps / 2) + float(info.smallest_subnormal)
    if x.ndim == 1 or x.shape[1] % 32:  # GGUF keeps these in f32
        return 0.0
    blocks = np.abs(x).reshape(len(x), -1, 32).max(-1)
    # A scale is 1/127 or 1/8 of a block's largest value, rounded to f16, and multiplies 127 or 8 at
    # the most. q4_0 has no +8, and gives +7 in its place.
    largest, scales = (127, 0.5) if type == "q8_0" else (8, 1.0)
    bound = blocks / largest * (scales + largest * 2.0**-11) + largest * 2.0**-25
    return np.repeat(bound, 32, axis=-1)


def wrong_tokens(checkpoint: Checkpoint, encode: Callable, texts: Iterable[str]) -> list[str]:
    """What is said of each text of which the files' tokenizer makes other tokens."""
    processor = _processor(checkpoint)
    return [
        f"the files' tokenizer makes other tokens of {text!r}"
        for text in texts
        if encode(text) != [processor.bos_id(), *processor.encode(text)]
    ]


def logits_of_checkpoint(
    checkpoint: Checkpoint,
    tokens_BT: np.ndarray,
    rounded: Callable[[np.ndarray, Place], np.ndarray],
) -> np.ndarray:
    """fp32 [B, T, V] by the training model's own blocks, under jax.set_mesh of one device.

    rounded: what is to be computed with in place of a matrix, or of some rows of one.
    """
    cfg = dataclasses.replace(checkpoint.cfg, compute_dtype="float32")

    def parameter(name: str, layer: int | None = None) -> jax.Array:
        place = Place(name, layer)
        return jnp.asarray(from_matrix(rounded(checkpoint.matrix(place), place), name, cfg))

    embedding = Place(EMBEDDING, None)
    x_BTD = jnp.asarray(rounded(checkpoint.matrix(embedding)[tokens_BT.ravel()], embedding))
    x_BTD = x_BTD.reshape(*tokens_BT.shape, -1)
    block = jax.eval_shape(lambda: Block(cfg, nnx.Rngs(0)))
    names = ["layers/" + name for name in by_name(block)]
    for layer in range(cfg.num_layers):
        leaves = [parameter(name, layer) for name in names]
        x_BTD = _run_block(cfg, jax.tree.unflatten(jax.tree.structure(block), leaves), x_BTD)
        jax.block_until_ready(x_BTD)
        del leaves
    norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
    norm.scale_D[...] = parameter("final_norm/scale_D")
    x_BTD = norm(x_BTD)
    head = embedding if cfg.tie_embeddings else Place(HEAD, None)
    matrix = checkpoint.matrix(head)
    logits_BTV = np.empty((*tokens_BT.shape, cfg.vocab_size), np.float32)
    for start in range(0, cfg.vocab_size, ROWS):
        rows = slice(start, start + ROWS)
        logits_BTV[..., rows] = _logits(x_BTD, jnp.asarray(rounded(matrix[rows], head)))
    return logits_BTV


_logits = jax.jit(partial(einsum, "BTD,VD->BTV"))


@partial(jax.jit, static_argnums=0)
def _run_block(cfg: ModelConfig, block: Block, x_BTD: jax.Array) -> jax.Array:
    segments_BT = jnp.ones(x_BTD.shape[:2], jnp.int32)
    positions_BT = jnp.zeros_like(segments_BT) + jnp.arange(x_BTD.shape[1])[None]
    rotation = rotation_of(positions_BT, cfg.head_dim, cfg.rope_theta)

    def attend(q_BTGRK, k_BTGK, v_BTGK):
        return attend_within_documents(Execution(), q_BTGRK, k_BTGK, v_BTGK, segments_BT)

    return block(x_BTD, rotation, attend)


def logits_of_files(
    files: Files,
    cfg: ModelConfig,
    conventions: Conventions,
    tokens_BT: np.ndarray,
    dtype: type[np.floating] = np.float64,
) -> np.ndarray:
    """fp32 [B, T, V] in NumPy, of files that have the shapes of cfg. dtype: of the arithmetic."""
    c = conventions

    def norm(x: np.ndarray, role: str, layer: int = 0) -> np.ndarray:
        scale = files.tensor(role, layer).whole()
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_eps) * scale

    def linear(x: np.ndarray, role: str, layer: int = 0, out: type = dtype) -> np.ndarray:
        if c.swapped:
            role = {"gate": "up", "up": "gate"}.get(role, role)
        tensor = files.tensor(role, layer)
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


def compare(logits: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """How far logits are from reference, both [B, T, V]; None for what is not finite."""
    differences, kl = [], []
    for x_TV, reference_TV in zip(logits, reference, strict=True):
        for x, y in zip(x_TV.astype(float), reference_TV.astype(float), strict=True):
            differences.append(np.abs(x - y).max())
            p, q = y - _logsumexp(y), x - _logsumexp(x)
            kl.append(np.sum(np.exp(p) * (p - q)))
    max_abs = np.max(differences)
    figures = {
        "max_abs": float(max_abs),
        "max_rel": float(max_abs / reference.std()),  # of the standard deviation
        "kl": float(np.mean(kl)),  # nats a token
        "greedy_agreement": float(np.mean(logits.argmax(-1) == reference.argmax(-1))),
    }
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def within(figures: dict[str, float | None], tolerance: float) -> bool:
    return figures["max_rel"] is not None and figures["max_rel"] <= tolerance


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
            logits = logits_of_files(files, cfg, changed, tokens_BT)
            if within(compare(logits, reference), tolerance):
                found.append(cause)
    return found
