"""C4, as it is released in JSON lines: c4-train.00000-of-01024.json.gz of allenai/c4, "en".

The paper takes C4 as it is. Its heuristics and its deduplication are its makers'.
"""

from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources.rows import rows
from llama_jax.data.sources.source import Bad, Document, Source


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the document of each line: {"text", "url", "timestamp"}, of
    which a sample may have the first alone."""
    for found in rows(path):
        if isinstance(found, Bad):
            yield found
            continue
        where, row = found
        if not isinstance(row.get("text"), str):
            yield Bad(where, 'is no document of C4: it has no "text"')
            continue
        url, date = row.get("url"), row.get("timestamp")
        yield Document(row["text"], id=f"{path.name}/{where}", url=url, date=date)


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
