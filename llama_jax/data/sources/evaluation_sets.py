"""Which documents hold what a model is to be evaluated on.

As GPT-3 has it (arXiv 2005.14165, appendix C): a document that shares 13 words in a row with an
evaluation set is contaminated; of a text that is shorter, all of its words, if they are 8 at least.
"""

import csv
import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.config import UserError
from llama_jax.data.sources.lines import open_binary

LONGEST, SHORTEST = 13, 8  # words in a row
WORD = re.compile(r"\w+")
TABLES = {".csv": ",", ".tsv": "\t"}


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case and without punctuation."""
    return WORD.findall(text.lower())


def texts(path: Path) -> Iterator[str]:
    """Yield every text of an evaluation set's file: JSON lines, JSON, CSV or TSV, compressed or
    not, or else the lines of a text.

    Raises UserError if it cannot be read.
    """
    suffixes = [s for s in path.suffixes if s not in (".gz", ".bz2", ".xz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    try:
        with open_binary(path) as raw:
            lines = io.TextIOWrapper(raw, "utf-8", newline="")
            if kind == ".jsonl":
                for line in lines:
                    if line.strip():
                        yield from _strings(json.loads(line))
            elif kind == ".json":
                yield from _strings(json.load(lines))
            elif kind in TABLES:
                for row in csv.reader(lines, delimiter=TABLES[kind]):
                    yield from row
            else:
                yield from lines
    except (OSError, EOFError, ValueError, csv.Error, RecursionError) as e:
        raise UserError(f"--against: {path} cannot be read: {e}") from e


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


@functools.cache
def sequences(paths: tuple[Path, ...]) -> dict[int, dict[str, str]]:
    """Return what is looked for in documents: length -> words in a row -> the file they are of."""
    found: dict[int, dict[str, str]] = {}
    for path in paths:
        for text in texts(path):
            every = words(text)
            size = min(len(every), LONGEST)
            if size >= SHORTEST:
                of_size = found.setdefault(size, {})
                for start in range(len(every) - size + 1):
                    of_size.setdefault(" ".join(every[start : start + size]), path.name)
    return found


def hit(text: str, paths: tuple[Path, ...]) -> tuple[str, str] | None:
    """Return the first words in a row that a document shares with an evaluation set, and the set's
    file; None if there are none."""
    every = words(text)
    for size, of_size in sequences(paths).items():
        for start in range(len(every) - size + 1):
            row = " ".join(every[start : start + size])
            if row in of_size:
                return row, of_size[row]
    return None
