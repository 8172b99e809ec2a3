"""PyTorch's .pth files, written tensor by tensor."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import UserError
from llama_jax.formats.parameters import DTYPES
from llama_jax.formats.weights import StoredArray


def import_torch() -> Any:
    """Return PyTorch. Raise UserError if it is not installed: only .pth files need it."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise UserError(
            "PyTorch is needed for .pth files and is not installed; pip install torch"
        ) from e
    return torch


class Writer:
    """A file that torch.load reads, of tensors of one type."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]], dtype: str):
        """Make the file, with room for the tensors. shapes: of each, by name."""
        torch = import_torch()
        of_torch = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
        with torch._subclasses.FakeTensorMode():
            tensors = {name: torch.empty(shape, dtype=of_torch) for name, shape in shapes.items()}
        # Makes the whole file but leaves out the values, which are a hole in it until then.
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(tensors, path)
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # PyTorch numbers the data of tensors as it meets them.
        self._entries = {name: entries[f"data/{i}"] for i, name in enumerate(shapes)}
        self._checksums: dict[str, int] = {}
        self._shapes, self._dtype = shapes, DTYPES[dtype]
        self._file = open(path, "r+b")

    def write(self, name: str, values: np.ndarray) -> None:
        assert values.shape == self._shapes[name] and values.dtype == self._dtype
        start = self._entries[name].header_offset
        self._file.seek(start)
        header = self._file.read(30)
        lengths = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        self._file.seek(start + 30 + sum(lengths))
        data = np.ascontiguousarray(values).view(np.uint8).reshape(-1).data
        self._file.write(data)
        self._checksums[self._entries[name].filename] = zlib.crc32(data)

    def close(self) -> None:
        """Put the checksums in, which PyTorch does not look at but zip tools do."""
        with zipfile.ZipFile(self._file) as archive:
            entries, position = archive.infolist(), archive.start_dir
        for entry in entries:
            if entry.filename in self._checksums:
                self._file.seek(position + 16)
                self._file.write(self._checksums[entry.filename].to_bytes(4, "little"))
            position += 46 + len(entry.filename.encode()) + len(entry.extra) + len(entry.comment)
        self._file.close()


def read(path: Path) -> dict[str, StoredArray]:
    """Return where in a file its tensors are, by name. Nothing but tensors is ever unpickled.

    Raise UserError.
    """
    torch = import_torch()
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: is truncated, or not the zip file that torch.save writes since PyTorch 1.6; "
            "expected that one: load it with torch, and save it again"
        )
    try:
        with (
            torch._subclasses.FakeTensorMode()
        ):  # which leaves the values in the file and says where
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # pickle, zip and torch each have kinds of their own
        reason = str(e).strip().splitlines()[0] if str(e) else type(e).__name__
        raise UserError(
            f"{path}: cannot be read as tensors; it is damaged or holds other things: {reason}"
        ) from e
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, expected tensors by name")
    dtypes = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    tensors = {}
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, expected a tensor")
        if value.dtype not in dtypes:
            raise UserError(
                f"{path}: tensor {name} is of type {value.dtype}, expected "
                f"{', '.join(map(str, dtypes))}"
            )
        if not value.is_contiguous():
            raise UserError(f"{path}: tensor {name} is not stored row by row")
        start = value.untyped_storage()._checkpoint_offset
        start += value.storage_offset() * value.element_size()
        tensors[name] = StoredArray(path, DTYPES[dtypes[value.dtype]], tuple(value.shape), start)
    return tensors
