"""The records of an XML dump, each parsed on its own: the prologue, and so a DOCTYPE, never is.

A dump's records are elements that lie side by side. Because "<" is escaped in well-formed text,
"<page" begins a record wherever it stands: a reader that is lost after damage finds its way again
at the next one. An entity that a DOCTYPE declares is unknown inside a record, and an error there.
"""

import codecs
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError, iterparse

from llama_jax.data.sources.source import Bad

LARGEST = 2**25  # bytes of one record; a page of Wikipedia has 2 MiB at most
CHUNK = 2**20  # bytes
LONGEST_TAG = 32  # bytes, of those that are looked for


def elements(file: Any, *tags: str) -> Iterator[Element | Bad]:
    """Yield the elements of these tags, and Bad for one that cannot be read.

    file: as open_binary opens it; memory holds one element. Raises ValueError if there is none,
    or if what they are in does not end, and what reading the file raises.
    """
    number, record = 0, b""
    for record in _split(_chunks(file), re.compile(rf"<(?:{'|'.join(tags)})[\s>]".encode())):
        number += 1
        if len(record) > LARGEST:
            yield Bad(f"element {number}", f"is longer than {LARGEST:,} bytes")
            continue
        try:
            yield _parse(record)
        except ParseError as e:
            begin = record[:60].decode(errors="replace")
            yield Bad(f"element {number}, {begin!r}", f"is not well-formed XML: {e}")
    if number == 0:
        raise ValueError(f"holds no <{tags[-1]}>")
    # Or a damage would go unseen where a stream of .bz2 begins: what is none there is passed over.
    last = re.search(rb"</([^<>]+)>\s*\Z", record[-200:])
    if last is None or last[1].decode(errors="replace") in tags:
        raise ValueError("is cut short: the element that holds all others does not end")


def _chunks(file: Any) -> Iterator[bytes]:
    """Yield the file's bytes as UTF-8. A dump in UTF-16 begins with a mark."""
    chunk = file.read1(CHUNK)
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decode = codecs.getincrementaldecoder("utf-16")().decode
    else:
        decode = None
    while chunk:
        yield chunk if decode is None else decode(chunk).encode()
        chunk = file.read1(CHUNK)  # what is there, so that none of it is lost before a damage


def _split(chunks: Iterator[bytes], begin: re.Pattern[bytes]) -> Iterator[bytes]:
    """Yield what stands from each match of `begin` to the next, little more than LARGEST bytes."""
    rest, inside, searched = b"", False, 0  # inside: rest begins with a match
    for chunk in chunks:
        rest += chunk
        starts = [match.start() for match in begin.finditer(rest, searched)]
        bounds = [0, *starts] if inside else starts
        yield from (rest[start:end] for start, end in itertools.pairwise(bounds))
        if bounds:
            rest, inside = rest[bounds[-1] :], True
        if len(rest) > LARGEST + LONGEST_TAG or not inside:
            rest = rest[: LARGEST + 1 if inside else 0] + rest[-LONGEST_TAG:]
        searched = max(int(inside), len(rest) - LONGEST_TAG)
    if inside:
        yield rest


def _parse(record: bytes) -> Element:
    """Return the element that a record begins with; what follows it is not looked at."""
    depth = 0
    for event, element in iterparse(io.BytesIO(record), ("start", "end")):
        depth += 1 if event == "start" else -1
        if depth == 0:
            return element
    raise AssertionError("iterparse raises ParseError for what does not end")
