"""Hugging Face's directory, read by the safetensors package."""

import json
from pathlib import Path

import numpy as np

from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    differences,
    fast_tokenizer,
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


def open_files(directory: Path, source: Weights) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    from safetensors import SafetensorError, safe_open

    config, cfg = json.loads((directory / "config.json").read_text()), source.cfg
    tied = {"head": NAMES["embedding"]} if config["tie_word_embeddings"] else {}
    single, index = "model.safetensors", "model.safetensors.index.json"
    where = None
    if not (directory / single).exists():
        where = json.loads((directory / index).read_text())["weight_map"]

    def tensor(role: str, layer: int) -> Tensor:
        name = (NAMES | tied)[role].format(layer) + ".weight"
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
    special = special_ids(source, "bos_id", "eos_id")
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
    found = differences("config.json", fields)
    return Files(conventions, tensor, found, fast_tokenizer(directory))
