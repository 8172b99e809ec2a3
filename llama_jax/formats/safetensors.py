"""Safetensors files: a JSON header that says where each tensor lies, then their bytes."""

import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from llama_jax.config import UserError
from llama_jax.formats.parameters import DTYPES
from llama_jax.formats.weights import StoredArray

CODES = {"f32": "F32", "bf16": "BF16", "f16": "F16"}  # the header's names of dtypes


def write(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterable[np.ndarray]
) -> None:
    """Write tensors of one dtype, which come one by one in the order of their names in `shapes`."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors:
            values.tofile(file)


def read(file: Path) -> dict[str, StoredArray]:
    """Return the tensors of a file, by name. Raise UserError for what the package refuses."""
    from safetensors import SafetensorError, safe_open

    dtypes = {code: dtype for dtype, code in CODES.items()}
    tensors = {}
    try:
        with safe_open(file, "np") as opened:
            for name in opened.keys():
                tensor = opened.get_slice(name)
                code, shape = tensor.get_dtype(), tuple(tensor.get_shape())
                if code not in dtypes:
                    raise UserError(
                        f"{file}: tensor {name} is of type {code}, expected {', '.join(dtypes)}"
                    )
                read = partial(_read_tensor, file, name)
                tensors[name] = StoredArray(file, dtypes[code], shape, read)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{file}: is damaged or not safetensors: {e}") from e
    return tensors


def _read_tensor(file: Path, name: str) -> np.ndarray:
    """Return one tensor as fp32. A file that is closed keeps no memory."""
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return opened.get_tensor(name).astype(np.float32, copy=False)
