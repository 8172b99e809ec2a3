"""Decoding over a cache against the whole pass, on one device and on a mesh; and in eight bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_jax.config import LLAMA_65B, MeshConfig, ModelConfig
from llama_jax.evaluation.decoder_perplexity import perplexity
from llama_jax.generation.decoder import mesh_for, to_decode_layout
from llama_jax.generation.int8 import quantize
from llama_jax.generation.kv_cache import new_cache
from llama_jax.generation.sampling import prefill
from llama_jax.model import Llama
from llama_jax.sharding import activation_spec, make_mesh

GQA = ModelConfig(
    num_layers=2,
    embed_dim=64,
    num_heads=8,
    num_kv_heads=2,
    vocab_size=96,
    compute_dtype="float32",
    init_std=0.3,
)
TOKENS = np.random.default_rng(0).integers(0, 96, (4, 33)).astype(np.int32)


FIRST = np.array([0, 3, 0, 11], np.int32)  # the place where each row of TOKENS begins


def whole_pass(model: Llama, first_B) -> np.ndarray:
    positions_BT = np.arange(TOKENS.shape[1], dtype=np.int32)[None] - first_B[:, None]
    segments_BT = (positions_BT >= 0).astype(np.int32)
    return np.asarray(jax.jit(Llama.__call__)(model, TOKENS, segments_BT, positions_BT))


@pytest.mark.parametrize(
    "mesh, tied",
    [(MeshConfig(), False), (MeshConfig(replica=2, fsdp=2, tensor=2), True)],
    ids=("one device", "eight, tied"),
)
def test_decoding_over_a_cache_equals_the_whole_pass(mesh, tied):
    """In blocks of several tokens and of one, for rows that begin at different places."""
    cfg = dataclasses.replace(GQA, tie_embeddings=tied)
    devices = jax.devices()[: mesh.replica * mesh.fsdp * mesh.tensor]
    with jax.set_mesh(make_mesh(mesh, devices)):
        model = jax.jit(lambda: Llama(cfg, nnx.Rngs(0)))()
        rows_split = jax.NamedSharding(jax.sharding.get_mesh(), activation_spec("B"))
        expected_BTV = whole_pass(model, FIRST)
        decoder, start = to_decode_layout(model), 0
        caches = [new_cache(cfg, 4, 40) for _ in decoder.layers]
        for length in (20, 5, 5, 1, 1):
            block = TOKENS[:, start : start + length], FIRST
            block_BT, first_B = jax.device_put(block, rows_split)
            logits_BV, caches = prefill(decoder, block_BT, first_B, start, caches)
            start += length
            np.testing.assert_allclose(logits_BV, expected_BTV[:, start - 1], atol=1e-4)


def test_in_bf16_it_is_near_to_fp32(one_device):
    model = Llama(GQA, nnx.Rngs(0))
    ours = to_decode_layout(with_fields(model, compute_dtype="bfloat16"))
    assert perplexity(ours, TOKENS) == pytest.approx(
        perplexity(to_decode_layout(model), TOKENS), rel=0.03
    )


def with_fields(model: Llama, **fields) -> Llama:
    changed = nnx.clone(model)
    changed.cfg = dataclasses.replace(model.cfg, **fields)
    return changed


def test_perplexity_is_that_of_the_whole_pass(one_device):
    model = Llama(GQA, nnx.Rngs(0))
    logits = whole_pass(model, np.zeros(4, np.int32))[:, :-1].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_next = np.take_along_axis(log_probs, TOKENS[:, 1:, None], axis=-1)
    assert perplexity(to_decode_layout(model), TOKENS) == pytest.approx(
        np.exp(-of_next.mean()), rel=1e-5
    )


def test_int8_rounds_to_the_nearest_of_255_steps_of_each_output():
    w = np.random.default_rng(0).normal(size=(6, 4, 32)).astype(np.float32)
    w[2, 1] = 0
    q = quantize(jnp.asarray(w))
    assert q.values.dtype == jnp.int8 and q.scale.shape == (6, 4, 1)
    step = np.abs(w).max(axis=-1, keepdims=True) / 127
    assert (np.abs(np.asarray(q.values * q.scale) - w) <= step / 2 * 1.001).all()


@pytest.mark.parametrize("mesh", (MeshConfig(), MeshConfig(fsdp=2, tensor=2)), ids=str)
def test_int8_decodes_what_the_rounded_matrices_say(mesh):
    """Against a model whose parameters were rounded by numpy, and unlike the exact one."""
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.fsdp * mesh.tensor])):
        model = jax.jit(lambda: Llama(GQA, nnx.Rngs(0)))()
        in_int8 = perplexity(to_decode_layout(model, int8=True), TOKENS)
        exact = perplexity(to_decode_layout(model), TOKENS)
        rounded = nnx.clone(model)
        for part, names in (
            (rounded.layers.attn, ("wq_DGRK", "wk_DGK", "wv_DGK", "wo_GRKD")),
            (rounded.layers.mlp, ("w_gate_DF", "w_up_DF", "w_down_FD")),
            (rounded, ("lm_head_DV",)),
        ):
            for name in names:
                param = getattr(part, name)
                w = np.asarray(param[...])
                dims = ("L" if part is not rounded else "") + name.rpartition("_")[2]
                summed = "D" if dims.lstrip("L")[0] == "D" else dims.strip("LD")
                axes = tuple(dims.index(letter) for letter in summed)
                step = np.abs(w).max(axis=axes, keepdims=True) / 127
                param[...] = jax.device_put(np.round(w / step) * step, param[...].sharding)
        assert in_int8 == pytest.approx(perplexity(to_decode_layout(rounded), TOKENS), rel=1e-4)
        assert abs(in_int8 / exact - 1) > 1e-3


def test_the_devices_at_hand_are_used_as_far_as_the_shape_allows():
    assert mesh_for(LLAMA_65B, 1) == MeshConfig()
    assert mesh_for(LLAMA_65B, 8) == MeshConfig(tensor=8)
    assert mesh_for(LLAMA_65B, 128) == MeshConfig(tensor=64, fsdp=2)
    assert mesh_for(GQA, 8) == MeshConfig(tensor=2, fsdp=4)
    assert mesh_for(GQA, 6) == MeshConfig(tensor=2, fsdp=1)
