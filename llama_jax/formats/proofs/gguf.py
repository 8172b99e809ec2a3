"""A GGUF, read by the gguf package."""

import math
from pathlib import Path

import numpy as np

from llama_jax.formats import vocabulary
from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    differences,
    sentencepiece_encoder,
    special_ids,
)
from llama_jax.formats.weights import Weights

NAMES = {
    "embedding": "token_embd",
    "attn_norm": "blk.{}.attn_norm",
    **{role: f"blk.{{}}.attn_{role}" for role in "qkv"},
    "o": "blk.{}.attn_output",
    "mlp_norm": "blk.{}.ffn_norm",
    **{role: f"blk.{{}}.ffn_{role}" for role in ("gate", "up", "down")},
    "final_norm": "output_norm",
    "head": "output",
}


def open_files(directory: Path, source: Weights) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    from gguf import GGUFReader, dequantize

    (path,) = directory.glob("*.gguf")
    reader, cfg = GGUFReader(path), source.cfg
    # Offsets only: the reader's own arrays are of a mapped file, which would stay in memory.
    where = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.shape, t.tensor_type)
        for t in reader.tensors
    }
    tied = "output.weight" not in where
    values = {key: value.contents() for key, value in reader.fields.items()}
    del reader

    def tensor(role: str, layer: int) -> Tensor:
        name = NAMES["embedding" if tied and role == "head" else role].format(layer) + ".weight"
        if name not in where:
            raise Unreadable(f"{name}: is not in {path.name}")
        offset, dtype, stored, shape, kind = where[name]
        width = math.prod(stored[1:])

        def read(rows: slice) -> np.ndarray:
            start, count = offset + rows.start * width * dtype.itemsize, rows.stop - rows.start
            data = np.fromfile(path, dtype, count * width, offset=start)
            return dequantize(data.reshape(count, *stored[1:]), kind)

        return Tensor(name, tuple(map(int, reversed(shape))), read)

    special = special_ids(source, "unk_id", "bos_id", "eos_id")
    pieces, scores, types = (
        values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    expected = {
        "general.architecture": "llama",
        "llama.embedding_length": cfg.embed_dim,
        "llama.feed_forward_length": cfg.mlp_dim,
        "llama.block_count": cfg.num_layers,
        "llama.attention.head_count": cfg.num_heads,
        "llama.attention.head_count_kv": cfg.kv_heads,
        "llama.rope.dimension_count": cfg.head_dim,
        "llama.vocab_size": cfg.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.unknown_token_id": special["unk_id"],
        "tokenizer.ggml.bos_token_id": special["bos_id"],
        "tokenizer.ggml.eos_token_id": special["eos_id"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
    eps = values["llama.attention.layer_norm_rms_epsilon"]
    theta = values["llama.rope.freq_base"]
    fields = {key: (values.get(key), value) for key, value in expected.items()} | {
        "number of tokenizer.ggml.tokens": (len(pieces), cfg.vocab_size),
        "a tied head": (tied, cfg.tie_embeddings),
        "norm eps: llama.attention.layer_norm_rms_epsilon": (eps, cfg.norm_eps),
        "rope base: llama.rope.freq_base": (theta, cfg.rope_theta),
    }
    conventions = Conventions(norm_eps=eps, rope_theta=theta, q_pairs=True, k_pairs=True)
    # llama.cpp removes no spaces, whatever the file says.
    model = vocabulary.sentencepiece(pieces, scores, types, special, extra_spaces=False)
    return Files(conventions, tensor, differences(path.name, fields), sentencepiece_encoder(model))
