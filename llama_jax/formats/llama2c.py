"""llama2.c's first format: a .bin file of seven integers and fp32 arrays, layers stacked."""

import math
import struct
from pathlib import Path

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats.weights import TYPES, Place, Source, Tensor, from_pairs, shapes

HEADER = struct.Struct("<7i")
ORDER = (
    *("embed_VD", "layers/attn_norm/scale_D"),
    *("layers/attn/wq_DGRK", "layers/attn/wk_DGK", "layers/attn/wv_DGK", "layers/attn/wo_GRKD"),
    *("layers/mlp_norm/scale_D", "layers/mlp/w_gate_DF", "layers/mlp/w_down_FD"),
    *("layers/mlp/w_up_DF", "final_norm/scale_D"),
)


def read(file: Path) -> Source:
    """The norm eps is 1e-5 in all of llama2.c's models, and not in the file. Raises UserError."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        head = opened.read(HEADER.size)
    if len(head) < HEADER.size:
        raise UserError(
            f"{file}: is truncated: {size} bytes are less than the header's {HEADER.size}"
        )
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = HEADER.unpack(head)
    if min(dim, hidden, layers, heads, kv_heads, seq_len) < 1 or vocab == 0 or dim % heads:
        raise UserError(f"{file}: is no model of llama2.c: its header says {HEADER.unpack(head)}")
    cfg = ModelConfig(
        num_layers=layers,
        embed_dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        mlp_dim_override=hidden,
        vocab_size=abs(vocab),
        norm_eps=1e-5,
        tie_embeddings=vocab > 0,  # which is how the file says it
    )
    tensors: dict[Place, Tensor] = {}
    offset = HEADER.size

    def add(name: str, layer: int | None) -> None:
        nonlocal offset
        tensor = Tensor(file, TYPES["f32"], shapes(cfg)[name], offset)
        tensors[Place(name, layer)] = tensor
        offset += 4 * math.prod(tensor.shape)
        if offset > size:
            raise UserError(
                f"{file}: is truncated: tensor {name} ends at byte {offset}, the file at {size}"
            )

    for name in ORDER:
        for layer in range(layers) if name.startswith("layers/") else [None]:
            add(name, layer)
    offset += 4 * seq_len * cfg.head_dim  # tables of sines and cosines
    if not cfg.tie_embeddings:
        add("lm_head_DV", None)
    if offset != size:
        raise UserError(f"{file}: has {size} bytes, and its header asks for {offset}")

    def matrix(place: Place) -> np.ndarray:
        return from_pairs(tensors[place].read(), place.name, cfg)

    return Source(
        cfg=cfg,
        seq_len=seq_len,
        type="f32",
        tokenizer=lambda: None,
        matrix=matrix,
        where=lambda place: f"{file}: tensor {place.name}",
    )
