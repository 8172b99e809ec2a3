"""Unigram and bigram models of the same tokens: what a trained model has to beat."""

import numpy as np

from llama_jax.config import DataConfig
from llama_jax.data.batches import IGNORE, Windows

TOKENS_PER_SOURCE = 2**22  # as many of a source's training tokens are counted, at the most
PRIOR_STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)


def ngram_losses(data: DataConfig, eval_rows: int) -> dict[str, tuple[float, float]]:
    """Return source -> (unigram, bigram) mean loss in nats a token of eval_rows held-out rows.

    Counts are of the training tokens, weighted as the mixture draws them. The bigram model is
    p(b|a) = (count(ab) + k p(b)) / (count(a) + k); of PRIOR_STRENGTHS it is given, on the held-out
    text itself, the k that suits it best.
    """
    train = {source: _pairs(data, source, "train", TOKENS_PER_SOURCE) for source, _ in data.mixture}
    total = sum(len(pairs) for pairs in train.values())
    weights = [
        np.full(len(train[source]), rate * total / len(train[source]))
        for source, rate in data.mixture
    ]
    pairs, weight = np.concatenate(list(train.values())), np.concatenate(weights)
    vocab_size = int(pairs.max()) + 1
    held_out = {
        source: _pairs(data, source, "validation", eval_rows * data.seq_len)
        for source, _ in data.mixture
    }
    vocab_size = max(vocab_size, *(int(p.max()) + 1 for p in held_out.values()))

    first_counts = np.bincount(pairs[:, 0], weight, vocab_size)
    unigram = np.bincount(pairs[:, 1], weight, vocab_size) + 1  # add one: none is impossible
    unigram /= unigram.sum()
    ids, inverse = np.unique(pairs[:, 0] * vocab_size + pairs[:, 1], return_inverse=True)
    pair_counts = np.bincount(inverse, weight)

    def bigram_loss(pairs: np.ndarray, strength: float) -> float:
        a, b = pairs.T
        found = np.minimum(np.searchsorted(ids, a * vocab_size + b), len(ids) - 1)
        count = np.where(ids[found] == a * vocab_size + b, pair_counts[found], 0)
        return float(-np.log((count + strength * unigram[b]) / (first_counts[a] + strength)).mean())

    rates = dict(data.mixture)
    strength = min(
        PRIOR_STRENGTHS,
        key=lambda k: sum(rates[source] * bigram_loss(p, k) for source, p in held_out.items()),
    )
    return {
        source: (float(-np.log(unigram[p[:, 1]]).mean()), bigram_loss(p, strength))
        for source, p in held_out.items()
    }


def _pairs(data: DataConfig, source: str, split: str, max_tokens: int) -> np.ndarray:
    """Return int64 [n, 2]: each token that counts as a target, behind the one before it."""
    windows = Windows(data, source, split)
    rows = [windows[k] for k in range(min(len(windows), -(-max_tokens // data.seq_len)))]
    tokens, targets = (np.concatenate([row[key] for row in rows]) for key in ("tokens", "targets"))
    return np.stack([tokens, targets], axis=1)[targets != IGNORE].astype(np.int64)
