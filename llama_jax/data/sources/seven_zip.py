"""A file inside a .7z archive, which can only be written out, never read piece by piece."""

import tempfile
from pathlib import Path
from typing import IO


def open_member(path: Path, name: str) -> IO[bytes]:
    """Open the file of this name in an archive, decompressed into a temporary file without a name.

    Nothing else of the archive is written to disk. Raises ValueError if it is encrypted or has no
    such file, and what py7zr raises for a damaged one.
    """
    import py7zr  # pyright: ignore[reportMissingImports]
    from py7zr.io import Py7zIO, WriterFactory  # pyright: ignore[reportMissingImports]

    content = tempfile.TemporaryFile()

    class Writer(Py7zIO):
        def write(self, s: bytes | bytearray) -> int:
            return content.write(s)

        def read(self, size: int | None = None) -> bytes:
            return content.read(-1 if size is None else size)

        def seek(self, offset: int, whence: int = 0) -> int:
            return content.seek(offset, whence)

        def flush(self) -> None:
            content.flush()

        def size(self) -> int:
            return content.tell()

    class Factory(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            return Writer()

    with py7zr.SevenZipFile(path) as archive:
        if archive.needs_password():
            raise ValueError("the archive is encrypted; decrypt it first")
        if name not in archive.getnames():
            raise ValueError(f"the archive holds no {name}")
        archive.extract(targets=[name], factory=Factory())
    content.seek(0)
    return content
