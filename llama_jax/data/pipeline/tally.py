"""What a step did to the documents of one task, as the report adds it up."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama_jax.data.sources.source import Bad, Document

EXAMPLES = 3  # of each kind that are kept of a task
EXAMPLE_LENGTH = 600  # characters
LINE_LENGTH = 240


@dataclasses.dataclass
class Tally:
    """Documents and bytes of text into a step and out of it, and what it could not read."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0  # documents that came out with another text
    dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # examples
    rewritten: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # examples
    bad: dict[str, list[Any]] = dataclasses.field(default_factory=dict)  # file: [how many, [Bad]]

    def count_bad(self, file: str, bad: Bad) -> None:
        """Count a bad piece of a file, and keep the first ones."""
        found = self.bad.setdefault(file, [0, []])
        found[0] += 1
        if len(found[1]) < EXAMPLES:
            found[1].append({"where": in_a_line(bad.where), "reason": in_a_line(bad.reason)})

    def follow(self, documents: Iterable[Document], waiting: list) -> Iterator[Document]:
        """Yield the documents into a step; `waiting` has those that have not come out of it."""
        for document in documents:
            self.documents_in += 1
            self.bytes_in += len(document.text.encode())
            waiting.append((document, document.text))
            yield document

    def settle(self, documents: Iterable[Document], waiting: list) -> Iterator[Document]:
        """Yield the documents out of a step, which keeps their order."""
        for document in documents:
            while waiting and waiting[0][0] is not document:
                self._drop(*waiting.pop(0))
            _, before = waiting.pop(0)
            self.documents_out += 1
            self.bytes_out += len(document.text.encode())
            if document.text != before:
                self.changed += 1
                if len(self.rewritten) < EXAMPLES:
                    after = {"before": shown(before), "after": shown(document.text)}
                    self.rewritten.append({"id": document.id, **after})
            yield document
        while waiting:
            self._drop(*waiting.pop(0))

    def _drop(self, document: Document, before: str) -> None:
        if len(self.dropped) < EXAMPLES:
            example = {"id": document.id, "url": document.url, "text": shown(before)}
            self.dropped.append(example)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self)))


def shown(text: str) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= EXAMPLE_LENGTH else f"{text[:EXAMPLE_LENGTH]} ..."


def in_a_line(text: str) -> str:
    """Return the beginning of what is said of bad input, which may quote any bytes of it."""
    words = " ".join(text.split())[:LINE_LENGTH]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def total(paths: Iterable[Path]) -> Tally:
    """Add up the tallies of the tasks, in their order, with the first examples of all."""
    total = Tally()
    for path in paths:
        one = Tally(**json.loads(path.read_text()))
        for field in ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed"):
            setattr(total, field, getattr(total, field) + getattr(one, field))
        total.dropped = (total.dropped + one.dropped)[:EXAMPLES]
        total.rewritten = (total.rewritten + one.rewritten)[:EXAMPLES]
        total.bad |= one.bad
    return total
