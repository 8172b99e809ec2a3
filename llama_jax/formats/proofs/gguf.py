"""A GGUF, read by the gguf package."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.data.tokenizer import from_bytes
from llama_jax.formats import bpe, vocabulary
from llama_jax.formats.proofs.files import (
    Conventions,
    Decode,
    Encode,
    Files,
    Tensor,
    Unreadable,
    differences,
    extra,
    extra_files,
    names_of,
    sentencepiece_model,
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


FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}  # llama.cpp's numbers


def open_files(directory: Path, source: Weights, dtype: str) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize

    path, cfg = directory / "model.gguf", source.cfg
    reader = GGUFReader(path)
    # Offsets only: the reader's own arrays are of a mapped file, which would stay in memory.
    where = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.shape, t.tensor_type)
        for t in reader.tensors
    }
    values = {key: value.contents() for key, value in reader.fields.items()}
    del reader

    def tensor(role: str, layer: int) -> Tensor:
        tied = role == "head" and cfg.tie_embeddings
        name = NAMES["embedding" if tied else role].format(layer) + ".weight"
        if name not in where:
            raise Unreadable(f"{name}: is not in {path.name}")
        offset, of_numpy, stored, shape, kind = where[name]
        expected = _kind(role, tuple(shape), dtype)
        if kind.name != expected:
            raise Unreadable(f"{name}: is of type {kind.name}, expected {expected}")
        width = math.prod(stored[1:])

        def read(rows: slice) -> np.ndarray:
            start, count = offset + rows.start * width * of_numpy.itemsize, rows.stop - rows.start
            data = np.fromfile(path, of_numpy, count * width, offset=start)
            return dequantize(data.reshape(count, *stored[1:]), kind)

        return Tensor(name, tuple(map(int, reversed(shape))), read)

    def inputs(x: np.ndarray, factor: Tensor) -> np.ndarray:
        kind = where[factor.name][4]
        if kind.name == "Q4_0":  # which llama.cpp multiplies with Q8_0
            kind = GGMLQuantizationType.Q8_0
        values = quantize(np.ascontiguousarray(x, np.float32), kind)
        return dequantize(values, kind).astype(x.dtype)

    eps = values["llama.attention.layer_norm_rms_epsilon"]
    theta = values["llama.rope.freq_base"]
    conventions = Conventions(norm_eps=eps, rope_theta=theta, q_pairs=True, k_pairs=True)
    names = names_of(NAMES, cfg)
    found = differences(path.name, values, _expected_fields(source, dtype, len(names)))
    found += extra("tensor", path.name, where, names) + extra_files(directory, [path.name])
    rounds = None if dtype == "f32" else inputs
    return Files(conventions, tensor, found, *_coders(path, values, source), rounds)


def _coders(path: Path, values: dict[str, Any], source: Weights) -> tuple[Encode, Decode]:
    if source.sentencepiece is None:
        made = from_bytes(bpe.from_gguf(values.get, path.name), path.name)
        return lambda text: [*made.before, *made.encode(text)], made.decode
    pieces, scores, types = (
        values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    # llama.cpp removes no spaces, whatever the file says.
    special = special_ids(source, "unk_id", "bos_id", "eos_id")
    return sentencepiece_model(
        vocabulary.sentencepiece(pieces, scores, types, special, extra_spaces=False)
    )


def _kind(role: str, shape: tuple[int, ...], dtype: str) -> str:
    """Return the type that a tensor has to have: llama.cpp wants norms in f32, and blocks of 32."""
    quantised = dtype in ("q8_0", "q4_0")
    if len(shape) == 1 or (quantised and shape[0] % 32):
        return "F32"
    return "Q8_0" if quantised and role in ("embedding", "head") else dtype.upper()


def _expected_fields(source: Weights, dtype: str, num_tensors: int) -> dict[str, Any]:
    cfg = source.cfg
    fields = {
        "GGUF.version": 3,
        "GGUF.tensor_count": num_tensors,
        "general.architecture": "llama",
        "general.name": source.name,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        "llama.context_length": source.seq_len,
        "llama.embedding_length": cfg.embed_dim,
        "llama.feed_forward_length": cfg.mlp_dim,
        "llama.block_count": cfg.num_layers,
        "llama.attention.head_count": cfg.num_heads,
        "llama.attention.head_count_kv": cfg.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "llama.rope.dimension_count": cfg.head_dim,
        "llama.rope.freq_base": cfg.rope_theta,
        "llama.vocab_size": cfg.vocab_size,
        **(_sentencepiece_fields(source) if source.sentencepiece else _bpe_fields(source)),
    }
    return fields | {"GGUF.kv_count": len(fields) - 2}


def _sentencepiece_fields(source: Weights) -> dict[str, Any]:
    parsed = source.sentencepiece
    special, pieces = special_ids(source, "unk_id", "bos_id", "eos_id"), parsed.pieces
    unused = range(len(pieces), source.cfg.vocab_size)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [p.piece for p in pieces] + [f"[PAD{i}]" for i in unused],
        "tokenizer.ggml.scores": [p.score for p in pieces] + [-1000.0 for _ in unused],
        "tokenizer.ggml.token_type": [p.type for p in pieces] + [vocabulary.UNUSED for _ in unused],
        "tokenizer.ggml.unknown_token_id": special["unk_id"],
        "tokenizer.ggml.bos_token_id": special["bos_id"],
        "tokenizer.ggml.eos_token_id": special["eos_id"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": (
            parsed.normalizer_spec.remove_extra_whitespaces
        ),
    }


def _bpe_fields(source: Weights) -> dict[str, Any]:
    from tokenizers import Tokenizer

    assert source.tokenizer
    parsed, ours = json.loads(source.tokenizer), source.vocabulary
    read = Tokenizer.from_str(source.tokenizer.decode())
    added = read.get_added_tokens_decoder()
    pieces = [read.id_to_token(i) for i in range(source.cfg.vocab_size)]

    def kind(i: int) -> int:
        if pieces[i] is None:
            return vocabulary.UNUSED
        if i not in added:
            return vocabulary.NORMAL
        return vocabulary.CONTROL if added[i].special else vocabulary.USER_DEFINED

    first, *others = ours.eos_ids
    ends = [first, *sorted(others, key=lambda i: "eom" in str(pieces[i]))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": bpe.pre_of(source.tokenizer),
        "tokenizer.ggml.tokens": [p or f"[PAD{i}]" for i, p in enumerate(pieces)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(len(pieces))],
        "tokenizer.ggml.merges": [
            " ".join(pair) if isinstance(pair, list) else pair for pair in parsed["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": ours.bos_id,
        **{f"tokenizer.ggml.{k}_token_id": i for k, i in zip(bpe.EOS, ends, strict=False)},
        "tokenizer.ggml.add_bos_token": bool(ours.before),
        "tokenizer.ggml.add_eos_token": False,
    }
