"""The documents that evaluation sets are in, left out, and listed."""

# pyright: reportMissingImports=false

import json
import os
from collections.abc import Iterator
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from llama_jax.data.sources.evaluation_sets import hit
from llama_jax.data.sources.source import Document

NAME = "evaluation sets"


class LeaveContaminatedOut(PipelineStep):
    """Documents that share no words in a row with an evaluation set. Writes HITS/RANK.jsonl."""

    type, name = "FILTER", NAME

    def __init__(self, paths: tuple[Path, ...], hits: Path):
        super().__init__()
        self.paths, self.hits = paths, hits

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.hits.mkdir(parents=True, exist_ok=True)
        path = self.hits / f"{rank:05}.jsonl"
        part = path.with_suffix(".part")
        with open(part, "w", encoding="utf-8") as file:
            for document in data:
                found = hit(document.text, self.paths)
                if found is None:
                    yield document
                    continue
                row, name = found
                where = {"file": document.provenance["file"], "id": document.id}
                file.write(json.dumps(where | {"evaluation_set": name, "words": row}) + "\n")
        os.replace(part, path)


def join(hits: Path, out: Path) -> None:
    """Write the hits of all tasks, in their order, as one file."""
    with open(out, "wb") as file:
        for path in sorted(hits.glob("*.jsonl")):
            file.write(path.read_bytes())
