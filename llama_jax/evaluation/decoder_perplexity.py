"""The perplexity that a decoder gives to held-out text of the package: what eight bits cost."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from llama_jax.config import LLAMA_MIXTURE, DataConfig
from llama_jax.data import documents
from llama_jax.data.tokenizer import Vocabulary
from llama_jax.generation.decoder import Decoder, specs_of
from llama_jax.generation.kv_cache import new_cache
from llama_jax.sharding import activation_spec

ROW_TOKENS = 256


def held_out_rows(vocabulary: Vocabulary) -> np.ndarray:
    """Return int32 [sources, ROW_TOKENS]: the beginning of each embedded source's held-out text."""
    data = DataConfig(store="", batch_size=1)
    rows = []
    for source, _ in LLAMA_MIXTURE:
        parts = documents.parts(data, source, "validation")
        texts = (text for part in parts for text, _ in documents.read(part))
        tokens: list[int] = []
        while len(tokens) < ROW_TOKENS:
            tokens += [vocabulary.bos_id, *vocabulary.encode(next(texts))]
        rows.append(tokens[:ROW_TOKENS])
    return np.array(rows, np.int32)


def perplexity(decoder: Decoder, rows_BT: np.ndarray) -> float:
    """Compute the perplexity of every token of the rows but the first ones."""
    ways = jax.sharding.get_mesh().size // jax.sharding.get_mesh().shape["tensor"]
    # One row at a time, the same on all devices: logits of all tokens take much memory.
    losses = [float(_mean_loss(decoder, np.tile(row_T, (ways, 1)))) for row_T in rows_BT]
    return float(np.exp(np.mean(losses)))


@jax.jit
def _mean_loss(decoder: Decoder, tokens_BT):
    B, T = tokens_BT.shape
    caches = [new_cache(decoder.cfg, B, T) for _ in decoder.layers]

    def on_device(decoder, tokens_BT, caches):
        first_B = jnp.zeros(len(tokens_BT), jnp.int32)
        x_BTD, _ = decoder.hidden(tokens_BT, first_B, 0, caches)
        log_probs_BTV = jax.nn.log_softmax(decoder.logits(x_BTD[:, :-1]))
        of_next_BT1 = jnp.take_along_axis(log_probs_BTV, tokens_BT[:, 1:, None], axis=-1)
        return -jnp.mean(of_next_BT1)

    tokens_BT = jax.sharding.reshard(tokens_BT, activation_spec("BT"))
    return jax.shard_map(
        on_device,
        in_specs=(specs_of(decoder), activation_spec("BT"), specs_of(caches)),
        out_specs=P(),
        check_vma=False,
    )(decoder, tokens_BT, caches)
