"""Drawing tokens: the nucleus, the seed, ends; and that neither the batch nor the mesh matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llama_jax.config import MeshConfig, ModelConfig, UserError
from llama_jax.generation.decoder import to_decode_layout
from llama_jax.generation.sampling import CHUNK, PREFILL, Sampling, choose, generate
from llama_jax.model import Llama
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

GREEDY = Sampling(temperature=0.0)

MAX_TOKENS = CHUNK + 5

ONE_DEVICE = MeshConfig()

MESH = MeshConfig(replica=2, fsdp=2, tensor=2)


@functools.cache
def decoder_on(mesh_cfg: MeshConfig):
    mesh = make_mesh(mesh_cfg, jax.devices()[: 8 if mesh_cfg == MESH else 1])
    with jax.set_mesh(mesh):
        return mesh, to_decode_layout(jax.jit(lambda: Llama(CFG, nnx.Rngs(3)))())


def draw(mesh_cfg=ONE_DEVICE, prompts=PROMPTS, sampling=GREEDY, **ends):
    mesh, decoder = decoder_on(mesh_cfg)
    with jax.set_mesh(mesh):
        (*_, continuations) = generate(decoder, prompts, MAX_TOKENS, sampling, **ends)
    return continuations


@pytest.fixture(scope="module")
def greedy():
    return draw()


def test_a_continuation_does_not_depend_on_the_batch(greedy):
    assert [len(row) for row in greedy] == [MAX_TOKENS] * len(PROMPTS)
    assert draw(prompts=PROMPTS[1:2]) == greedy[1:2]
    # Beside a prompt that takes two blocks to read.
    assert draw(prompts=[*PROMPTS[1:], [1] * (PREFILL + 10)])[:2] == greedy[1:]


def test_a_continuation_does_not_depend_on_the_mesh(greedy):
    assert draw(MESH) == greedy


def test_greedy_is_the_likeliest_token_of_the_whole_pass(greedy, one_device):
    model = Llama(CFG, nnx.Rngs(3))
    row = np.array(PROMPTS[2] + greedy[2], np.int32)[None]
    places = np.arange(row.shape[1], dtype=np.int32)[None]
    logits = jax.jit(Llama.__call__)(model, row, np.ones_like(row), places)
    assert np.argmax(logits[0, 4:-1], axis=-1).tolist() == greedy[2]


def test_draws_depend_on_the_seed_and_the_row_alone():
    sampling = Sampling(temperature=4.0, top_p=0.9, seed=1)
    drawn = draw(sampling=sampling)
    assert draw(sampling=dataclasses.replace(sampling, seed=2)) != drawn
    assert draw(sampling=sampling, prompts=[PROMPTS[0], [1, 2], [3] * 5])[0] == drawn[0]
    assert draw(MESH, sampling=sampling) == drawn
    same = draw(sampling=sampling, prompts=[PROMPTS[2]] * 3)
    assert same[2] == drawn[2] and same[0] != same[1] != same[2]


def test_a_row_ends_alone(greedy):
    """At an end of a text, which is kept, or where the caller says; the others go on."""
    eos_ids = (greedy[1][3], greedy[0][5])
    ends = [next((i for i, token in enumerate(row) if token in eos_ids), None) for row in greedy]
    cut = [row if end is None else row[: end + 1] for row, end in zip(greedy, ends, strict=True)]
    assert cut[0] != greedy[0] and cut[1] != greedy[1]
    assert draw(eos_ids=eos_ids) == cut
    assert draw(MESH, eos_ids=eos_ids) == cut
    first_chunk_only = draw(ended=lambda row, tokens: row != 1)
    assert [len(row) for row in first_chunk_only] == [CHUNK, MAX_TOKENS, CHUNK]
    assert first_chunk_only[1] == greedy[1]


def test_tokens_are_drawn_by_their_share_of_the_nucleus(one_device):
    """Of 0.5, 0.3, 0.15, 0.05 the nucleus of 0.7 is the first two: the second crosses it."""
    probs = np.array([0.05, 0.5, 0.15, 0.3])
    logits = jnp.asarray(np.tile(np.log(probs), (4000, 1)), jnp.float32)
    rows, positions = jnp.arange(4000) % 40, jnp.arange(4000) // 40
    pick = jax.jit(choose, static_argnums=0)

    def shares(**sampling):
        drawn = pick(Sampling(**sampling), logits, rows, positions)
        return np.bincount(drawn, minlength=4) / 4000

    np.testing.assert_allclose(
        shares(temperature=1.0, top_p=0.7), [0, 0.5 / 0.8, 0, 0.3 / 0.8], atol=0.03
    )
    np.testing.assert_allclose(
        shares(temperature=1.0, top_k=3), np.array([0, 0.5, 0.15, 0.3]) / 0.95, atol=0.03
    )
    # A temperature of 0.5 squares the odds.
    np.testing.assert_allclose(shares(temperature=0.5), probs**2 / (probs**2).sum(), atol=0.03)


def test_a_model_of_nans_writes_nothing():
    mesh, decoder = decoder_on(ONE_DEVICE)
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match="logits are not finite; sample from an earlier step"),
    ):
        list(generate(jax.tree.map(lambda x: x * jnp.nan, decoder), [[1, 2]], 4, GREEDY))


def test_more_tokens_than_memory_holds_are_refused():
    mesh, decoder = decoder_on(ONE_DEVICE)
    match = "max_tokens: the keys and values of 1,000,000,000,005 tokens a text need .* at the most"
    with jax.set_mesh(mesh), pytest.raises(UserError, match=match):
        next(generate(decoder, PROMPTS, 10**12, GREEDY))
