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
    differences,
    sentencepiece_encoder,
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


def open_files(directory: Path, source: Weights) -> Files:
    """Open an export of `source`. Its tensors raise Unreadable."""
    import torch  # pyright: ignore[reportMissingImports]

    params, cfg = json.loads((directory / "params.json").read_text()), source.cfg
    paths = sorted(directory.glob("consolidated.*.pth"))

    @functools.lru_cache(maxsize=1)  # what is read of a mapped file stays in memory
    def opened(layer: int) -> list[dict]:
        return [torch.load(path, mmap=True, weights_only=True) for path in paths]

    def tensor(role: str, layer: int) -> Tensor:
        name = NAMES[role].format(layer) + ".weight"
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
    encode = sentencepiece_encoder((directory / "tokenizer.model").read_bytes())
    return Files(conventions, tensor, differences("params.json", fields), encode)
