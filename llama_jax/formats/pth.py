"""PyTorch's .pth files, written tensor by tensor."""

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import UserError
from llama_jax.formats.parameters import DTYPES
from llama_jax.formats.weights import StoredArray, printable


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
    """Return the tensors of a file, by name. Nothing but tensors is ever unpickled.

    Raise UserError.
    """
    torch = import_torch()
    records = _records(path)
    try:
        values = _load(path)
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
        if not isinstance(name, str):
            raise UserError(f"{path}: holds {printable(name)}, expected tensors by name")
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, expected a tensor")
        if value.dtype not in dtypes:
            raise UserError(
                f"{path}: tensor {name} is of type {value.dtype}, expected "
                f"{', '.join(map(str, dtypes))}"
            )
        if value.layout != torch.strided or value.device.type != "cpu":
            raise UserError(f"{path}: tensor {name} is without values, or sparse")
        if not value.is_contiguous():
            raise UserError(f"{path}: tensor {name} is not stored row by row")
        read = partial(_read_tensor, path, name)
        tensors[name] = StoredArray(path, dtypes[value.dtype], tuple(value.shape), read)
    _check_sizes(path, records, values)
    return tensors


def _load(path: Path) -> Any:
    """Return what torch reads, as a mapping of the file: its values take memory once they are
    looked at, for as long as one of the tensors is there."""
    return import_torch().load(path, map_location="cpu", mmap=True, weights_only=True)


def _read_tensor(path: Path, name: str) -> np.ndarray:
    return _load(path)[name].detach().float().numpy()


def _records(path: Path) -> list[zipfile.ZipInfo]:
    """Return the records of the tensors' values, as they lie in the file.

    Raise UserError for what torch maps wrong, without a word: records that are compressed, or
    twice there, or of machines with the other order of bytes.
    """
    again = "load it with torch, and save it again"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for e in entries:
                if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size:
                    raise UserError(f"{path}: its record {e.filename} is compressed; {again}")
                if e.filename.endswith("/byteorder") and archive.read(e) != b"little":
                    raise UserError(f"{path}: its numbers are big-endian; {again} on this machine")
    except UserError:
        raise
    except Exception as e:  # zipfile has many kinds, by what is damaged
        raise UserError(
            f"{path}: is truncated, or not the zip file that torch.save writes since PyTorch 1.6; "
            f"expected that one: {again}"
        ) from e
    if len({entry.filename for entry in entries}) < len(entries):
        raise UserError(f"{path}: holds two records of one name; {again}")
    data = [e for e in entries if e.filename.partition("/")[2].startswith("data/") and e.file_size]
    return sorted(data, key=lambda entry: entry.header_offset)


def _check_sizes(path: Path, records: list[zipfile.ZipInfo], tensors: dict[str, Any]) -> None:
    """Raise UserError unless each record is as long as the tensors in it need, which torch does not
    look at: it would go on reading in the next."""
    needed = {}  # by place, since tensors may share one
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.nbytes():
            needed[storage.data_ptr()] = name, storage.nbytes()
    if len(needed) != len(records):
        raise UserError(f"{path}: has {len(records)} records for the values of {len(needed)}")
    for record, place in zip(records, sorted(needed), strict=True):
        name, num_bytes = needed[place]
        if record.file_size != num_bytes:
            raise UserError(
                f"{path}: tensor {name} takes {num_bytes} bytes, and its record has "
                f"{record.file_size}"
            )
