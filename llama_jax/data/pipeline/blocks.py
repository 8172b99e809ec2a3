"""Blocks of a pipeline: reading, a rule, writing, and the tally of what a block did.

Documents pass through them one at a time, and a task's files are there whole or not at all.
"""

# pyright: reportMissingImports=false

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from llama_jax.data.pipeline.tally import Tally
from llama_jax.data.sources.source import Bad, Document, Rule, Source

FIELDS = ("text", "id", "source", "url", "licence", "date", "provenance")


class Read(PipelineStep):
    """The documents of a task's files, as its source reads them."""

    type, name = "READ", "files"

    def __init__(self, source: Source, groups: list[list[tuple[str, str]]], tallies: Path):
        super().__init__()
        self.source, self.groups, self.tallies = source, groups, tallies

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally = Tally()
        for path, name in self.groups[rank]:
            for document in self._pieces(Path(path), name, tally):
                document.provenance = {"file": name, **document.provenance}
                tally.documents_in += 1
                tally.bytes_in += len(document.text.encode())
                yield document
        tally.write(self.tallies / f"{rank:05}.json")

    def _pieces(self, path: Path, name: str, tally: Tally) -> Iterator[Document]:
        number = 0
        try:
            for piece in self.source.read(path):
                number += 1
                if isinstance(piece, Document):
                    try:
                        piece.text.encode()  # JSON can spell half of a surrogate pair
                    except UnicodeEncodeError as e:
                        piece = Bad(f"document {piece.id}", str(e))
                if isinstance(piece, Bad):
                    tally.count_bad(name, piece)
                else:
                    yield piece
        except Exception as e:  # whatever a parser says of a file that is cut or is none
            tally.count_bad(name, Bad(f"after piece {number}", f"{type(e).__name__}: {e}"))


class ReadDocuments(PipelineStep):
    """The documents of a task that Write has written."""

    type, name = "READ", "documents"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with gzip.open(document_file(self.folder, rank), "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                yield Document(**record)


class Apply(PipelineStep):
    """A rule, applied to each document. One that it fails on is bad, and left out."""

    type = "RULE"

    def __init__(self, name: str, rule: Rule):
        super().__init__()
        self.name, self.rule = name, rule
        self.tally = Tally()  # which Tallied gives it

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            try:
                text = self.rule(document)
            except Exception as e:
                bad = Bad(f"document {document.id}", f"{self.name}: {type(e).__name__}: {e}")
                self.tally.count_bad(document.provenance["file"], bad)
                continue
            if text is not None:
                document.text = text
                yield document


class Tallied(PipelineStep):
    """A block that drops or changes documents, with a tally of it."""

    type = "TALLY"

    def __init__(self, block: PipelineStep, tallies: Path):
        super().__init__()
        self.name, self.block, self.tallies = block.name, block, tallies

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally, waiting = Tally(), []
        if isinstance(self.block, Apply):
            self.block.tally = tally
        into = tally.follow(data, waiting)
        yield from tally.settle(self.block.run(into, rank, world_size), waiting)
        tally.write(self.tallies / f"{rank:05}.json")


class Write(PipelineStep):
    """The documents of a task in a file of its own, which are passed on, too."""

    type, name = "WRITE", "documents"

    def __init__(self, source: Source, folder: Path):
        super().__init__()
        self.source, self.folder = source, folder

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = document_file(self.folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with (
            open(part, "wb") as raw,
            # Neither a name nor a time in it: the same documents are the same bytes.
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as file,
        ):
            for document in data:
                record = vars(document) | {"source": document.source or self.source.name}
                fields = {key: record[key] for key in FIELDS}
                file.write(json.dumps(fields, ensure_ascii=False).encode(errors="replace") + b"\n")
                yield document
        os.replace(part, path)


def document_file(folder: Path, rank: int) -> Path:
    return folder / f"train-{rank:05}.jsonl.gz"
