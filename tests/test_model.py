"""The decoder against transformers' LLaMA, real trained weights, and its own invariants."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sentencepiece import SentencePieceProcessor

from llama_jax import config
from llama_jax.config import MeshConfig, ModelConfig
from llama_jax.flops import num_params
from llama_jax.generation.decoder import to_decode_layout
from llama_jax.generation.sampling import Sampling, generate, nucleus
from llama_jax.model import Llama, RMSNorm
from llama_jax.sharding import make_mesh

WEIGHTS = Path(__file__).parents[2] / "shared/data/weights"
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


def as_transformers(model: Llama, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """The same weights under transformers' names, and its configuration."""
    D, layers = cfg.embed_dim, model.layers
    state = {
        "config": json.dumps(
            {
                "vocab_size": cfg.vocab_size,
                "hidden_size": cfg.embed_dim,
                "num_hidden_layers": cfg.num_layers,
                "num_attention_heads": cfg.num_heads,
                "num_key_value_heads": cfg.kv_heads,
                "intermediate_size": cfg.mlp_dim,
                "rms_norm_eps": cfg.norm_eps,
                "tie_word_embeddings": cfg.tie_embeddings,
            }
        ),
        "model.embed_tokens.weight": model.embed_VD,
        "model.norm.weight": model.final_norm.scale_D,
        "lm_head.weight": model.embed_VD if cfg.tie_embeddings else model.lm_head_DV[...].T,
    }
    for i in range(cfg.num_layers):
        state |= {
            f"model.layers.{i}.{name}": value
            for name, value in {
                "input_layernorm.weight": layers.attn_norm.scale_D[i],
                "post_attention_layernorm.weight": layers.mlp_norm.scale_D[i],
                "self_attn.q_proj.weight": layers.attn.wq_DGRK[i].reshape(D, -1).T,
                "self_attn.k_proj.weight": layers.attn.wk_DGK[i].reshape(D, -1).T,
                "self_attn.v_proj.weight": layers.attn.wv_DGK[i].reshape(D, -1).T,
                "self_attn.o_proj.weight": layers.attn.wo_GRKD[i].reshape(-1, D).T,
                "mlp.gate_proj.weight": layers.mlp.w_gate_DF[i].T,
                "mlp.up_proj.weight": layers.mlp.w_up_DF[i].T,
                "mlp.down_proj.weight": layers.mlp.w_down_FD[i].T,
            }.items()
        }
    return {name: np.asarray(value) for name, value in state.items()}


REFERENCES = {
    f"{name}{'_tied' * tied}": dataclasses.replace(cfg, tie_embeddings=tied)
    for name, cfg in (("mha", MHA), ("gqa", GQA))
    for tied in (False, True)
}


NUCLEI = [(k, p) for k in (1, 7, 200) for p in (0.01, 0.5, 0.95, 1.0)]  # top_k, top_p
NUCLEI_LOGITS = 2 * np.random.default_rng(0).normal(size=(50, 200)).astype(np.float32)


@pytest.fixture(scope="module")
def transformers(tmp_path_factory) -> Path:
    """A directory with logits and continuations of each of REFERENCES, a norm in bf16, and what
    NUCLEI leave of logits."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    directory = tmp_path_factory.mktemp("transformers")
    tokens = np.random.default_rng(0).integers(0, 96, (2, 33))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for name, cfg in REFERENCES.items():
            weights = as_transformers(Llama(cfg, nnx.Rngs(1)), cfg)
            np.savez(directory / name, tokens=tokens, **weights)
    (directory / "norm").mkdir()
    x = np.random.default_rng(0).normal(size=(1, 8, 64)).astype(np.float32)
    np.save(directory / "norm/x", x)
    np.save(directory / "norm/scale", np.linspace(0.5, 3, 64, dtype=np.float32))
    (directory / "nuclei").mkdir()
    np.save(directory / "nuclei/logits", NUCLEI_LOGITS)
    np.save(directory / "nuclei/rules", NUCLEI)
    script = Path(__file__).with_name("torch_reference.py")
    subprocess.run([sys.executable, script, directory], check=True)
    return directory


@pytest.mark.parametrize("name", REFERENCES)
def test_logits_equal_transformers(one_device, transformers, name):
    expected = np.load(transformers / f"{name}.logits.npy")
    tokens = np.load(transformers / f"{name}.npz")["tokens"].astype(np.int32)
    got = logits_of(Llama(REFERENCES[name], nnx.Rngs(1)), tokens)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_bf16_norm_is_rounded_before_it_is_scaled(one_device, transformers):
    x, scale, expected = (np.load(transformers / f"norm/{n}.npy") for n in ("x", "scale", "y"))
    norm = RMSNorm(64, 1e-6)
    norm.scale_D = nnx.Param(jnp.asarray(scale, jnp.bfloat16))
    got = np.asarray(norm(jnp.asarray(x, jnp.bfloat16)), np.float32)
    assert np.array_equal(got, expected)


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


def continue_greedily(model: Llama, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    sampling = Sampling(temperature=0.0)
    (*_, continuations) = generate(to_decode_layout(model), prompts, max_tokens, sampling)
    return continuations


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


@pytest.mark.parametrize("name", REFERENCES)
def test_greedy_continuations_are_those_of_transformers(one_device, transformers, name):
    arrays = np.load(transformers / f"{name}.npz")
    expected = np.load(transformers / f"{name}.continued.npy").tolist()
    model = Llama(REFERENCES[name], nnx.Rngs(1))
    prompts = [arrays["tokens"][0, :5].tolist(), arrays["tokens"][1, :20].tolist()]
    assert continue_greedily(model, prompts, 24) == expected


def test_the_nucleus_is_that_of_transformers(transformers):
    for (k, p), expected in zip(NUCLEI, np.load(transformers / "nuclei/left.npy"), strict=True):
        left = nucleus(Sampling(temperature=1.0, top_k=k, top_p=p), jnp.asarray(NUCLEI_LOGITS))
        np.testing.assert_array_equal(left, expected)


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
