"""Continues prompts: which token is drawn, and when a continuation ends."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import UserError
from llama_jax.generation.decoder import Decoder, specs_of
from llama_jax.generation.kv_cache import check_memory, new_cache
from llama_jax.sharding import ACTIVATION_RULES, activation_spec

PREFILL = 512  # tokens of each prompt that go through the decoder at once
CHUNK = 8  # decode steps per host synchronisation
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from its logits."""

    temperature: float  # the logits are divided by it; 0 takes the likeliest token
    top_k: int | None = None  # of these, only the top_k largest are left, and what equals the last
    top_p: float = 1.0  # of those, only the fewest that hold more than top_p of their softmax
    seed: int = 0


def generate(
    decoder: Decoder,
    prompts: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    eos_ids: tuple[int, ...] = (),
    ended: Callable[[int, list[int]], bool] = lambda row, tokens: False,
) -> Iterator[list[list[int]]]:
    """Yield the continuations so far after every CHUNK steps.

    prompts: of one token or more each, and of any lengths. Other prompts of the batch change
    neither a continuation nor its draws, which follow from the seed and the number of the row.
    eos_ids: each ends a row, and is kept. ended(row, tokens) ends it, too, where the host looks.
    """
    mesh = jax.sharding.get_mesh()
    rows = len(prompts)
    ways = mesh.size // mesh.shape["tensor"]
    B, T = -(-rows // ways) * ways, max(map(len, prompts))
    # All prompts end at the same position. Rows that only fill up the mesh are done from the start.
    tokens_BT, first_B = np.zeros((B, T), np.int32), np.full(B, T - 1, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, T - len(prompt) :] = prompt
        first_B[row] = T - len(prompt)
    done_B = np.arange(B) >= rows

    def put(x: np.ndarray, dims: str) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, activation_spec(dims)))

    check_memory(decoder.cfg, B, T + max_tokens)
    caches = [new_cache(decoder.cfg, B, T + max_tokens) for _ in decoder.layers]
    firsts_B, logits_BV = put(first_B, "B"), None
    for start in range(0, T, PREFILL):
        block_BT = put(tokens_BT[:, start : start + PREFILL], "BT")
        logits_BV, caches = prefill(decoder, block_BT, firsts_B, start, caches)
    assert logits_BV is not None
    if not jnp.isfinite(logits_BV).all():
        raise UserError("checkpoint: its logits are not finite; sample from an earlier step")
    continuations: list[list[int]] = [[] for _ in prompts]
    numbers_B = put(np.arange(B, dtype=np.int32), "B")
    for start in range(T, T + max_tokens, CHUNK):
        stop = min(start + CHUNK, T + max_tokens)
        drawn_BT, logits_BV, caches = decode(
            sampling,
            eos_ids,
            decoder,
            start,
            stop,
            numbers_B,
            firsts_B,
            put(done_B, "B"),
            logits_BV,
            caches,
        )
        drawn = jax.device_get(drawn_BT)
        for row, tokens in enumerate(continuations):
            tokens += [int(token) for token in drawn[row] if token != NO_TOKEN]
            done_B[row] |= tokens[-1] in eos_ids or ended(row, tokens)
        yield continuations
        if done_B.all():
            return


@partial(jax.jit, donate_argnames="caches")
def prefill(decoder: Decoder, tokens_BT, first_B, start, caches):
    """Return logits_BV of the last token, and the caches, after a block of the prompts."""

    def on_device(decoder, tokens_BT, first_B, start, caches):
        x_BTD, caches = decoder.hidden(tokens_BT, first_B, start, caches)
        return decoder.logits(x_BTD[:, -1:])[:, 0], caches

    batch = activation_spec("B")
    return jax.shard_map(
        on_device,
        in_specs=(specs_of(decoder), batch, batch, P(), specs_of(caches)),
        out_specs=(batch, specs_of(caches)),
        check_vma=False,
    )(decoder, tokens_BT, first_B, start, caches)


@partial(jax.jit, static_argnames=("sampling", "eos_ids"), donate_argnames=("logits_BV", "caches"))
def decode(sampling, eos_ids, decoder, start, stop, number_B, first_B, done_B, logits_BV, caches):
    """Return int32 [B, CHUNK] token ids, logits_BV and the caches.

    The tokens are those at positions start to stop - 1, with NO_TOKEN after the end of a row. The
    loop ends with the last row.
    """

    def on_device(decoder, number_B, first_B, done_B, logits_BV, caches):
        def step(state):
            position, _, done_B, drawn_BT, logits_BV, caches = state
            drawn_B = choose(sampling, logits_BV, number_B, position - first_B)
            kept_B = jnp.where(done_B, NO_TOKEN, drawn_B)
            drawn_BT = jax.lax.dynamic_update_slice_in_dim(
                drawn_BT, kept_B[:, None], position - start, axis=1
            )
            for eos_id in eos_ids:
                done_B |= drawn_B == eos_id
            # Every device must know, as they all take part in the sums of the next step.
            going = jax.lax.psum(jnp.sum(~done_B), ACTIVATION_RULES["B"]) > 0
            x_BTD, caches = decoder.hidden(drawn_B[:, None], first_B, position, caches)
            return position + 1, going, done_B, drawn_BT, decoder.logits(x_BTD)[:, 0], caches

        drawn_BT = jnp.full((len(done_B), CHUNK), NO_TOKEN)
        state = (start, True, done_B, drawn_BT, logits_BV, caches)
        return jax.lax.while_loop(lambda s: s[1] & (s[0] < stop), step, state)[-3:]

    batch = activation_spec("B")
    return jax.shard_map(
        on_device,
        in_specs=(specs_of(decoder), batch, batch, batch, batch, specs_of(caches)),
        out_specs=(batch, batch, specs_of(caches)),
        check_vma=False,
    )(decoder, number_B, first_B, done_B, logits_BV, caches)


def choose(sampling: Sampling, logits_BV, number_B, position_B) -> jax.Array:
    """Draw a token id for each row, by the seed, the row's number and the token's position."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = nucleus(sampling, logits_BV / sampling.temperature)

    def draw(number, position, logits_V):
        key = jax.random.fold_in(jax.random.key(sampling.seed), number)
        return jax.random.categorical(jax.random.fold_in(key, position), logits_V)

    return jax.vmap(draw)(number_B, position_B, logits_BV).astype(jnp.int32)


def nucleus(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
    """Put -inf in place of the logits that top_k and then top_p leave out.

    By the rule of LLaMA's reference code: a token is kept while the likelier ones hold no more than
    top_p.
    """
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    if sampling.top_k is not None:
        last_B1 = sorted_BV[:, : sampling.top_k][:, -1:]
        sorted_BV = jnp.where(sorted_BV < last_B1, -jnp.inf, sorted_BV)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = (before_BV <= sampling.top_p) & (probs_BV > 0)
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
