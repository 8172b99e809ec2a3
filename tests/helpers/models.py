"""Small models, and what they compute."""

import dataclasses

import jax
import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.generation.decoder import to_decode_layout
from llama_jax.generation.sampling import Sampling, generate
from llama_jax.model import Llama

MHA = ModelConfig(
    num_layers=3, embed_dim=64, num_heads=4, vocab_size=96, compute_dtype="float32", init_std=0.3
)
GQA = dataclasses.replace(MHA, num_kv_heads=2, norm_eps=1e-5, mlp_dim_override=100)


def logits_of(model: Llama, tokens_BT: np.ndarray, segments_BT=None, positions_BT=None):
    B, T = tokens_BT.shape
    segments = np.ones((B, T), np.int32) if segments_BT is None else segments_BT
    positions = (
        np.tile(np.arange(T, dtype=np.int32), (B, 1)) if positions_BT is None else positions_BT
    )
    return np.asarray(jax.jit(Llama.__call__)(model, tokens_BT, segments, positions))


def continue_greedily(model: Llama, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    sampling = Sampling(temperature=0.0)
    (*_, continuations) = generate(to_decode_layout(model), prompts, max_tokens, sampling)
    return continuations
