"""C4, as it is released in JSON lines: c4-train.00000-of-01024.json.gz of allenai/c4, "en".

The paper takes C4 as it is. Its heuristics and its deduplication are its makers'.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources.lines import lines, open_binary
from llama_jax.data.sources.source import Bad, Document, Source


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the document of each line: {"text", "url", "timestamp"}, of
    which a sample may have the first alone."""
    with open_binary(path) as file:
        for found in lines(file):
            if isinstance(found, Bad):
                yield found
                continue
            number, line = found
            try:
                record = json.loads(line)
                text, url, date = record["text"], record.get("url"), record.get("timestamp")
                if not isinstance(text, str):
                    raise TypeError(f'"text" is of type {type(text).__name__}')
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                yield Bad(f"line {number}", f"is no document of C4: {type(e).__name__}: {e}")
                continue
            yield Document(text, id=f"{path.name}:{number}", url=url, date=date)


def blank(document: Document) -> str | None:
    """Drop a document without text."""
    return document.text if document.text.strip() else None


SOURCE = Source(
    name="c4",
    accepts=(".json.gz", ".json", ".jsonl", ".json.zst"),
    read=read,
    steps=(blank,),
    rights="Pages of the web of their authors, under Common Crawl's terms of use; the selection is "
    "ODC-BY 1.0. Names, addresses and the like are as on the pages: nothing is removed.",
)
