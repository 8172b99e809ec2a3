"""Meta's release, read by PyTorch."""

import functools
import json
from pathlib import Path

import numpy as np

from llama_jax.formats.proofs.files import (
    Conventions,
    Files,
    Tensor,
    Unreadable,
    check_tokenizer,
    differences,
    extra,
    extra_files,
    names_of,
    sentencepiece_model,
)
from llama_jax.formats.weights import Weights

NAMES = {
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


def open_files(directory: Path, source: Weights, dtype: str) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    import torch  # pyright: ignore[reportMissingImports]

    params, cfg = json.loads((directory / "params.json").read_text()), source.cfg
    paths = sorted(directory.glob("consolidated.*.pth"))
    of_torch = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> list[dict]:
        return [torch.load(path, mmap=True, weights_only=True) for path in paths]

    def tensor(role: str, layer: int) -> Tensor:
        name = NAMES[role].format(layer) + ".weight"
        for path, shard in zip(paths, opened(layer), strict=True):
            if name not in shard:
                raise Unreadable(f"{name}: is not in {path.name}")
            if shard[name].dtype != of_torch:
                raise Unreadable(f"{name}: is of type {shard[name].dtype}, expected {of_torch}")
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
    hidden = int(params.pop("ffn_dim_multiplier", 1) * hidden)
    multiple = params.pop("multiple_of")
    width = "the width by multiple_of and ffn_dim_multiplier"
    params[width] = -(-hidden // multiple) * multiple
    params.setdefault("n_kv_heads", params["n_heads"])
    params.setdefault("rope_theta", 10_000.0)
    expected = {
        "dim": cfg.embed_dim,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.num_heads,
        "n_kv_heads": cfg.kv_heads,
        "vocab_size": cfg.vocab_size,
        width: cfg.mlp_dim,
        "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
    }
    conventions = Conventions(
        norm_eps=float(params["norm_eps"]),
        rope_theta=float(params["rope_theta"]),
        q_pairs=True,
        k_pairs=True,
    )
    check_tokenizer(directory, source)
    found = differences("params.json", params, expected)
    files = {path.name: set(shard) for path, shard in zip(paths, opened(0), strict=True)}
    found += extra_files(directory, {*files, "params.json", "tokenizer.model"})
    names = names_of(NAMES, cfg) | {NAMES["head"] + ".weight"}  # also of a tied one
    for file, here in files.items():
        found += extra("tensor", file, here, names)
    model = sentencepiece_model((directory / "tokenizer.model").read_bytes())
    return Files(conventions, tensor, found, *model)
