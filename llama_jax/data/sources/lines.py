"""The lines of a dump, compressed or not, none of which may be longer than memory allows."""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llama_jax.data.sources.source import Bad

LONGEST_LINE = 2**25  # bytes; a book of 10 MB is one line of JSON


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed as its ending says: .gz, .bz2, .xz, .zst, or none.

    Raises EOFError for an empty file, which no dump is.
    """
    if path.stat().st_size == 0:
        raise EOFError("the file is empty")
    if path.suffix == ".zst":
        import zstandard  # pyright: ignore[reportMissingImports]

        return zstandard.open(path, "rb")
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def lines(file: IO[bytes]) -> Iterator[tuple[int, str] | Bad]:
    """Yield each line with its number, from 1 on, and Bad for one that is too long or not UTF-8."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            num_bytes = len(line)
            while not line.endswith(b"\n") and (line := file.readline(2**20)):
                num_bytes += len(line)
            yield Bad(f"line {number}", f"has {num_bytes:,} bytes, more than {LONGEST_LINE:,}")
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError as e:
            yield Bad(f"line {number}", f"is not UTF-8: {e.reason} at byte {e.start}")
