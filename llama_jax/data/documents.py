"""The documents of a corpus: CORPUS/SOURCE/{train,validation}*.jsonl[.gz|.xz], local or gs://.

One JSON object a line, with the document in its "text" field.
"""

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.place import place

EMBEDDED = Path(__file__).parent / "corpus"
OPEN = {".jsonl": lambda raw: raw, ".gz": gzip.open, ".xz": lzma.open}
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
UNREAD = (".jsonl.zst", ".jsonl.bz2")  # of corpora, too, but Python 3.11 has no zstd


def files(data: DataConfig, source: str, split: str) -> list[epath.Path]:
    """Return the shard files of one split of a source, by name.

    Raises UserError if there are none, and for one that cannot be read as a file.
    """
    embedded = data.corpus == "embedded"
    corpus = epath.Path(EMBEDDED) if embedded else place(data.corpus, "data.corpus")
    directory = corpus / source
    if not directory.is_dir():
        raise UserError(
            f"data.mixture: source {source!r} has no directory in data.corpus={data.corpus!r}; "
            f"expected {directory} with train*.jsonl[.gz|.xz] and validation*.jsonl[.gz|.xz]"
        )
    named = sorted(directory.glob(f"{split}*"))
    for path in named:
        if path.name.endswith(UNREAD):
            accepted = ", ".join(ENDINGS)
            raise UserError(f"{path}: would be left out; compress it as one of {accepted}")
    found = [path for path in named if path.name.endswith(ENDINGS)]
    if not found:
        raise UserError(f"data.corpus: {directory} has no {split}*.jsonl, .jsonl.gz or .jsonl.xz")
    for path in found:
        # To epath a pipe is a file, too; to open it is to wait for ever.
        if "://" not in str(path) and not os.path.isfile(path):
            raise UserError(f"{path}: is no regular file; replace it, or give it another name")
    return found


def read(path: epath.Path) -> Iterator[str]:
    """Yield the text of each line of one file, "" for a blank one.

    Raises UserError naming file and line.
    """
    number = 0
    try:
        with path.open("rb") as raw, OPEN[path.suffix](raw) as lines:
            for line in lines:
                number += 1
                yield _text(line)
            if path.suffix == ".gz" and raw.tell() == 0:
                raise EOFError("the file is empty")  # gzip takes that for the end
    except (ValueError, RecursionError) as e:
        reason = f"{e.msg}: column {e.colno}" if isinstance(e, json.JSONDecodeError) else e
        raise UserError(f'{path}:{number}: expected {{"text": "..."}} in UTF-8; {reason}') from e
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise UserError(f"{path}: cannot be read after line {number}; {e}") from e


def _text(line: bytes) -> str:
    if not line.strip():
        return ""
    document = json.loads(line.decode("utf-8"))
    if not isinstance(document, dict) or "text" not in document:
        raise ValueError('has no "text"')
    text = document["text"]
    if not isinstance(text, str):
        raise ValueError(f'"text" is of type {type(text).__name__}')
    text.encode("utf-8")  # JSON can spell half of a surrogate pair, which is no character
    return text
