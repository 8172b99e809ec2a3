"""How exported files differ from what they were made of: tensors, tokens, logits, and why."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.data.tokenizer import MUST_SURVIVE
from llama_jax.formats.parameters import DTYPES, parameters
from llama_jax.formats.proofs.files import Files, Tensor, Unreadable
from llama_jax.formats.proofs.forward import logits_of_files
from llama_jax.formats.vocabulary import CONTROL, UNKNOWN, UNUSED
from llama_jax.formats.weights import Weights

Figures = dict[str, float | None]  # of logits that are compared; None for what is not finite
SPECIAL = (UNKNOWN, CONTROL, UNUSED)  # pieces that programs write in ways of their own


def wrong_tensors(source: Weights, files: Files, dtype: str) -> list[str]:
    """Return what is said of each tensor that differs by more than its type rounds.

    Raise Unreadable for one that is missing or of another shape.
    """
    cfg = source.cfg
    wrong = []
    for parameter in parameters(cfg):
        roles = [parameter.role]
        if parameter.role == "embedding" and cfg.tie_embeddings:
            roles.append("head")
        matrix = source.matrix(parameter)
        for role in roles:
            tensor = files.tensor(role, parameter.layer or 0)
            c = files.conventions
            pairs = (role == "q" and c.q_pairs) or (role == "k" and c.k_pairs)
            wrong += _difference(matrix, tensor, dtype, cfg.head_dim if pairs else None)
    return wrong


def _difference(matrix: np.ndarray, tensor: Tensor, dtype: str, pairs_of: int | None) -> list[str]:
    """Return what is said of one tensor, if anything.

    pairs_of: the head_dim, if the tensor's rotary partners are neighbours.
    """
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
        excess.append((difference - rounding(expected, dtype)).max())
    if max(excess) <= 0:
        return []
    return [f"{tensor.name} differs by up to {max(differences):.2g}, more than {dtype} rounds"]


def rounding(x: np.ndarray, dtype: str) -> np.ndarray | float:
    """Return the most that values of a type, or of a finer one, are from the fp32 values x."""
    if dtype == "f32":
        return 0.0
    if dtype in DTYPES:
        info = jnp.finfo(DTYPES[dtype])
        return np.abs(x) * float(info.eps / 2) + float(info.smallest_subnormal)
    if x.ndim == 1 or x.shape[1] % 32:  # GGUF keeps these in f32
        return 0.0
    blocks = x.reshape(len(x), -1, 32)
    # A scale is 1/127 or 1/8 of a block's largest value, rounded to f16, and multiplies 127 or 8 at
    # the most.
    largest = 127 if dtype == "q8_0" else 8
    top = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    step = np.abs(top) / largest
    bound = np.broadcast_to(step / 2, blocks.shape)
    if dtype == "q4_0":  # has the largest value at -8 and no +8, and gives +7 in its place
        bound = np.maximum(bound, -blocks * np.sign(top) - 7 * step)
    return (bound + largest * (step * 2.0**-11 + 2.0**-25)).reshape(x.shape)


def wrong_tokens(source: Weights, files: Files, texts: Iterable[str]) -> list[str]:
    """Return what is said of each text of which the files' tokenizer makes other tokens, and of
    the first token of which it makes another text."""
    ours, parsed = source.vocabulary, source.sentencepiece
    wrong = [
        f"the files' tokenizer makes other tokens of {text!r}"
        for text in texts
        if files.encode(text) != [*ours.before, *ours.encode(text)]
    ]
    special = (
        {i for i, piece in enumerate(parsed.pieces) if piece.type in SPECIAL} if parsed else {}
    )
    head = ours.encode("a")  # or SentencePiece keeps a space that others take for its own
    ids_of = ([*head, i] for i in range(ours.vocab_size) if i not in special)
    for ids in (*ids_of, *map(ours.encode, MUST_SURVIVE)):
        if files.decode(ids) != ours.decode(ids):
            return [*wrong, f"the files' tokenizer makes another text of the tokens {ids}"]
    return wrong


def compare(logits: np.ndarray, reference: np.ndarray) -> Figures:
    """Return how far logits are from reference, both [B, T, V]; None for what is not finite."""
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


def within(figures: Figures, tolerance: float) -> bool:
    return figures["max_rel"] is not None and figures["max_rel"] <= tolerance


def describe(figures: Figures) -> str:
    if None in figures.values():
        return "logits are not finite"
    return (
        f"logits differ by {figures['max_rel']:.2g} of their standard deviation at the most "
        f"({figures['max_abs']:.2g}), KL {figures['kl']:.2g}, greedy agreement "
        f"{figures['greedy_agreement']:.1%}"
    )


def accepted(limits: dict[str, float]) -> str:
    """Return the most that some figures may be, for people."""
    return ", ".join(f"{name} {limit:.2g}" for name, limit in limits.items()) + " accepted"


def _logsumexp(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return top + np.log(np.sum(np.exp(x - top), -1, keepdims=True))


def causes(
    files: Files, cfg: ModelConfig, tokens_BT: np.ndarray, reference: np.ndarray, tolerance: float
) -> list[str]:
    """Return the known mistakes that, undone, make the files right: each one tried."""
    c = files.conventions
    q_other, k_other = dict(q_pairs=not c.q_pairs), dict(k_pairs=not c.k_pairs)
    tries: dict[str, dict[str, Any]] = {
        "Q/K permutation: the rows of wq and wk are in the other rotary layout": q_other | k_other,
        "Q/K permutation: the rows of wq are in the other rotary layout": q_other,
        "Q/K permutation: the rows of wk are in the other rotary layout": k_other,
        "gate and up are swapped": dict(swapped=True),
    }
    for role in ("q", "k", "v", "o", "gate", "up", "down"):
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
