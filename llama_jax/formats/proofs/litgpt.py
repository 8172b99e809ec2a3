"""litgpt's directory, read by PyTorch."""

import functools
from pathlib import Path

import yaml

from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    differences,
    fast_tokenizer,
)
from llama_jax.formats.weights import Weights

NAMES = {
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


def open_files(directory: Path, source: Weights) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    import torch  # pyright: ignore[reportMissingImports]

    config = yaml.safe_load((directory / "model_config.yaml").read_text())
    cfg, file = source.cfg, directory / "lit_model.pth"
    q_rows, kv_rows = (config[k] * config["head_size"] for k in ("n_head", "n_query_groups"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> dict:
        return torch.load(file, mmap=True, weights_only=True)

    def tensor(role: str, layer: int) -> Tensor:
        name = NAMES[role].format(layer) + ".weight"
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
    found = differences("model_config.yaml", fields)
    return Files(conventions, tensor, found, fast_tokenizer(directory))
