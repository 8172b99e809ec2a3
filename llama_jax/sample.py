"""Continues prompts, one token at a time, over a cache of keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from llama_jax.attention import new_cache
from llama_jax.model import Llama
from llama_jax.sharding import activation_spec

NOT_GIVEN = -1  # a place in a prompt array that the model has to fill


def continue_prompts(
    model: Llama,
    prompts: list[list[int]],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """Token ids of each prompt with max_tokens more. Prompts need not have the same length.

    temperature 0 takes the most likely token; otherwise tokens are drawn from the softmax of
    logits / temperature, cut to the fewest that hold more than top_p of it.
    """
    longest = max(map(len, prompts)) + max_tokens
    mesh = jax.sharding.get_mesh()
    ways = mesh.size // mesh.shape["tensor"]
    rows = -(-len(prompts) // ways) * ways
    given_BT = np.full((rows, longest), NOT_GIVEN, np.int32)
    for row, prompt in enumerate(prompts):
        given_BT[row, : len(prompt)] = prompt
    given_BT[len(prompts) :] = given_BT[0]  # rows that only fill up the mesh
    given_BT = jax.device_put(given_BT, jax.NamedSharding(mesh, activation_spec("BT")))
    tokens_BT = jax.device_get(_generate(model, given_BT, temperature, top_p, jax.random.key(seed)))
    return [
        tokens_BT[row, : len(prompt) + max_tokens].tolist() for row, prompt in enumerate(prompts)
    ]


@jax.jit
def _generate(model: Llama, given_BT, temperature, top_p, key):
    """given_BT with every NOT_GIVEN place filled from the left. Given tokens are fed as they stand,
    so a row's continuation does not depend on the other rows' lengths."""
    dtype = jnp.dtype(model.cfg.compute_dtype)
    model = jax.tree.map(lambda w: w.astype(dtype), model)
    B, T = given_BT.shape

    def given_at(place):
        # Said, because JAX versions differ on how a slice of a single row is sharded.
        return jax.sharding.reshard(given_BT[:, place], activation_spec("B"))

    def step(carry, place):
        tokens_B, caches = carry
        logits_BTV, caches = model.decode(tokens_B[:, None], place, caches)
        drawn_B = choose(logits_BTV[:, 0], temperature, top_p, jax.random.fold_in(key, place))
        next_B = given_at(place + 1)
        next_B = jnp.where(next_B == NOT_GIVEN, drawn_B, next_B)
        return (next_B, caches), next_B

    first_B = given_at(0)
    _, rest_TB = jax.lax.scan(step, (first_B, new_cache(model.cfg, B, T)), jnp.arange(T - 1))
    return jnp.concatenate([first_B[:, None], rest_TB.T], axis=1)


def choose(logits_BV: jax.Array, temperature, top_p, key: jax.Array) -> jax.Array:
    """One token id per row, see continue_prompts."""
    logits_BV = jax.sharding.reshard(logits_BV, P(activation_spec("B")[0], None))
    probs_BV = jax.nn.softmax(logits_BV / jnp.maximum(temperature, 1e-6), axis=-1)
    sorted_BV = -jnp.sort(-probs_BV, axis=-1)
    before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
    # Meta's rule: a token is kept while those before it hold no more than top_p.
    least_B1 = jnp.min(jnp.where(before_BV > top_p, 1.0, sorted_BV), axis=-1, keepdims=True)
    kept_BV = jnp.where(probs_BV < least_B1, -jnp.inf, jnp.log(probs_BV))
    drawn_B = jax.random.categorical(key, kept_BV, axis=-1)
    drawn_B = jax.sharding.reshard(drawn_B, activation_spec("B"))
    return jnp.where(temperature == 0, jnp.argmax(logits_BV, axis=-1), drawn_B)
