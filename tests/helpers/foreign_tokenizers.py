"""SentencePiece models that are trained with other settings than LLaMA's."""

import io
from typing import Any

import sentencepiece

from llama_jax.data import tokenizer_training

# What is not of LLaMA's kind -> the settings that make it so.
FOREIGN = {
    "model_type": {"model_type": "unigram", "hard_vocab_limit": False},
    "byte_fallback": {"byte_fallback": False, "vocab_size": 40},
    "precompiled_charsmap": {"normalization_rule_name": "nmt_nfkc"},
    "add_dummy_prefix": {"add_dummy_prefix": False},
    "treat_whitespace_as_suffix": {"treat_whitespace_as_suffix": True},
    "user_defined_symbols": {"user_defined_symbols": ["<x>"]},
}


def foreign_model(**settings) -> bytes:
    """Return a small model."""
    changed: dict[str, Any] = tokenizer_training.SETTINGS | {"vocab_size": 300} | settings
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over a lazy dog"]),
        model_writer=model,
        minloglevel=2,
        **changed,
    )
    return model.getvalue()
