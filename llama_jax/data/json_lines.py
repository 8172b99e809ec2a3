"""JSON lines and plain text, as they are or compressed, read a line at a time."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import typing
from collections.abc import Iterator

from etils import epath

from llama_jax.data import columns


def _open_zstd(raw: typing.BinaryIO) -> typing.Any:
    import pyarrow  # which only the verbs that read a corpus need

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))  # pyright: ignore[reportArgumentType]


DECOMPRESS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _open_zstd}


def read(path: epath.Path, column: str) -> Iterator[columns.Row]:
    """Yield a row for each line, a blank one for a blank line.

    Raises ValueError at the first that is wrong; OSError, EOFError, lzma.LZMAError or zlib.error if
    the file is damaged.
    """
    with open_plain(path) as lines:
        for line in lines:
            if not line.strip():
                yield "", None
                continue
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError(f"the line is a {type(row).__name__}, no object of columns")
            yield columns.row_of(row, column)


def read_text(path: epath.Path, column: str) -> Iterator[columns.Row]:
    """Yield the one row that a text file is. Raises as read does."""
    with open_plain(path) as file:
        yield file.read().decode("utf-8"), path.name


@contextlib.contextmanager
def open_plain(path: epath.Path) -> Iterator[typing.Any]:
    """Open what a file is when it is decompressed."""
    with path.open("rb") as raw:
        if path.suffix not in DECOMPRESS:
            yield raw
            return
        if not raw.read(1):
            raise EOFError("the file is empty")  # which gzip takes for an end
        raw.seek(0)
        with DECOMPRESS[path.suffix](raw) as plain:
            yield plain
