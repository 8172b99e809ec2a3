"""litgpt's directory, read by PyTorch."""

import functools
from pathlib import Path

import yaml

from llama_jax.formats.proofs import hf
from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    differences,
    extra,
    extra_files,
    fast_tokenizer,
    names_of,
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


def open_files(directory: Path, source: Weights, dtype: str) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    import torch  # pyright: ignore[reportMissingImports]

    cfg, file = source.cfg, directory / "lit_model.pth"
    of_torch = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    q_rows, kv_rows = cfg.num_heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> dict:
        return torch.load(file, mmap=True, weights_only=True)

    def tensor(role: str, layer: int) -> Tensor:
        name = NAMES[role].format(layer) + ".weight"
        if name not in opened(layer):
            raise Unreadable(f"{name}: is not in {file.name}")
        matrix = opened(layer)[name]
        if matrix.dtype != of_torch:
            raise Unreadable(f"{name}: is of type {matrix.dtype}, expected {of_torch}")
        if role in ("q", "k", "v"):
            if len(matrix) != q_rows + 2 * kv_rows:
                raise Unreadable(f"{name}: has {len(matrix)} rows, not {q_rows + 2 * kv_rows}")
            matrix = matrix.split([q_rows, kv_rows, kv_rows])["qkv".index(role)]
        return Tensor(name, tuple(matrix.shape), lambda rows: matrix[rows].float().numpy())

    expected = {
        "name": f"llama_jax-{source.name}",
        "block_size": source.seq_len,
        "vocab_size": cfg.vocab_size,
        "padded_vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "n_embd": cfg.embed_dim,
        "n_head": cfg.num_heads,
        "n_query_groups": cfg.kv_heads,
        "head_size": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "norm_class_name": "RMSNorm",
        "norm_eps": cfg.norm_eps,
        "mlp_class_name": "LLaMAMLP",
        "parallel_residual": False,
        "bias": False,
        "rotary_percentage": 1.0,
        "rope_base": cfg.rope_theta,
    }
    config = yaml.safe_load((directory / "model_config.yaml").read_text())
    conventions = Conventions(
        norm_eps=float(config["norm_eps"]),
        rope_theta=float(config["rope_base"]),
        q_pairs=False,
        k_pairs=False,
    )
    found = differences("model_config.yaml", config, expected)
    found += hf.text_differences(directory, source, dtype)
    found += extra_files(directory, {*hf.text_files(source), "model_config.yaml", file.name})
    names = names_of(NAMES, cfg) | {NAMES["head"] + ".weight"}  # also of a tied one
    found += extra("tensor", file.name, opened(0), names)
    return Files(conventions, tensor, found, *fast_tokenizer(directory))
