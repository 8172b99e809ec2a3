"""The decoder and the nucleus against transformers' own, which computes in its own process."""

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

from helpers.models import GQA, MHA, continue_greedily, logits_of
from helpers.paths import ROOT
from helpers.processes import environment
from llama_jax.config import MeshConfig, ModelConfig
from llama_jax.data.tokenizer import MUST_SURVIVE
from llama_jax.formats import convert
from llama_jax.formats.proofs import client as clients
from llama_jax.generation.sampling import Sampling, nucleus
from llama_jax.model import Llama, RMSNorm
from llama_jax.opened import open_model
from llama_jax.sharding import make_mesh


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
            np.savez(directory / name, tokens=tokens, **weights)  # pyright: ignore[reportArgumentType]
    (directory / "norm").mkdir()
    x = np.random.default_rng(0).normal(size=(1, 8, 64)).astype(np.float32)
    np.save(directory / "norm/x", x)
    np.save(directory / "norm/scale", np.linspace(0.5, 3, 64, dtype=np.float32))
    (directory / "nuclei").mkdir()
    np.save(directory / "nuclei/logits", NUCLEI_LOGITS)
    np.save(directory / "nuclei/rules", NUCLEI)
    script = ROOT / "tests/helpers/torch_reference.py"
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


@pytest.mark.parametrize("kind", ["llama3", "smollm"])
def test_models_with_a_byte_level_tokenizer_are_those_of_transformers(tmp_path, kind):
    """As transformers saved one, and as it loads what we export of it."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    config = {
        **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500_000.0},
        **{"initializer_range": 0.2, "tie_word_embeddings": kind == "smollm"},
    }
    texts = dict.fromkeys(text for text in (*MUST_SURVIVE, "") if "<s>" not in text)
    chat = "<|eot_id|>a <|im_start|>b"
    tokens = np.random.default_rng(0).integers(0, 300, (2, 40))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "texts.json").write_text(json.dumps([*texts, chat]))
    np.save(tmp_path / "tokens.npy", tokens)
    script = ROOT / "tests/helpers/foreign_llama.py"
    subprocess.run([sys.executable, script, kind, tmp_path], env=environment(), check=True)
    logits = np.load(tmp_path / "logits.npy")
    ids = json.loads((tmp_path / "ids.json").read_text())

    model = open_model(tmp_path / "hf")
    for text, expected in zip([*texts, chat], ids, strict=True):
        assert model.encode(text) == (expected or [0]), text  # nothing cannot be continued
    assert model.vocabulary.eos_ids == {"llama3": (1, 3), "smollm": (0,)}[kind]
    assert np.abs(model.logits(tokens.tolist()) - logits).max() < 1e-5 * np.abs(logits).max()

    convert.convert(convert.open_source(tmp_path / "hf"), "hf", tmp_path / "ours", "f32")
    place = tmp_path / "place"
    place.mkdir()
    clients.write_request(place, tmp_path / "ours", tokens, list(texts), bos=kind == "llama3")
    clients.run(sys.executable, "transformers", place)
    reply = clients.read_reply(place)
    assert np.abs(reply.logits_BTV - logits).max() < 1e-5 * np.abs(logits).max()
    assert reply.ids == ids[:-1] and reply.decoded == list(texts)
