"""A source: the reader of its dumps, and what is done to each document.

A file of this directory that holds one ends in SOURCE = Source(...), and `llama-jax prepare NAME`
runs it. Nothing here knows of the engine that does.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Document:
    """One text, and where it comes from."""

    text: str
    id: str  # as upstream names it, and of no other document of the source
    url: str | None = None
    licence: str | None = None  # of this text: an SPDX identifier, or upstream's words
    date: str | None = None  # as upstream writes it, ISO 8601 where it can be chosen
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else is known
    source: str | None = None  # of a prepared document; else it is the name of the one that reads

    @property
    def metadata(self) -> dict[str, Any]:
        """Return `provenance`, under the name that datatrove's blocks have for it."""
        return self.provenance


@dataclasses.dataclass(frozen=True)
class Bad:
    """A piece of the input that cannot be read, or a document that a rule fails on.

    It is counted and named in the report, and what follows it is read all the same.
    """

    where: str  # in the file: "line 17", "member a.tex", "after document 12"
    reason: str


# Returns the document's text, cleaned, or None to drop it. It may also note what it has found in
# `provenance`. The report calls it by its __name__.
Rule = Callable[[Document], str | None]


@dataclasses.dataclass(frozen=True)
class WithModels:
    """A rule that needs models: files of the directory that --models names."""

    name: str  # as the report has it
    files: tuple[str, ...]
    rule: Callable[..., Rule]  # of the paths of `files`, and of those of `optional` that are there
    optional: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExactDuplicates:
    """Keep one of the documents of equal text."""

    name = "exact duplicates"


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Keep one of each cluster of documents that have this share of their text in common."""

    overlap: float  # above 0, below 1; found by MinHash of 5-grams of words
    name = "near-duplicates"


@dataclasses.dataclass(frozen=True)
class RepeatedParagraphs:
    """Take the paragraphs (lines) out that occur more than once in the whole input, as CCNet does,
    and drop the documents of which nothing is left."""

    name = "repeated paragraphs"


# What compares documents with those of all other input files.
Comparison = ExactDuplicates | NearDuplicates | RepeatedParagraphs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """How one source's public dumps become documents."""

    name: str
    accepts: tuple[str, ...]  # endings of its files: (".json.gz", ".jsonl"); ("",) is any file
    # Yields what a file holds. An exception that it raises is Bad, as to the rest of that file:
    # of a truncated gzip, for one. It must not hold a whole dump in memory.
    read: Callable[[Path], Iterator[Document | Bad]]
    steps: tuple[Rule | WithModels | Comparison, ...]  # in this order
    rights: str  # a sentence or two: under which licence the text is, and about personal data
    keeps_files: bool = False  # each file becomes CORPUS/SOURCE/FILE, by its own names
