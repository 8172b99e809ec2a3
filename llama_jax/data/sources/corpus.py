"""All prepared sources together, as `prepare` wrote them: what is in several is kept once.

Its input is a corpus, or several. Each file becomes one of its own, in the directory of its source.
"""

from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources.rows import rows
from llama_jax.data.sources.source import Bad, Document, ExactDuplicates, Source

FIELDS = ("source", "url", "licence", "date")


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the documents of a prepared file."""
    for found in rows(path):
        if isinstance(found, Bad):
            yield found
            continue
        where, row = found
        text, own = row.get("text"), row.get("id")
        if not isinstance(text, str) or not isinstance(own, str):
            yield Bad(where, "is no document of `prepare`: it has no text, or no id")
            continue
        fields = {name: row.get(name) for name in FIELDS}
        provenance = row.get("provenance")
        yield Document(text, own, **fields, provenance=provenance if provenance else {})


SOURCE = Source(
    name="corpus",
    accepts=(".jsonl.gz",),
    read=read,
    steps=(ExactDuplicates(),),
    keeps_files=True,
    rights="Each text is under the licence of its source, and nothing personal is removed but by "
    "what prepared it.",
)
