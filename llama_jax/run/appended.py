"""A file that grows line by line, on a disk that may be full for a while."""

from etils import epath

from llama_jax.run.workdir import naming


class Appended:
    """Appends to a file. What could not be written is kept, and goes before what comes next."""

    def __init__(self, path: epath.Path):
        """Open it, or make it. Raises OSError."""
        self.path, self.unwritten = path, b""
        self.file = open(path, "ab", buffering=0)

    def write(self, text: str) -> None:
        """Write so that a reader finds it at once. Raises OSError, and keeps it."""
        self.unwritten += text.encode()
        self.flush()

    def flush(self) -> None:
        """Write what is left. Raises OSError, and keeps it."""
        with naming(self.path):
            while self.unwritten:
                written = self.file.write(self.unwritten)
                self.unwritten = self.unwritten[written or 0 :]

    def close(self) -> None:
        """Write what is left, and give the file back. Raises OSError."""
        try:
            self.flush()
        finally:
            self.file.close()
