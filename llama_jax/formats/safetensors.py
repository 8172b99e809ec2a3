"""Safetensors files: a JSON header that says where each tensor lies, then their bytes."""

import json
import math
from collections.abc import Iterable
from operator import index
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
    """Return where in a file its tensors are, by name. Raise UserError."""
    dtypes = {code: DTYPES[dtype] for dtype, code in CODES.items()}
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(min(length, size))
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {}
        for name, entry in header.items():
            start, end = map(index, entry["data_offsets"])
            entries[name] = str(entry["dtype"]), tuple(map(index, entry["shape"])), start, end
    except (ValueError, AttributeError, KeyError, TypeError) as e:
        raise UserError(f"{file}: is truncated or not safetensors, by its header") from e
    tensors = {}
    for name, (dtype, shape, start, end) in entries.items():
        if dtype not in dtypes:
            raise UserError(
                f"{file}: tensor {name} is of type {dtype}, expected {', '.join(dtypes)}"
            )
        num_bytes = dtypes[dtype].itemsize * math.prod(shape)
        if not 0 <= start <= end or end - start != num_bytes:
            raise UserError(
                f"{file}: tensor {name} has data_offsets {start} to {end}, expected {num_bytes} "
                f"bytes for shape {shape}"
            )
        if 8 + length + end > size:
            raise UserError(
                f"{file}: is truncated: tensor {name} ends at byte {8 + length + end}, the file at "
                f"{size}"
            )
        tensors[name] = StoredArray(file, dtypes[dtype], shape, 8 + length + start)
    return tensors
