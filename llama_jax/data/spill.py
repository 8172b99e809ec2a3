"""Arrays kept in a file without a name until they are read again, in another order.

It lies where TMPDIR says, and is gone with the process. Memory: 16 bytes an array.
"""

import array
import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np


class Spill:
    """One-dimensional arrays of one type, numbered from 0 in the order they came in."""

    def __init__(self, dtype: np.dtype):
        self.dtype, self.file = dtype, tempfile.TemporaryFile()
        self.ends = array.array("Q", [0])  # in items

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def append(self, values: np.ndarray) -> None:
        self.file.write(values.astype(self.dtype).data)
        self.ends.append(self.ends[-1] + len(values))

    def lengths(self) -> np.ndarray:
        """Return uint64 [n]."""
        return np.diff(np.frombuffer(self.ends, np.uint64))

    def pieces(self, order: Iterable[int], size: int) -> Iterator[np.ndarray]:
        """Yield the arrays of `order` end to end, in pieces of `size` items but for the last.

        A piece is only good until the next one is asked for.
        """
        self.file.flush()
        piece, filled, width = np.empty(size, self.dtype), 0, self.dtype.itemsize
        for number in order:
            start, end = self.ends[number], self.ends[number + 1]
            while start < end:
                count = min(end - start, size - filled)
                into = piece[filled : filled + count].data.cast("B")
                if os.preadv(self.file.fileno(), [into], start * width) != len(into):
                    raise OSError("a temporary file is cut short")
                start, filled = start + count, filled + count
                if filled == size:
                    yield piece
                    filled = 0
        if filled:
            yield piece[:filled]
