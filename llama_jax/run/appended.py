"""A file that grows, on a disk that may be full for a while."""

from etils import epath

from llama_jax.run.workdir import naming


class Appended:
    """Appends to a file. What the disk does not take is kept, and goes before what comes next."""

    def __init__(self, path: epath.Path):
        """Open it, or make it. Raises OSError."""
        self.path, self.unwritten = path, bytearray()
        self.file = open(path, "ab", buffering=0)

    def write(self, data: str | bytes) -> None:
        self.unwritten += data.encode() if isinstance(data, str) else data

    def flush(self) -> None:
        """Write what was given. Raises OSError, and keeps what is left."""
        with naming(self.path):
            while self.unwritten:
                written = self.file.write(self.unwritten)
                del self.unwritten[: written or 0]

    def close(self) -> None:
        """Write what is left, and give the file back. Raises OSError."""
        try:
            self.flush()
        finally:
            self.file.close()


class EventFiles:
    """How tensorboardX opens files, for which it names them file:PATH."""

    @staticmethod
    def open(path: str) -> Appended:
        return Appended(epath.Path(path.removeprefix("file:")))
