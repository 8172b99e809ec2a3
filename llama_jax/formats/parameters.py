"""The matrices of a LLaMA decoder by the parts they play, and our parameters that hold them.

A role is one of the twelve names in NAMES. Every format keeps a matrix as torch does, [out, in],
and so do all functions that hand one on; our parameters have their input axes first.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.model import param_shapes

# role -> our parameter's name, in the order in which files hold them.
NAMES = {
    "embedding": "embed_VD",
    "attn_norm": "layers/attn_norm/scale_D",
    "q": "layers/attn/wq_DGRK",
    "k": "layers/attn/wk_DGK",
    "v": "layers/attn/wv_DGK",
    "o": "layers/attn/wo_GRKD",
    "mlp_norm": "layers/mlp_norm/scale_D",
    "gate": "layers/mlp/w_gate_DF",
    "up": "layers/mlp/w_up_DF",
    "down": "layers/mlp/w_down_FD",
    "final_norm": "final_norm/scale_D",
    "head": "lm_head_DV",
}
OF_LAYERS = tuple(role for role, name in NAMES.items() if name.startswith("layers/"))
DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(jnp.bfloat16), "f16": np.dtype(np.float16)}


class Parameter(NamedTuple):
    """One matrix of a model. layer: None for those outside the layers."""

    role: str
    layer: int | None = None


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each role's matrix, [out, in] or [D], in a file's order."""
    D, F, V = cfg.embed_dim, cfg.mlp_dim, cfg.vocab_size
    q, kv = cfg.num_heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    head = {} if cfg.tie_embeddings else {"head": (V, D)}
    return {
        "embedding": (V, D),
        "attn_norm": (D,),
        "q": (q, D),
        "k": (kv, D),
        "v": (kv, D),
        "o": (D, q),
        "mlp_norm": (D,),
        "gate": (F, D),
        "up": (F, D),
        "down": (D, F),
        "final_norm": (D,),
        **head,
    }


def native_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each role's parameter in our checkpoints, stacked along the layers."""
    G, K = cfg.kv_heads, cfg.head_dim
    sizes = dict(D=cfg.embed_dim, F=cfg.mlp_dim, V=cfg.vocab_size, G=G, K=K, R=cfg.num_heads // G)
    return {
        role: (cfg.num_layers,) * (role in OF_LAYERS)
        + tuple(sizes[letter] for letter in NAMES[role].rpartition("_")[2])
        for role in shapes(cfg)
    }


def check_known(cfg: ModelConfig) -> None:
    """Raise UserError, naming the parameter, unless those of model.py are the roles'."""
    known = {NAMES[role]: shape for role, shape in native_shapes(cfg).items()}
    own = param_shapes(cfg)
    for name in sorted(known.keys() | own.keys()):
        if known.get(name) != own.get(name):
            raise UserError(
                f"model: parameter {name} is {own.get(name, 'not')} in llama_jax/model.py and "
                f"{known.get(name, 'not')} in the LLaMA that other frameworks read, see "
                "llama_jax/formats/parameters.py; a changed model cannot be exported or imported"
            )


def num_values(cfg: ModelConfig) -> int:
    return sum(map(math.prod, native_shapes(cfg).values()))


def parameters(cfg: ModelConfig) -> Iterator[Parameter]:
    """Yield every matrix of the model, in a file's order."""
    first, *last = (Parameter(role) for role in shapes(cfg) if role not in OF_LAYERS)
    yield first
    for layer in range(cfg.num_layers):
        yield from (Parameter(role, layer) for role in OF_LAYERS)
    yield from last


def name_in(template: dict[str, str], parameter: Parameter) -> str:
    """Return a format's name of a matrix. template: role -> name, with {} for the layer."""
    return template[parameter.role].format(parameter.layer)


def names_in(template: dict[str, str], cfg: ModelConfig) -> dict[str, Parameter]:
    """Return every matrix of the model under a format's name of it, see name_in."""
    return {name_in(template, parameter): parameter for parameter in parameters(cfg)}


def to_matrix(values: np.ndarray, role: str, cfg: ModelConfig) -> np.ndarray:
    """Return one layer of our parameter as [out, in]. A view."""
    if role == "embedding" or values.ndim == 1:
        return values
    num_out, num_in = shapes(cfg)[role]
    return values.reshape(num_in, num_out).T


def from_matrix(matrix: np.ndarray, role: str, cfg: ModelConfig) -> np.ndarray:
    """Undo to_matrix. A view."""
    if role == "embedding" or matrix.ndim == 1:
        return matrix
    shape = native_shapes(cfg)[role]
    return matrix.T.reshape(shape[1:] if role in OF_LAYERS else shape)


# The rotary embedding pairs element i of a head with i + K/2 in our checkpoints and in Hugging
# Face's and litgpt's files; in Meta's, GGUF's and llama2.c's, element 2i with 2i + 1.


def interleave_rope(matrix: np.ndarray, role: str, cfg: ModelConfig) -> np.ndarray:
    """Return a query or key matrix [heads * K, in] with its rows in the order of Meta's layout,
    and any other matrix as it is."""
    if role not in ("q", "k"):
        return matrix
    split = matrix.reshape(-1, 2, cfg.head_dim // 2, matrix.shape[1])
    return split.swapaxes(1, 2).reshape(matrix.shape)


def deinterleave_rope(matrix: np.ndarray, role: str, cfg: ModelConfig) -> np.ndarray:
    """Undo interleave_rope."""
    if role not in ("q", "k"):
        return matrix
    split = matrix.reshape(-1, cfg.head_dim // 2, 2, matrix.shape[1])
    return split.swapaxes(1, 2).reshape(matrix.shape)


def cast(matrix: np.ndarray, dtype: str, parameter: Parameter) -> np.ndarray:
    """Return a contiguous array of one of DTYPES. Raise UserError if it cannot hold a value."""
    with np.errstate(over="ignore"):
        done = np.ascontiguousarray(matrix.astype(DTYPES[dtype], order="C"))
    if dtype == "f16" and not np.isfinite(done).all():
        layer = parameter.layer
        where = f"layer {layer}" if layer is not None else "the model"
        raise UserError(
            f"--type: {NAMES[parameter.role]} of {where} has a value beyond the "
            f"{np.finfo('f2').max:g} of f16; expected bf16 or f32"
        )
    return done
