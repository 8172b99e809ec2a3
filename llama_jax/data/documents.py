"""The documents of a corpus, wherever listing.py finds them and whatever they are stored as.

Where a source has no validation files, a document is held out if the SHA-256 of its text, as a
fraction of the largest, is below data.held_out: so no text is both trained on and held out.
"""

import dataclasses
import hashlib
import json
import lzma
import os
import re
import typing
import zlib
from collections.abc import Callable, Iterator

from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.data import columnar, columns, json_lines, listing, tfrecords
from llama_jax.place import in_bucket

TEXTS = 1000  # text files, of a document each, that become one shard


class Document(typing.NamedTuple):
    text: str  # "" of a blank one
    id: str  # the row's own, see columns.ID_COLUMNS, or else FILE:ROW, counted from 1


@dataclasses.dataclass(frozen=True)
class Part:
    """What becomes one shard of the token store: a file of a source, or up to TEXTS text files."""

    paths: tuple[epath.Path, ...]
    column: str
    split: str
    held_out: float | None  # None: all that is in the files is of this split

    @property
    def name(self) -> str:
        return self.paths[0].name

    @property
    def directory(self) -> epath.Path:
        return self.paths[0].parent

    def num_bytes(self) -> int:
        return sum(path.stat().length for path in self.paths)

    def sha256(self) -> str:
        """Return a digest of what is read. Raises UserError for a file that cannot be."""
        digests = [_sha256(path) for path in self.paths]
        if len(digests) == 1 and self.column == "text" and self.held_out is None:
            return digests[0]
        of_split = [self.split, self.held_out] if self.held_out else []
        read = json.dumps([digests, self.column, *of_split])
        return hashlib.sha256(read.encode()).hexdigest()


def parts(data: DataConfig, source: str, split: str) -> list[Part]:
    """Return the parts of one split of a source, by name.

    Raises UserError if there are none, and for a file of a kind that is not read.
    """
    files, held_out = listing.files(data, source, "validation"), None
    if not files:
        held_out = data.held_out
    if not files or split == "train":
        files = listing.files(data, source, "train")
    column = next((column for name, _, column in data.sources if name == source), "text")
    texts = [path for path in files if _kind(path) == "txt"]
    lots = [(path,) for path in files if _kind(path) != "txt"]
    lots += [tuple(texts[k : k + TEXTS]) for k in range(0, len(texts), TEXTS)]
    return [Part(lot, column, split, held_out) for lot in lots]


def read(part: Part) -> Iterator[Document]:
    """Yield the documents of a part, blank ones too. Raises UserError naming file and row."""
    return (document for document, _ in read_places(part))


def read_places(part: Part) -> Iterator[tuple[Document, str]]:
    """Yield the documents of a part and where each is, FILE:ROW. Raises as read()."""
    for path in part.paths:
        for number, document in enumerate(_read_file(path, part.column), 1):
            if part.held_out is None or part.split == split_of(document.text, part.held_out):
                yield document, f"{path.name}:{number}"


def split_of(text: str, held_out: float) -> str:
    """Return the split of a document of a source without validation files."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return "validation" if number < held_out * 2**64 else "train"


# Files

READERS: dict[str, Callable[[epath.Path, str], Iterator[columns.Row]]] = {
    "jsonl": json_lines.read,
    "json": json_lines.read,
    "txt": json_lines.read_text,
    "parquet": columnar.read_parquet,
    "arrow": columnar.read_arrow,
    "tfrecord": tfrecords.read,
}
ENDING = re.compile(
    r".*\.(?:(jsonl|json|txt)(?:\.(?:gz|xz|bz2|zst))?|(parquet|arrow)|(tfrecord)-\d+-of-\d+)"
)


def _kind(path: epath.Path) -> str:
    """Return what a file is, by its ending. Raises UserError if it is nothing that is read."""
    match = ENDING.fullmatch(path.name)
    if match is None:
        raise UserError(
            f"{path}: its ending says nothing that is read: expected .jsonl, .json (also a row a "
            "line) or .txt, plain or with .gz, .xz, .bz2 or .zst; .parquet; or .arrow"
        )
    # To epath a pipe is a file, too; to open it is to wait for ever.
    if not in_bucket(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is no regular file; replace it, or give it another name")
    assert match.lastindex
    return match[match.lastindex]


def _read_file(path: epath.Path, column: str) -> Iterator[Document]:
    number = 0
    try:
        for text, name in READERS[_kind(path)](path, column):
            number += 1
            yield Document(text, f"{path.name}:{number}" if name is None else name)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise UserError(f"{path}: cannot be read after row {number}; {_line(e)}") from e
    except (ValueError, RecursionError) as e:
        reason = f"{e.msg}: column {e.colno}" if isinstance(e, json.JSONDecodeError) else _line(e)
        raise UserError(
            f"{path}:{number + 1}: expected a text in UTF-8 in column {column!r}; {reason}"
        ) from e


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sha256(path: epath.Path) -> str:
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
    except OSError as e:
        raise UserError(f"{path}: cannot be read; {e.strerror or e}") from e
    return hasher.hexdigest()
