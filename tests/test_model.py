"""The decoder: published sizes, real trained weights, and its own invariants."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sentencepiece import SentencePieceProcessor

from helpers.models import GQA, continue_greedily, logits_of
from helpers.paths import SHARED
from llama_jax import config
from llama_jax.config import ModelConfig
from llama_jax.flops import num_params
from llama_jax.model import Llama

WEIGHTS = SHARED / "weights"


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 96, (2, 33)).astype(np.int32)


@pytest.fixture
def model(one_device):
    return Llama(GQA, nnx.Rngs(0))


@pytest.mark.parametrize(
    "cfg, expected",
    [
        (config.LLAMA_7B, 6_738_415_616),
        (config.LLAMA_13B, 13_015_864_320),
        (config.LLAMA_33B, 32_528_943_616),
        (config.LLAMA_65B, 65_285_660_672),
        (dataclasses.replace(config.LLAMA_1B, num_kv_heads=4), 1_100_048_384),  # TinyLlama
    ],
)
def test_parameter_counts_are_the_published_ones(one_device, cfg, expected):
    model = jax.eval_shape(lambda: Llama(cfg, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == expected
    assert num_params(cfg) == expected
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))


def read_llama2c(path: Path) -> tuple[Llama, ModelConfig]:
    """A llama2.c version 0 file: seven int32, then float32 matrices [layers, out, in], Meta's
    interleaved rotary pairs."""
    dim, hidden, layers, heads, kv_heads, vocab, _ = np.fromfile(path, np.int32, 7)
    cfg = ModelConfig(
        num_layers=int(layers),
        embed_dim=int(dim),
        num_heads=int(heads),
        num_kv_heads=int(kv_heads),
        mlp_dim_override=int(hidden),
        vocab_size=int(vocab),
        norm_eps=1e-5,
        tie_embeddings=True,
        compute_dtype="float32",
    )
    model = Llama(cfg, nnx.Rngs(0))
    rest = np.fromfile(path, np.float32, offset=28)

    def take(*shape):
        nonlocal rest
        size = int(np.prod(shape))
        taken, rest = rest[:size].reshape(shape), rest[size:]
        return taken

    L, D, F, H, G, K = layers, dim, hidden, heads, kv_heads, dim // heads

    def halves(w):  # interleaved pairs -> Hugging Face's halves
        return w.reshape(*w.shape[:-2], K // 2, 2, D).swapaxes(-3, -2).reshape(w.shape)

    embed, attn_norm = take(vocab, D), take(L, D)
    wq, wk = halves(take(L, H, K, D)), halves(take(L, G, K, D))
    wv, wo, mlp_norm = take(L, G, K, D), take(L, D, H, K), take(L, D)
    gate, down, up, final = take(L, F, D), take(L, D, F), take(L, F, D), take(D)
    attn, mlp = model.layers.attn, model.layers.mlp
    for param, value in [
        (model.embed_VD, embed),
        (model.final_norm.scale_D, final),
        (model.layers.attn_norm.scale_D, attn_norm),
        (model.layers.mlp_norm.scale_D, mlp_norm),
        (attn.wq_DGRK, wq.reshape(L, G, H // G, K, D).transpose(0, 4, 1, 2, 3)),
        (attn.wk_DGK, wk.transpose(0, 3, 1, 2)),
        (attn.wv_DGK, wv.transpose(0, 3, 1, 2)),
        (attn.wo_GRKD, wo.transpose(0, 2, 3, 1).reshape(L, G, H // G, K, D)),
        (mlp.w_gate_DF, gate.swapaxes(1, 2)),
        (mlp.w_up_DF, up.swapaxes(1, 2)),
        (mlp.w_down_FD, down.swapaxes(1, 2)),
    ]:
        assert param[...].shape == value.shape
        param[...] = jnp.asarray(value)
    return model, cfg


@pytest.fixture
def stories(one_device):
    if not (WEIGHTS / "stories260K.bin").exists():
        pytest.skip("the weights of stories260K are not here (../shared/data/weights)")
    return read_llama2c(WEIGHTS / "stories260K.bin")[0]


def test_trained_weights_give_their_published_logits(stories):
    reference = np.load(WEIGHTS / "stories260K_reference.npz")
    expected = reference["logits_first128"]
    ids = reference["greedy_ids"][: len(expected)].astype(np.int32)
    got = logits_of(stories, ids[None])[0]
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_trained_weights_write_their_published_text(stories):
    reference = np.load(WEIGHTS / "stories260K_reference.npz")["greedy_ids"].tolist()
    # Prompts of different lengths in one batch: each goes on as it does alone.
    prompts = [reference[:1], reference[:17]]
    long, longer = continue_greedily(stories, prompts, 256)
    assert long == reference[1:257]
    assert longer[: len(reference) - 17] == reference[17:]
    text = SentencePieceProcessor(model_file=str(WEIGHTS / "tok512.model")).decode(long)
    expected = (WEIGHTS / "stories260K_greedy_expected.txt").read_text()
    assert text.strip() == expected.strip()


def test_no_token_sees_a_later_one(model):
    """By gradient: the logits at t do not depend on the embeddings of later tokens."""
    tokens = np.arange(9, dtype=np.int32)[None]  # all different: a row of the table is one place
    segments, positions = np.ones_like(tokens), tokens

    def at_t(embed_VD, t):
        changed = nnx.clone(model)
        changed.embed_VD[...] = embed_VD
        return changed(tokens, segments, positions)[:, t].sum()

    for t in (0, 4):
        grad = np.asarray(jax.jit(jax.grad(at_t), static_argnums=1)(model.embed_VD[...], t))
        assert (grad[t + 1 : 9] == 0).all()
        assert (np.abs(grad[: t + 1]).max(axis=1) > 0).all()


def test_packed_documents_are_as_if_alone(model, tokens):
    a, b = tokens[:1, :12], tokens[:1, 12:33]
    segments = np.repeat([1, 2], [12, 21])[None].astype(np.int32)
    positions = np.concatenate([np.arange(12), np.arange(21)])[None].astype(np.int32)
    packed = logits_of(model, tokens[:1, :33], segments, positions)
    alone = np.concatenate([logits_of(model, a), logits_of(model, b)], axis=1)
    np.testing.assert_allclose(packed, alone, atol=1e-4)


def test_depth_does_not_change_the_size_of_the_program(one_device, tokens):
    def lines(num_layers):
        cfg = dataclasses.replace(GQA, num_layers=num_layers)
        model = jax.eval_shape(lambda: Llama(cfg, nnx.Rngs(0)))
        abstract = jax.ShapeDtypeStruct(tokens.shape, jnp.int32)
        return str(jax.make_jaxpr(Llama.__call__)(model, abstract, abstract, abstract)).count("\n")

    assert lines(2) == lines(32)
