"""llama2.c's first format: a .bin file of seven integers and fp32 arrays, layers stacked."""

import math
import struct
from pathlib import Path

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    DTYPES,
    NAMES,
    OF_LAYERS,
    Parameter,
    deinterleave_rope,
    shapes,
)
from llama_jax.formats.weights import StoredArray, Weights

HEADER = struct.Struct("<7i")
ORDER = (
    *("embedding", "attn_norm", "q", "k", "v", "o"),
    *("mlp_norm", "gate", "down", "up", "final_norm"),
)


def is_it(path: Path) -> bool:
    return path.suffix == ".bin" and path.is_file()


def read(file: Path) -> Weights:
    """Open a model. The norm eps is 1e-5 in all of llama2.c's, and not in the file. Raise
    UserError."""
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
    tensors: dict[Parameter, StoredArray] = {}
    offset = HEADER.size

    def add(role: str, layer: int | None = None) -> None:
        nonlocal offset
        tensor = StoredArray(file, DTYPES["f32"], shapes(cfg)[role], offset)
        tensors[Parameter(role, layer)] = tensor
        offset += 4 * math.prod(tensor.shape)
        if offset > size:
            raise UserError(
                f"{file}: is truncated: tensor {NAMES[role]} ends at byte {offset}, the file at "
                f"{size}"
            )

    for role in ORDER:
        for layer in range(layers) if role in OF_LAYERS else [None]:
            add(role, layer)
    offset += 4 * seq_len * cfg.head_dim  # tables of sines and cosines
    if not cfg.tie_embeddings:
        add("head")
    if offset != size:
        raise UserError(f"{file}: has {size} bytes, and its header asks for {offset}")

    def matrix(parameter: Parameter) -> np.ndarray:
        return deinterleave_rope(tensors[parameter].read(), parameter.role, cfg)

    return Weights(
        name=file.stem,
        cfg=cfg,
        seq_len=seq_len,
        dtype="f32",
        matrix=matrix,
        where=lambda parameter: f"{file}: tensor {NAMES[parameter.role]}",
        read_tokenizer=lambda: None,
        provenance={"source": str(file)},
    )


FORMAT = Format(is_it=is_it, read=read)
