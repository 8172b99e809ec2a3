"""llama2.c's first format: a .bin file of seven integers and fp32 arrays, layers stacked."""

import math
import struct
from pathlib import Path

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    NAMES,
    OF_LAYERS,
    Parameter,
    deinterleave_rope,
    num_values,
    shapes,
)
from llama_jax.formats.weights import Weights

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
    tables = seq_len * cfg.head_dim  # of sines and cosines
    needed = HEADER.size + 4 * (num_values(cfg) + tables)
    if needed != size:
        cut = "is truncated: " if needed > size else ""
        raise UserError(f"{file}: {cut}has {size} bytes, and its header asks for {needed}")
    starts, end = {}, HEADER.size
    for role in (*ORDER, "head"):
        starts[role] = end + 4 * tables * (role == "head")
        end += 4 * math.prod(shapes(cfg).get(role, ())) * (layers if role in OF_LAYERS else 1)

    def matrix(parameter: Parameter) -> np.ndarray:
        role, layer = parameter
        shape = shapes(cfg)[role]
        start = starts[role] + 4 * math.prod(shape) * (layer or 0)
        values = np.fromfile(file, np.float32, math.prod(shape), offset=start)
        return deinterleave_rope(values.reshape(shape), role, cfg)

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
