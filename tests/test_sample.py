"""Drawing tokens: the nucleus, the seed, and that neither the batch nor the mesh matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_jax.config import MeshConfig, ModelConfig
from llama_jax.model import Llama
from llama_jax.sample import choose, continue_prompts
from llama_jax.sharding import make_mesh

CFG = ModelConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=64,
    compute_dtype="float32",
    init_std=0.3,
)
PROMPTS = [[1, 5, 9], [1], [1, 7, 7, 7, 30]]


def draw(mesh: MeshConfig, prompts=PROMPTS, temperature=0.0, seed=0, cfg=CFG):
    devices = jax.devices()[: mesh.replica * mesh.fsdp * mesh.tensor]
    with jax.set_mesh(make_mesh(mesh, devices)):
        model = jax.jit(lambda: Llama(cfg, nnx.Rngs(3)))()
        return continue_prompts(model, prompts, 12, temperature, 0.9, seed)


@pytest.fixture(scope="module")
def greedy():
    return draw(MeshConfig())


def test_a_continuation_does_not_depend_on_the_batch(greedy):
    for prompt, row in zip(PROMPTS, greedy, strict=True):
        assert row[: len(prompt)] == prompt and len(row) == len(prompt) + 12
        assert draw(MeshConfig(), [prompt]) == [row]


def test_a_continuation_does_not_depend_on_the_mesh(greedy):
    assert draw(MeshConfig(replica=2, fsdp=2, tensor=2)) == greedy


def test_greedy_is_the_likeliest_token_of_the_whole_pass(greedy, one_device):
    model = Llama(CFG, nnx.Rngs(3))
    row = np.array(greedy[2], np.int32)[None]
    places = np.arange(row.shape[1], dtype=np.int32)[None]
    logits = jax.jit(Llama.__call__)(model, row, np.ones_like(row), places)
    assert np.argmax(logits[0, 4:-1], axis=-1).tolist() == greedy[2][5:]


def test_the_seed_decides(greedy):
    cfg = dataclasses.replace(CFG, init_std=0.1)
    first, again, other = (draw(MeshConfig(), temperature=1.0, seed=s, cfg=cfg) for s in (1, 1, 2))
    assert first == again != other


def test_the_nucleus_keeps_what_crosses_top_p(one_device):
    """Of 0.5, 0.3, 0.15, 0.05 the nucleus of 0.7 is the first two: the second crosses it."""
    probs = np.array([0.05, 0.5, 0.15, 0.3])
    logits = jnp.asarray(np.tile(np.log(probs), (4000, 1)), jnp.float32)
    drawn = np.asarray(jax.jit(choose)(logits, 1.0, 0.7, jax.random.key(0)))
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, [0, 0.5 / 0.8, 0, 0.3 / 0.8], atol=0.03)
    # A temperature of 0.5 squares the odds.
    drawn = np.asarray(jax.jit(choose)(logits, 0.5, 1.0, jax.random.key(0)))
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, probs**2 / (probs**2).sum(), atol=0.03)
