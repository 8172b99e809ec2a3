"""The documents of a corpus: CORPUS/SOURCE/{train,validation}*.jsonl[.gz|.xz], local or gs://.

One JSON object a line, with the document in its "text" field.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from llama_jax.config import DataConfig, UserError

EMBEDDED = Path(__file__).parent / "corpus"
OPEN = {".jsonl": lambda raw: raw, ".gz": gzip.open, ".xz": lzma.open}


def files(data: DataConfig, source: str, split: str) -> list[epath.Path]:
    """Return the shard files of one split of a source, by name. Raises UserError for none."""
    corpus = epath.Path(EMBEDDED if data.corpus == "embedded" else data.corpus)
    directory = corpus / source
    if not directory.is_dir():
        raise UserError(
            f"data.mixture: source {source!r} has no directory in data.corpus={data.corpus!r}; "
            f"expected {directory} with train*.jsonl[.gz|.xz] and validation*.jsonl[.gz|.xz]"
        )
    endings = (".jsonl", ".jsonl.gz", ".jsonl.xz")
    found = sorted(path for path in directory.glob(f"{split}*") if path.name.endswith(endings))
    if not found:
        raise UserError(f"data.corpus: {directory} has no {split}*.jsonl, .jsonl.gz or .jsonl.xz")
    return found


def read(path: epath.Path) -> Iterator[str]:
    """Yield the text of each document of one file. Raises UserError naming file and line."""
    number = 0
    try:
        with path.open("rb") as raw, OPEN[path.suffix](raw) as lines:
            for line in lines:
                number += 1
                yield _text(line)
    except (ValueError, KeyError, TypeError) as e:
        reason = f"{type(e).__name__}: {e}"
        raise UserError(f'{path}:{number}: expected {{"text": "..."}} in UTF-8; {reason}') from e
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        reason = f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: cannot be read after line {number}; {reason}") from e


def _text(line: bytes) -> str:
    text = json.loads(line.decode("utf-8"))["text"]
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}")
    text.encode("utf-8")  # JSON can spell half of a surrogate pair, which is no character
    return text
