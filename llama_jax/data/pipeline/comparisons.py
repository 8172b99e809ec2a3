"""Steps that compare the documents of all tasks: datatrove's duplicates, and CCNet's paragraphs.

Each has a block at the end of the tasks before it, which notes what is to be compared, stages of
its own that find what occurs more than once, and a block that leaves it out. How many tasks a
stage has follows from the input alone, and so does what is found.
"""

# pyright: reportMissingImports=false

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import exact_dedup, minhash
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from llama_jax.data.pipeline.stage import Stage
from llama_jax.data.sources.ccnet import normalised
from llama_jax.data.sources.source import (
    Comparison,
    Document,
    ExactDuplicates,
    NearDuplicates,
    RepeatedParagraphs,
)

HASH = HashConfig(precision=64, hash_fc="sha1")
BUCKETS = 20  # of a MinHash signature
WORDS = 5  # in what is hashed for it
WORDS_AT_ONCE = 10_000  # that are hashed, of a long book
INPUT_BYTES_OF_A_PARTITION = 2**33  # a GB or so of hashes of paragraphs, where the input is WET


def compare(
    comparison: Comparison, folder: Path, num_input_bytes: int
) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    """Return what notes the documents, the stages that compare them, and what leaves some out."""
    match comparison:
        case ExactDuplicates():
            return _exact(folder)
        case NearDuplicates(overlap):
            return _near(folder, overlap)
        case RepeatedParagraphs():
            return _paragraphs(folder, 1 + num_input_bytes // INPUT_BYTES_OF_A_PARTITION)


# Documents of equal text


def _exact(folder: Path) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    notes, found = str(folder / "signatures"), str(folder / "duplicates")
    config = exact_dedup.ExactDedupConfig(content_getter=_text, hash_config=HASH)
    finder = exact_dedup.ExactFindDedups(notes, found, config, lines_to_buffer=1000)
    leave_out = exact_dedup.ExactDedupFilter(found, config)
    leave_out.name = ExactDuplicates.name
    stages = [Stage(f"{folder.name}-find", [finder], 1)]
    return exact_dedup.ExactDedupSignature(notes, config), stages, leave_out


def _text(document: Document) -> str:
    return document.text


# Documents that overlap


class Words(WordTokenizer):
    """Words of text that datatrove has stripped of punctuation, in any language with spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class Signature(minhash.MinhashDedupSignature):
    """The MinHash of a document, in pieces: of a whole book at once it would take gigabytes."""

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        starts = range(0, len(shingles), WORDS_AT_ONCE)
        parts = [super(Signature, self).get_signature(shingles[i:][:WORDS_AT_ONCE]) for i in starts]
        return np.min(np.array(parts, np.uint64), axis=0).tolist()


def _near(folder: Path, overlap: float) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    notes, pairs, found = (str(folder / name) for name in ("signatures", "pairs", "duplicates"))
    config = minhash.MinhashConfig(
        n_grams=WORDS,
        num_buckets=BUCKETS,
        hashes_per_bucket=hashes_in_a_bucket(overlap),
        hash_config=HASH,
    )
    leave_out = minhash.MinhashDedupFilter(found)
    leave_out.name = NearDuplicates.name
    buckets = minhash.MinhashDedupBuckets(notes, pairs, config=config, lines_to_buffer=1000)
    cluster = minhash.MinhashDedupCluster(pairs, found, config=config, lines_to_buffer=1000)
    stages = [
        Stage(f"{folder.name}-buckets", [buckets], BUCKETS),
        Stage(f"{folder.name}-cluster", [cluster], 1),
    ]
    return Signature(notes, config=config, language=Words()), stages, leave_out


def hashes_in_a_bucket(overlap: float) -> int:
    """Return the number of hashes for which two documents that have a share `overlap` of their
    text in common are as likely found as not.

    Their sets of 5-grams have a Jaccard similarity s = overlap / (2 - overlap), and one of the
    buckets is equal with probability 1 - (1 - s**hashes)**BUCKETS.
    """
    similarity = overlap / (2 - overlap)
    return round(math.log(1 - 0.5 ** (1 / BUCKETS)) / math.log(similarity))


# Paragraphs


def _paragraphs(folder: Path, partitions: int) -> tuple[PipelineStep, list[Stage], PipelineStep]:
    notes, found = folder / "hashes", folder / "repeated"
    find = FindParagraphs(notes, found)
    stages = [Stage(f"{folder.name}-find", [find], partitions)]
    return NoteParagraphs(notes), stages, LeaveParagraphsOut(notes, found)


def paragraph_hashes(text: str) -> np.ndarray:
    """Return CCNet's hash of each line: the first 8 bytes of the SHA-1 of what it is without case,
    digits and punctuation. uint64, one a line."""
    digests = (hashlib.sha1(normalised(line).encode()).digest()[:8] for line in text.split("\n"))
    return np.frombuffer(b"".join(digests), "<u8")


class NoteParagraphs(PipelineStep):
    """The hashes of a task's paragraphs, sorted, those that occur twice and more in it twice."""

    type, name = "NOTE", RepeatedParagraphs.name

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data, rank: int = 0, world_size: int = 1) -> None:
        found = [paragraph_hashes(document.text) for document in data]
        hashes, counts = np.unique(np.concatenate([np.zeros(0, "<u8"), *found]), return_counts=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05}.npy", np.repeat(hashes, np.minimum(counts, 2)))


class FindParagraphs(PipelineStep):
    """The hashes that occur more than once, one range of all hashes a task."""

    type, name = "FIND", RepeatedParagraphs.name

    def __init__(self, notes: Path, folder: Path):
        super().__init__()
        self.notes, self.folder = notes, folder

    def run(self, data, rank: int = 0, world_size: int = 1) -> None:
        first, last = (2**64 * n // world_size for n in (rank, rank + 1))
        parts = []
        for path in sorted(self.notes.glob("*.npy")):
            hashes = np.load(path, mmap_mode="r")
            start = np.searchsorted(hashes, np.uint64(first))
            end = len(hashes) if last == 2**64 else np.searchsorted(hashes, np.uint64(last))
            parts.append(hashes[start:end])
        hashes, counts = np.unique(np.concatenate(parts), return_counts=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05}.npy", hashes[counts > 1])


class LeaveParagraphsOut(PipelineStep):
    """Documents without the paragraphs that occur more than once; none of which nothing is left."""

    type, name = "DEDUP", RepeatedParagraphs.name

    def __init__(self, notes: Path, found: Path):
        super().__init__()
        self.notes, self.found = notes, found

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        own = np.unique(np.load(self.notes / f"{rank:05}.npy"))
        repeated = np.zeros(len(own), bool)
        for path in sorted(self.found.glob("*.npy")):
            hashes = np.load(path, mmap_mode="r")
            if len(hashes):
                at = np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)
                repeated |= hashes[at] == own
        for document in data:
            lines, hashes = document.text.split("\n"), paragraph_hashes(document.text)
            keep = ~repeated[np.searchsorted(own, hashes)]
            if keep.any():
                document.text = "\n".join(
                    line for line, kept in zip(lines, keep, strict=True) if kept
                )
                yield document
