"""Exported files, read once more: by the library that their users have, and by names and axes that
are written here a second time, so that a mistake of a writer is not made again in its check."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llama_jax.formats import vocabulary
from llama_jax.formats.weights import Checkpoint

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
ROWS = 4096  # of a matrix that are read at a time


class Unreadable(Exception):
    """Files in which a reader of their format does not find what it looks for."""


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How the files' numbers are to be computed with."""

    norm_eps: float
    rope_theta: float
    q_pairs: bool  # rotary partners are neighbours (2i, 2i + 1), and not (i, i + K/2)
    k_pairs: bool
    transposed: str | None = None  # a role: a mistake to try
    swapped: bool = False  # gate and up: another


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A matrix [out, in] or a vector in a file."""

    name: str  # the format's
    shape: tuple[int, ...]
    read: Callable[[slice], np.ndarray]  # some rows, as fp32

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, self.shape[0], ROWS):
            rows = slice(start, min(start + ROWS, self.shape[0]))
            yield rows, self.read(rows)

    def whole(self) -> np.ndarray:
        return self.read(slice(0, self.shape[0]))


@dataclasses.dataclass(frozen=True)
class Files:
    """Exported files, opened by an independent reader."""

    conventions: Conventions
    # (role, layer) -> tensor; besides ROLES there are embedding, attn_norm, mlp_norm, final_norm
    # and head.
    tensor: Callable[[str, int], Tensor]
    differences: list[str]  # of their configuration from the checkpoint's
    encode: Callable[[str], list[int]]  # a text's tokens


def _differences(file: str, fields: dict[str, tuple[Any, Any]]) -> list[str]:
    """fields: name -> what the file says and what the checkpoint does."""
    return [
        f"{field} is {got!r} in {file}, expected the checkpoint's {expected!r}"
        for field, (got, expected) in fields.items()
        if not _same(got, expected)
    ]


def _same(got: Any, expected: Any) -> bool:
    if isinstance(got, float) and isinstance(expected, float):
        return math.isclose(got, expected, rel_tol=1e-6)  # GGUF keeps them in fp32
    return got == expected


def _special_ids(checkpoint: Checkpoint, *names: str) -> dict[str, int]:
    return {name: getattr(checkpoint.vocabulary.trainer_spec, name) for name in names}


def _fast_tokenizer(directory: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text
    return lambda text: tokenizer.encode(text).ids


def _sentencepiece(model: bytes) -> Callable[[str], list[int]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda text: [processor.bos_id(), *processor.encode(text)]


def hugging_face(directory: Path, checkpoint: Checkpoint) -> Files:
    from safetensors import SafetensorError, safe_open

    names = {
        "embedding": "model.embed_tokens",
        "attn_norm": "model.layers.{}.input_layernorm",
        **{role: f"model.layers.{{}}.self_attn.{role}_proj" for role in "qkvo"},
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        **{role: f"model.layers.{{}}.mlp.{role}_proj" for role in ("gate", "up", "down")},
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    config, cfg = json.loads((directory / "config.json").read_text()), checkpoint.cfg
    if config["tie_word_embeddings"]:
        names["head"] = names["embedding"]
    single, index = "model.safetensors", "model.safetensors.index.json"
    where = None
    if not (directory / single).exists():
        where = json.loads((directory / index).read_text())["weight_map"]

    def tensor(role: str, layer: int) -> Tensor:
        name = names[role].format(layer) + ".weight"
        file = where.get(name, f"no file, says {index}") if where else single

        def opened():
            try:
                return safe_open(directory / file, "np")
            except (OSError, SafetensorError) as e:
                raise Unreadable(f"{name}: cannot be read from {file}: {e}") from e

        def read(rows: slice) -> np.ndarray:
            with opened() as shard:
                return shard.get_slice(name)[rows].astype(np.float32)

        with opened() as shard:
            if name not in shard.keys():
                raise Unreadable(f"{name}: is not in {file}")
            return Tensor(name, tuple(shard.get_slice(name).get_shape()), read)

    rope = config["rope_parameters"]
    special = _special_ids(checkpoint, "bos_id", "eos_id")
    fields = {
        "model_type": (config["model_type"], "llama"),
        "hidden_size": (config["hidden_size"], cfg.embed_dim),
        "intermediate_size": (config["intermediate_size"], cfg.mlp_dim),
        "num_hidden_layers": (config["num_hidden_layers"], cfg.num_layers),
        "num_attention_heads": (config["num_attention_heads"], cfg.num_heads),
        "num_key_value_heads": (config["num_key_value_heads"], cfg.kv_heads),
        "head_dim": (config["head_dim"], cfg.head_dim),
        "vocab_size": (config["vocab_size"], cfg.vocab_size),
        "tie_word_embeddings": (config["tie_word_embeddings"], cfg.tie_embeddings),
        "hidden_act": (config["hidden_act"], "silu"),
        "attention_bias": (config["attention_bias"], False),
        "mlp_bias": (config["mlp_bias"], False),
        "bos_token_id": (config["bos_token_id"], special["bos_id"]),
        "eos_token_id": (config["eos_token_id"], special["eos_id"]),
        "norm eps: rms_norm_eps": (config["rms_norm_eps"], cfg.norm_eps),
        # transformers 4 reads the first two, 5 the third.
        "rope base: rope_theta": (config["rope_theta"], cfg.rope_theta),
        "rope_scaling": (config.get("rope_scaling"), None),
        "rope base: rope_parameters": (
            rope,
            {"rope_type": "default", "rope_theta": cfg.rope_theta},
        ),
    }
    conventions = Conventions(
        norm_eps=config["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        q_pairs=False,
        k_pairs=False,
    )
    differences = _differences("config.json", fields)
    return Files(conventions, tensor, differences, _fast_tokenizer(directory))


def meta(directory: Path, checkpoint: Checkpoint) -> Files:
    import torch  # pyright: ignore[reportMissingImports]

    names = {
        "embedding": "tok_embeddings",
        "attn_norm": "layers.{}.attention_norm",
        **{role: f"layers.{{}}.attention.w{role}" for role in "qkvo"},
        "mlp_norm": "layers.{}.ffn_norm",
        "gate": "layers.{}.feed_forward.w1",
        "up": "layers.{}.feed_forward.w3",
        "down": "layers.{}.feed_forward.w2",
        "final_norm": "norm",
        "head": "output",
    }
    params, cfg = json.loads((directory / "params.json").read_text()), checkpoint.cfg
    paths = sorted(directory.glob("consolidated.*.pth"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> list[dict]:
        return [torch.load(path, mmap=True, weights_only=True) for path in paths]

    def tensor(role: str, layer: int) -> Tensor:
        name = names[role].format(layer) + ".weight"
        for path, shard in zip(paths, opened(layer), strict=True):
            if name not in shard:
                raise Unreadable(f"{name}: is not in {path.name}")
        shards = [shard[name] for shard in opened(layer)]
        if "norm" in role:
            for path, shard in zip(paths, shards, strict=True):
                if not torch.equal(shard, shards[0]):
                    raise Unreadable(f"{name}: is not the same in {path.name} as in the others")
            return Tensor(
                name, tuple(shards[0].shape), lambda rows: shards[0][rows].float().numpy()
            )
        shape = list(shards[0].shape)
        axis = 1 if role in ("embedding", "o", "down") else 0  # 1: split along their inputs
        shape[axis] *= len(shards)

        def read(rows: slice) -> np.ndarray:
            if axis:
                parts = [shard[rows] for shard in shards]
            else:
                height = len(shards[0])
                parts = [
                    shard[max(rows.start - i * height, 0) : max(rows.stop - i * height, 0)]
                    for i, shard in enumerate(shards)
                ]
            return torch.cat(parts, dim=axis).float().numpy()

        return Tensor(name, tuple(shape), read)

    hidden = int(2 * 4 * params["dim"] / 3)  # Meta's own rule
    hidden = int(params.get("ffn_dim_multiplier", 1) * hidden)
    hidden = -(-hidden // params["multiple_of"]) * params["multiple_of"]
    theta = float(params.get("rope_theta", 10_000.0))
    fields = {
        "dim": (params["dim"], cfg.embed_dim),
        "n_layers": (params["n_layers"], cfg.num_layers),
        "n_heads": (params["n_heads"], cfg.num_heads),
        "n_kv_heads": (params.get("n_kv_heads", params["n_heads"]), cfg.kv_heads),
        "vocab_size": (params["vocab_size"], cfg.vocab_size),
        "the width by multiple_of and ffn_dim_multiplier": (hidden, cfg.mlp_dim),
        "norm eps: norm_eps": (params["norm_eps"], cfg.norm_eps),
        "rope base: rope_theta": (theta, cfg.rope_theta),
    }
    conventions = Conventions(
        norm_eps=params["norm_eps"], rope_theta=theta, q_pairs=True, k_pairs=True
    )
    encode = _sentencepiece((directory / "tokenizer.model").read_bytes())
    return Files(conventions, tensor, _differences("params.json", fields), encode)


def gguf(directory: Path, checkpoint: Checkpoint) -> Files:
    from gguf import GGUFReader, dequantize

    names = {
        "embedding": "token_embd",
        "attn_norm": "blk.{}.attn_norm",
        **{role: f"blk.{{}}.attn_{role}" for role in "qkv"},
        "o": "blk.{}.attn_output",
        "mlp_norm": "blk.{}.ffn_norm",
        **{role: f"blk.{{}}.ffn_{role}" for role in ("gate", "up", "down")},
        "final_norm": "output_norm",
        "head": "output",
    }
    (path,) = directory.glob("*.gguf")
    reader, cfg = GGUFReader(path), checkpoint.cfg
    # Places only: the reader's own arrays are of a mapped file, which would stay in memory.
    where = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.shape, t.tensor_type)
        for t in reader.tensors
    }
    tied = "output.weight" not in where
    if tied:
        names["head"] = names["embedding"]
    values = {key: value.contents() for key, value in reader.fields.items()}
    del reader

    def tensor(role: str, layer: int) -> Tensor:
        name = names[role].format(layer) + ".weight"
        if name not in where:
            raise Unreadable(f"{name}: is not in {path.name}")
        offset, dtype, stored, shape, type = where[name]
        width = math.prod(stored[1:])

        def read(rows: slice) -> np.ndarray:
            start, count = offset + rows.start * width * dtype.itemsize, rows.stop - rows.start
            data = np.fromfile(path, dtype, count * width, offset=start)
            return dequantize(data.reshape(count, *stored[1:]), type)

        return Tensor(name, tuple(map(int, reversed(shape))), read)

    special = _special_ids(checkpoint, "unk_id", "bos_id", "eos_id")
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
    return Files(conventions, tensor, _differences(path.name, fields), _sentencepiece(model))


def litgpt(directory: Path, checkpoint: Checkpoint) -> Files:
    import torch  # pyright: ignore[reportMissingImports]

    names = {
        "embedding": "transformer.wte",
        "attn_norm": "transformer.h.{}.norm_1",
        **{role: "transformer.h.{}.attn.qkv" for role in "qkv"},
        "o": "transformer.h.{}.attn.proj",
        "mlp_norm": "transformer.h.{}.norm_2",
        "gate": "transformer.h.{}.mlp.fc_1",
        "up": "transformer.h.{}.mlp.fc_2",
        "down": "transformer.h.{}.mlp.proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    }
    config = yaml.safe_load((directory / "model_config.yaml").read_text())
    cfg, file = checkpoint.cfg, directory / "lit_model.pth"
    q_rows, kv_rows = (config[k] * config["head_size"] for k in ("n_head", "n_query_groups"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> dict:
        return torch.load(file, mmap=True, weights_only=True)

    def tensor(role: str, layer: int) -> Tensor:
        name = names[role].format(layer) + ".weight"
        if name not in opened(layer):
            raise Unreadable(f"{name}: is not in {file.name}")
        matrix = opened(layer)[name]
        if role in ("q", "k", "v"):
            if len(matrix) != q_rows + 2 * kv_rows:
                raise Unreadable(f"{name}: has {len(matrix)} rows, not {q_rows + 2 * kv_rows}")
            matrix = matrix.split([q_rows, kv_rows, kv_rows])["qkv".index(role)]
        return Tensor(name, tuple(matrix.shape), lambda rows: matrix[rows].float().numpy())

    expected = {
        "n_embd": cfg.embed_dim,
        "intermediate_size": cfg.mlp_dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.num_heads,
        "n_query_groups": cfg.kv_heads,
        "head_size": cfg.head_dim,
        "padded_vocab_size": cfg.vocab_size,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "parallel_residual": False,
        "bias": False,
        "rotary_percentage": 1.0,
    }
    fields = {key: (config.get(key), value) for key, value in expected.items()} | {
        "norm eps: norm_eps": (config["norm_eps"], cfg.norm_eps),
        "rope base: rope_base": (float(config["rope_base"]), cfg.rope_theta),
    }
    conventions = Conventions(
        norm_eps=config["norm_eps"],
        rope_theta=config["rope_base"],
        q_pairs=False,
        k_pairs=False,
    )
    differences = _differences("model_config.yaml", fields)
    return Files(conventions, tensor, differences, _fast_tokenizer(directory))
