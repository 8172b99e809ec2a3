"""Books: Project Gutenberg's plain texts, and PG-19.

Paper, section 2.1: Gutenberg and Books3, deduplicated at the level of the book at 90% overlap.
Books3 is not offered: it is a copy of books under copyright whose authors have not been asked, and
it was taken down in 2023. The licence and header that Gutenberg puts around a text are removed,
which PG-19 (https://github.com/google-deepmind/pg19) has done already.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from llama_jax.data.sources import lines
from llama_jax.data.sources.charset import decoded
from llama_jax.data.sources.rows import rows
from llama_jax.data.sources.source import Bad, Document, NearDuplicates, Source

LARGEST = lines.LONGEST_LINE  # bytes of one text; War and Peace has 3.4 million
OVERLAP = 0.9  # paper, section 2.1: "removing books with more than 90% content overlap"

# What volunteers have written around the texts for fifty years, at the beginning of a line. The
# last START in the head of a file is where its text begins.
HEAD = 40_000  # characters
_MADE = r"PROJECT\s+GUTENBERG"
START = re.compile(
    rf"""(?mix)^[ \t]*(?:
      \*{{2,}}\s*START\s+OF\s+(?:THE|THIS)\s+(?:COPYRIGHTED\s+)?{_MADE}
      (?:[^*\n]*(?:\n[^*\n]+){{0,3}}\*{{2,}}[^\n]*|[^\n]*)  # a long title goes over lines
    | \*+\s*END\s*\**\s*(?:OF\s+)?THE\s+SMALL\s+PRINT[^\n]*
    | \**\s*(?:This\s+is\s+)?(?:the\s+)?{_MADE}(?:'s)?\s+e-?(?:text|book)\b[^\n]*
    )$"""
)
END = re.compile(
    rf"""(?mix)^[ \t]*(?:
      \*{{2,}}\s*END\s+OF\s+(?:THE|THIS)\s+(?:COPYRIGHTED\s+)?{_MADE}
    | \**\s*(?:This\s+is\s+the\s+)?End\s+of\s+(?:the\s+|this\s+)?(?:copyrighted\s+)?{_MADE}
    | \**\s*(?:Ende\s+diese[rs]?|Fin\s+(?:de|du)|Fine\s+(?:di|del)|Einde\s+van)\s+
      (?:dit\s+|questo\s+|ce\s+)?Proje[ck]t\s+Gutenberg
    )"""
)
# A paragraph below the mark, about who has typed or scanned the text.
CREDITS = re.compile(
    r"""(?isx)\s*(?:
      (?:this\s+)?(?:e-?text|e-?book)\s+(?:was\s+)?(?:prepared|produced|transcribed|created)\s+by
    | (?:produced|prepared|transcribed|scanned|digitized|proofread)\b[^\n]{0,30}\bby\b
    | (?:the\s+)?(?:project\s+gutenberg|online\s+distributed)
    | \[?transcriber'?s?\s+note
    | https?://
    )(?:(?!\n\s*\n).)*(?:\n\s*\n|$)"""
)
LONGEST_CREDITS = 3_000  # characters
# Put into the middle of the Complete Works of Shakespeare.
INSERTED = re.compile(
    r"(?s)<<\s*THIS ELECTRONIC VERSION OF.*?SERVICE THAT CHARGES FOR DOWNLOAD.*?>>"
)
COPYRIGHTED = re.compile(
    rf"(?i)COPYRIGHTED\s+{_MADE}|copyright\s+status:\s*copyrighted|this\s+is\s+a\s+copyrighted"
)


def read(path: Path) -> Iterator[Document | Bad]:
    """Yield the book that a .txt file is, or those of the rows of a .jsonl or .parquet file.

    Rows are those of PG-19 as it is passed on: "text", and short_book_title, publication_date
    and url where they are there. Raises what reading the file raises.
    """
    if ".txt" in path.suffixes:
        with lines.open_binary(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"is longer than {LARGEST:,} bytes")
        name = path.name.split(".")[0]
        number = re.fullmatch(r"(?:pg)?(\d+)(?:-\w+)?", name)
        told = re.search(rb"(?i)character set encoding:\s*([\w-]+)", content[:HEAD])
        text = decoded(content, told[1].decode() if told else None)
        yield _document(text, number[1] if number else name)
        return
    for found in rows(path):
        if isinstance(found, Bad):
            yield found
            continue
        where, row = found
        if not isinstance(row.get("text"), str):
            yield Bad(where, 'has no "text"')
            continue
        number = re.search(r"\d+", str(row.get("url")))
        title, date = row.get("short_book_title"), row.get("publication_date")
        id = number[0] if number else f"{path.name}/{where}"
        yield _document(row["text"], id, title, str(date) if date else None)


def _document(text: str, id: str, title: str | None = None, date: str | None = None) -> Document:
    field = re.search(r"(?m)^Title:[ \t]*(.+)$", text[:10_000])
    return Document(
        text=text,
        id=id,
        url=f"https://www.gutenberg.org/ebooks/{id}" if id.isdecimal() else None,
        licence="public domain in the USA",
        date=date,
        provenance={"title": title or (field[1].strip() if field else None)},
    )


def under_copyright(document: Document) -> str | None:
    """Drop the few texts that Gutenberg passes on by permission of who holds the rights."""
    return None if COPYRIGHTED.search(document.text, 0, HEAD) else document.text


def without_the_licence(document: Document) -> str:
    """Return what stands between Gutenberg's marks, all of it where there are none."""
    text = document.text
    if end := END.search(text):
        text = text[: end.start()]
    starts = list(START.finditer(text, 0, HEAD))
    if starts:
        text = text[starts[-1].end() :]
    while starts and (credits := CREDITS.match(text)) and credits.end() < LONGEST_CREDITS:
        text = text[credits.end() :]
    return INSERTED.sub("", text).strip("\n")


SOURCE = Source(
    name="books",
    accepts=(".txt", ".txt.utf-8", ".txt.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"),
    read=read,
    steps=(under_copyright, without_the_licence, NearDuplicates(OVERLAP)),
    rights="In the public domain in the USA, as Project Gutenberg has found; elsewhere the law of "
    "the place counts. Gutenberg's name and licence are removed, as its terms ask of those who do "
    "not pass them on whole. The books are published works: nothing is done about persons in them.",
)
