"""Hugging Face's directory, read by the safetensors package."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.formats import bpe, vocabulary
from llama_jax.formats.parameters import num_values
from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    check_tokenizer,
    differences,
    extra,
    extra_files,
    fast_tokenizer,
    names_of,
    special_ids,
)
from llama_jax.formats.weights import Weights

NAMES = {
    "embedding": "model.embed_tokens",
    "attn_norm": "model.layers.{}.input_layernorm",
    **{role: f"model.layers.{{}}.self_attn.{role}_proj" for role in "qkvo"},
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    **{role: f"model.layers.{{}}.mlp.{role}_proj" for role in ("gate", "up", "down")},
    "final_norm": "model.norm",
    "head": "lm_head",
}


DTYPES = {"f32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "f16": ("F16", "float16")}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def open_files(directory: Path, source: Weights, dtype: str) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    from safetensors import SafetensorError, safe_open

    cfg, names = source.cfg, names_of(NAMES, source.cfg)
    tied = {"head": NAMES["embedding"]} if cfg.tie_embeddings else {}
    found, texts = text_differences(directory, source, dtype), text_files(source)
    where = dict.fromkeys(names, SINGLE)
    if (directory / SINGLE).exists():
        found += extra_files(directory, {*texts, SINGLE})
    else:
        index = json.loads((directory / INDEX).read_text())
        where = index["weight_map"]
        found += extra_files(directory, {*texts, INDEX, *where.values()})
        found += extra("tensor", INDEX, where, names)
        size = {"f32": 4, "bf16": 2, "f16": 2}[dtype] * num_values(cfg)
        found += differences(INDEX, index["metadata"], {"total_size": size})
    for file in sorted(set(where.values())):
        with safe_open(directory / file, "np") as shard:
            here = {name for name, other in where.items() if other == file}
            found += extra("tensor", file, shard.keys(), here)

    def tensor(role: str, layer: int) -> Tensor:
        name = (NAMES | tied)[role].format(layer) + ".weight"
        file = where.get(name, f"no file, says {INDEX}")

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
            stored = shard.get_slice(name)
            if stored.get_dtype() != DTYPES[dtype][0]:
                raise Unreadable(f"{name}: is of type {stored.get_dtype()}, expected {dtype}")
            return Tensor(name, tuple(stored.get_shape()), read)

    config = json.loads((directory / "config.json").read_text())
    conventions = Conventions(
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(config["rope_parameters"]["rope_theta"]),
        q_pairs=False,
        k_pairs=False,
    )
    return Files(conventions, tensor, found, *fast_tokenizer(directory))


def text_files(source: Weights) -> set[str]:
    """Return the names of the files beside the tensors'."""
    return {*TEXTS, *(["tokenizer.model"] if source.sentencepiece else [])}


def text_differences(directory: Path, source: Weights, dtype: str) -> list[str]:
    """Return what is said of the files that transformers reads beside the tensors'."""
    cfg, ours = source.cfg, source.vocabulary
    ends = ours.eos_ids[0] if len(ours.eos_ids) == 1 else list(ours.eos_ids)
    special = {"bos_token_id": ours.bos_id, "eos_token_id": ends}
    precision = DTYPES[dtype][1]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": cfg.embed_dim,
        "intermediate_size": cfg.mlp_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": source.seq_len,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": cfg.norm_eps,
        # transformers 4 reads the first of each pair, 5 the second.
        "torch_dtype": precision,
        "dtype": precision,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        **special,
    }
    written, tokens = _tokenizer(source)
    of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.seq_len,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in tokens.items()},
    }
    expected = {
        "config.json": config,
        "generation_config.json": special,
        "tokenizer_config.json": of_tokenizer,
        "tokenizer.json": written,
    }
    if source.sentencepiece:
        check_tokenizer(directory, source)
    found = []
    for name, fields in expected.items():
        found += differences(name, json.loads((directory / name).read_text()), fields)
    return found


def _tokenizer(source: Weights) -> tuple[dict[str, Any], dict[str, str]]:
    """Return tokenizer.json as it should be, and the token of each name that transformers has."""
    parsed = source.sentencepiece
    if parsed is None:
        assert source.tokenizer
        written, roles = bpe.without_roles(source.tokenizer)
        return written, {name: tokens[0]["content"] for name, tokens in roles.items()}
    ids = special_ids(source, "unk_id", "bos_id", "eos_id")
    tokens = {name.removesuffix("_id"): parsed.pieces[i].piece for name, i in ids.items()}
    return vocabulary.hugging_face(parsed), tokens
