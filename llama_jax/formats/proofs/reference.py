"""Logits that exported files are compared with: by the training model itself, of any Weights."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llama_jax.attention import attend_within_documents
from llama_jax.collectives import einsum
from llama_jax.config import Execution, ModelConfig
from llama_jax.formats.parameters import NAMES, Parameter, from_matrix
from llama_jax.formats.weights import Weights
from llama_jax.model import Block, RMSNorm, by_name, rotation_of

PROMPT = (
    "The quick brown fox jumps over the lazy dog.  In 1889, def f(x):\n    return x ** 2; "
    "une phrase en français, ein Satz auf Deutsch."
)
PROMPT_TOKENS = 64
ROWS = 4096  # of the head that are multiplied at a time


def prompts(weights: Weights) -> np.ndarray:
    """Return int32 [2, PROMPT_TOKENS]: a text, and tokens from all over the vocabulary."""
    text = weights.vocabulary.prompt(PROMPT)
    repeated = np.resize(text, PROMPT_TOKENS)
    everywhere = np.random.default_rng(0).integers(0, weights.cfg.vocab_size, PROMPT_TOKENS)
    return np.stack([repeated, everywhere]).astype(np.int32)


def logits_of_weights(
    weights: Weights,
    tokens_BT: np.ndarray,
    rounded: Callable[[np.ndarray, Parameter], np.ndarray],
) -> np.ndarray:
    """Return fp32 [B, T, V] by the training model's own blocks, under jax.set_mesh of one device.

    rounded: what is to be computed with in place of a matrix, or of some rows of one.
    """
    cfg = dataclasses.replace(weights.cfg, compute_dtype="float32")

    def array(parameter: Parameter) -> jax.Array:
        matrix = rounded(weights.matrix(parameter), parameter)
        return jnp.asarray(from_matrix(matrix, parameter.role, cfg))

    embedding = Parameter("embedding")
    x_BTD = jnp.asarray(rounded(weights.matrix(embedding)[tokens_BT.ravel()], embedding))
    x_BTD = x_BTD.reshape(*tokens_BT.shape, -1)
    block = jax.eval_shape(lambda: Block(cfg, nnx.Rngs(0)))
    role_of = {name: role for role, name in NAMES.items()}
    roles = [role_of["layers/" + name] for name in by_name(block)]
    for layer in range(cfg.num_layers):
        leaves = [array(Parameter(role, layer)) for role in roles]
        x_BTD = _run_block(cfg, jax.tree.unflatten(jax.tree.structure(block), leaves), x_BTD)
        jax.block_until_ready(x_BTD)
        del leaves
    norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
    norm.scale_D[...] = array(Parameter("final_norm"))
    x_BTD = norm(x_BTD)
    head = embedding if cfg.tie_embeddings else Parameter("head")
    matrix = weights.matrix(head)
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
