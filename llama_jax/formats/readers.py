"""Exported files, read once more: by the library that their users have, and by names and axes that
are written here a second time, so that a mistake of a writer is not made again in its check."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a reader of the files has to know, as the files' own configuration says it."""

    num_layers: int
    num_heads: int
    kv_heads: int
    norm_eps: float
    rope_theta: float
    q_pairs: bool  # rotary partners are neighbours (2i, 2i + 1), and not (i, i + K/2)
    k_pairs: bool
    transposed: str | None = None  # a role: a mistake to try
    swapped: bool = False  # gate and up: another


@dataclasses.dataclass(frozen=True)
class Files:
    """Exported files, opened by an independent reader."""

    conventions: Conventions
    # (role, layer) -> fp32 matrix, [out, in]; besides ROLES there are embedding, attn_norm,
    # mlp_norm, final_norm and head.
    tensor: Callable[[str, int], np.ndarray]


def hugging_face(directory: Path) -> Files:
    from safetensors import safe_open

    names = {
        "embedding": "model.embed_tokens",
        "attn_norm": "model.layers.{}.input_layernorm",
        **{role: f"model.layers.{{}}.self_attn.{role}_proj" for role in "qkvo"},
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        **{role: f"model.layers.{{}}.mlp.{role}_proj" for role in ("gate", "up", "down")},
        "final_norm": "model.norm",
        "head": "lm_head",
    }
    config = json.loads((directory / "config.json").read_text())
    if config["tie_word_embeddings"]:
        names["head"] = names["embedding"]
    where = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            where |= dict.fromkeys(file.keys(), path)

    def tensor(role: str, layer: int) -> np.ndarray:
        name = names[role].format(layer) + ".weight"
        with safe_open(where[name], "np") as file:
            return file.get_tensor(name).astype(np.float32)

    conventions = Conventions(
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
        q_pairs=False,
        k_pairs=False,
    )
    return Files(conventions, tensor)


def meta(directory: Path) -> Files:
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
    params = json.loads((directory / "params.json").read_text())
    paths = sorted(directory.glob("consolidated.*.pth"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> list[dict]:
        return [torch.load(path, mmap=True, weights_only=True) for path in paths]

    def tensor(role: str, layer: int) -> np.ndarray:
        name = names[role].format(layer) + ".weight"
        shards = [shard[name] for shard in opened(layer)]
        if "norm" in role:
            return shards[0].float().numpy()
        by_column = role in ("embedding", "o", "down")  # split along their inputs
        return torch.cat(shards, dim=1 if by_column else 0).float().numpy()

    conventions = Conventions(
        num_layers=params["n_layers"],
        num_heads=params["n_heads"],
        kv_heads=params.get("n_kv_heads", params["n_heads"]),
        norm_eps=params["norm_eps"],
        rope_theta=params.get("rope_theta", 10_000.0),
        q_pairs=True,
        k_pairs=True,
    )
    return Files(conventions, tensor)


def gguf(directory: Path) -> Files:
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
    reader = GGUFReader(path)
    # Places only: the reader's own arrays are of a mapped file, which would stay in memory.
    where = {
        t.name: (t.data_offset, t.data.dtype, t.data.shape, t.tensor_type) for t in reader.tensors
    }
    if "output.weight" not in where:
        names["head"] = names["embedding"]

    fields = {key: value.contents() for key, value in reader.fields.items() if "llama." in key}
    del reader

    conventions = Conventions(
        num_layers=fields["llama.block_count"],
        num_heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=fields["llama.rope.freq_base"],
        q_pairs=True,
        k_pairs=True,
    )

    def tensor(role: str, layer: int) -> np.ndarray:
        offset, dtype, shape, type = where[names[role].format(layer) + ".weight"]
        size = int(np.prod(shape))
        data = np.fromfile(path, dtype, size, offset=offset).reshape(shape)
        return dequantize(data, type)

    return Files(conventions, tensor)


def litgpt(directory: Path) -> Files:
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
    q_rows, kv_rows = (config[k] * config["head_size"] for k in ("n_head", "n_query_groups"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> dict:
        return torch.load(directory / "lit_model.pth", mmap=True, weights_only=True)

    def tensor(role: str, layer: int) -> np.ndarray:
        matrix = opened(layer)[names[role].format(layer) + ".weight"]
        if role in ("q", "k", "v"):
            matrix = matrix.split([q_rows, kv_rows, kv_rows])["qkv".index(role)]
        return matrix.float().numpy()

    conventions = Conventions(
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        kv_heads=config["n_query_groups"],
        norm_eps=config["norm_eps"],
        rope_theta=config["rope_base"],
        q_pairs=False,
        k_pairs=False,
    )
    return Files(conventions, tensor)
