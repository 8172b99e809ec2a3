"""Which documents a batch holds, and which batches a document is in.

STORE/SOURCE/train-00000.documents is bytes: of each document, in the order of the shard, where its
tokens begin and where its label ends, two little-endian uint64; then the labels, "FILE:ROW\\0ID".
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator

import grain
import numpy as np

from llama_jax.config import DataConfig
from llama_jax.data import batches, store, tokenizer
from llama_jax.data.schedule import Schedule

RECORD = 16  # bytes


def label(place: str, id: str) -> bytes:
    return f"{place}\0{id}".encode()


def write(
    data: DataConfig,
    path: str,
    lengths: np.ndarray,
    label_lengths: np.ndarray,
    labels: Iterable[np.ndarray],
) -> str:
    """Write which documents a shard has, in its order; return the sha256 that vouches for it.

    lengths, label_lengths: uint64 [documents]; labels: uint8, in pieces.
    """
    records = np.stack([np.cumsum(lengths) - lengths, np.cumsum(label_lengths)], 1)
    size = records.size * 8 + int(label_lengths.sum())
    first = records.astype("<u8").reshape(-1).view(np.uint8)
    pieces = _in_pieces(itertools.chain([first], labels))
    return store.write_pieces(data.store, documents_path(path), size, np.dtype("u1"), pieces)


def _in_pieces(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield all bytes in pieces of store.FILE_TOKENS."""
    piece, filled = np.empty(store.FILE_TOKENS, np.uint8), 0
    for values in arrays:
        while len(values):
            count = min(len(values), len(piece) - filled)
            piece[filled : filled + count] = values[:count]
            values, filled = values[count:], filled + count
            if filled == len(piece):
                yield piece
                filled = 0
    if filled:
        yield piece[:filled]


def documents_path(path: str) -> str:
    return f"{path}.documents"


class ShardDocuments:
    """The documents of one shard, read block by block."""

    def __init__(self, data: DataConfig, source: str, path: str, shard: store.Shard):
        """Open them. Raises UserError if they are missing or damaged."""
        self.source, self.path = source, f"{data.store}/{documents_path(path)}"
        self.num_documents, self.num_tokens = shard.num_documents, shard.num_tokens
        try:
            opened = [
                store.open_array(data.store, documents_path(path) + end) for end in ("", ".crc32")
            ]
            self.array, checksums = (array.result(store.TIMEOUT_SECONDS) for array in opened)
            self.checksums = checksums.read().result(store.TIMEOUT_SECONDS)
            if hashlib.sha256(self.checksums.data).hexdigest() != shard.documents_sha256:
                raise ValueError(f"{self.path} is not the one that its index has the sha256 of")
        except (ValueError, TimeoutError) as e:
            raise store.damaged(source, ValueError(str(e))) from e
        self.block = functools.lru_cache(16)(self._block)

    def start(self, document: int) -> int:
        """Return the first token of a document, in the shard; the end of the shard for the one
        after the last."""
        if document == self.num_documents:
            return self.num_tokens
        return int(self._read(document * RECORD, document * RECORD + 8).view("<u8")[0])

    def at(self, token: int) -> int:
        """Return the document that a token of the shard is of."""
        return bisect.bisect_right(range(self.num_documents), token, key=self.start) - 1

    def names(self, document: int) -> tuple[str, str]:
        """Return FILE:ROW of a document, and its id."""
        begin = self._label_end(document - 1) if document else 0
        first = self.num_documents * RECORD
        text = self._read(first + begin, first + self._label_end(document)).tobytes().decode()
        place, _, id = text.partition("\0")
        return place, id

    def _label_end(self, document: int) -> int:
        return int(self._read(document * RECORD + 8, document * RECORD + 16).view("<u8")[0])

    def _read(self, start: int, stop: int) -> np.ndarray:
        size = store.BLOCK_TOKENS
        first, last = start // size, -(-stop // size)
        blocks = [self.block(number) for number in range(first, last)]
        found = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return found[start - first * size : stop - first * size]

    def _block(self, number: int) -> np.ndarray:
        start = number * store.BLOCK_TOKENS
        stop = min(start + store.BLOCK_TOKENS, self.array.size)
        try:
            return store.read_checked(self.path, self.array, self.checksums, start, stop)
        except ValueError as e:
            raise store.damaged(self.source, e) from e


class Documents:
    """The documents of a source's training split, by token."""

    def __init__(self, data: DataConfig, tokens: store.Tokens):
        self.data, self.tokens = data, tokens
        self.shard = functools.lru_cache(64)(self._shard)

    def _shard(self, number: int) -> ShardDocuments:
        path = self.tokens.paths[number]
        shard = self.tokens.index.shards[number]
        return ShardDocuments(self.data, self.tokens.source, path, shard)

    def between(self, start: int, stop: int) -> Iterator["Document"]:
        """Yield the documents that have tokens from start to stop."""
        number = int(np.searchsorted(self.tokens.starts, start, "right")) - 1
        while start < stop:
            first, end = (int(n) for n in self.tokens.starts[number : number + 2])
            if start < end:
                shard = self.shard(number)
                document = shard.at(start - first)
                while document < shard.num_documents and first + shard.start(document) < stop:
                    yield self._document(number, document)
                    document += 1
            start, number = max(start, end), number + 1

    def all(self) -> Iterator["Document"]:
        for number, shard in enumerate(self.tokens.index.shards):
            for document in range(shard.num_documents):
                yield self._document(number, document)

    def _document(self, number: int, document: int) -> "Document":
        shard, first = self.shard(number), int(self.tokens.starts[number])
        start, stop = shard.start(document), shard.start(document + 1)
        return Document(*shard.names(document), first + start, first + stop)


@dataclasses.dataclass(frozen=True)
class Document:
    """A document of the store, by its tokens [start, stop) of the source's training split."""

    place: str  # FILE:ROW in the corpus
    id: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Shown:
    """A document, or the part of it, that a row shows."""

    row: int  # of the batch
    source: str
    epoch: int  # of the source, from 0
    document: Document
    start: int  # the tokens that are shown are [start, stop) of the source
    stop: int
    text: str


class Ledger:
    """The documents of the training rows of a token store."""

    def __init__(self, data: DataConfig):
        """Open the store. Raises UserError if it is missing or damaged."""
        self.data, self.rows = data, batches.TrainRows(data)
        self.vocabulary = tokenizer.load(data.tokenizer)
        self.interleave = batches.Interleave([rate for _, rate in data.mixture])
        self.documents = {
            windows.source: Documents(data, windows.tokens) for windows in self.rows.windows
        }

    def batch(self, number: int) -> Iterator[Shown]:
        """Yield what each row of a global batch shows, in its order."""
        for r in range(self.data.batch_size):
            row = number * self.data.batch_size + r
            source, window = self.rows.locate(row)
            index, earlier = self.interleave[row]
            epoch = earlier // len(self.rows.windows[index])
            start = window * self.data.seq_len
            stop, tokens = start + self.data.seq_len, self.documents[source].tokens
            for document in self.documents[source].between(start, stop):
                begin, end = max(start, document.start), min(stop, document.stop)
                text = self.vocabulary.decode(tokens.read(begin, end).tolist())
                yield Shown(r, source, epoch, document, begin, end, text)

    def find(self, wanted: str) -> Iterator[tuple[str, Document]]:
        """Yield (source, document) with this id or FILE:ROW; if none has it, with this text in it.

        Reads the labels of the whole store, and then all of its text.
        """
        found = False
        for source, documents in self.documents.items():
            for document in documents.all():
                if wanted in (document.id, document.place):
                    found = True
                    yield source, document
        if found:
            return
        for source, documents in self.documents.items():
            for document in documents.all():
                tokens = documents.tokens.read(document.start, document.stop)
                if wanted in self.vocabulary.decode(tokens.tolist()):
                    yield source, document

    def steps(
        self, source: str, document: Document, schedule: Schedule, num_steps: int
    ) -> list[int]:
        """Return the steps, of num_steps from 0, that see a document, whole or a part of it."""
        index = [name for name, _ in self.data.mixture].index(source)
        num_windows, seq_len = len(self.rows.windows[index]), self.data.seq_len
        windows = set(range(document.start // seq_len, (document.stop - 1) // seq_len + 1))
        windows &= set(range(num_windows))
        return sorted(
            {
                step
                for first, batch, length in spans(schedule, num_steps)
                for row in self._rows(index, windows, batch, batch + length)
                for step in [first + row // self.data.batch_size - batch]
            }
        )

    def _rows(self, index: int, windows: set[int], batch: int, end: int) -> Iterator[int]:
        """Yield the rows of batches [batch, end) that show one of the windows of a source.

        Looks at each window of each epoch, as Grain has no inverse of its shuffle.
        """
        first, last = (n * self.data.batch_size for n in (batch, end))
        begin, stop = (self.earlier_rows(index, row) for row in (first, last))
        order = shuffled(self.data, self.rows.windows[index])
        for position in range(begin, stop) if windows else ():
            if order[position] in windows:
                rows = range(first, last)
                count = functools.partial(self.earlier_rows, index)
                yield first + bisect.bisect_right(rows, position, key=count) - 1

    def earlier_rows(self, index: int, row: int) -> int:
        """Return how many rows before `row` are of source `index`, as Interleave has it."""
        total, left = sum(self.interleave.weights), row
        for weight in self.interleave.weights[:index]:
            left, total = left * (total - weight) // total, total - weight
        weight = self.interleave.weights[index]
        return left - left * (total - weight) // total

    def epochs(self, index: int, schedule: Schedule, num_steps: int) -> float:
        """Return how often the windows of source `index` are visited in num_steps."""
        rows = sum(
            self.earlier_rows(index, (batch + length) * self.data.batch_size)
            - self.earlier_rows(index, batch * self.data.batch_size)
            for _, batch, length in spans(schedule, num_steps)
        )
        return rows / len(self.rows.windows[index])


def shuffled(data: DataConfig, windows: batches.Windows) -> grain.MapDataset:
    seed = batches.shuffle_seed(data.seed, windows.source)
    return grain.MapDataset.range(len(windows)).shuffle(seed=seed)


def spans(schedule: Schedule, num_steps: int) -> list[tuple[int, int, int]]:
    """Return (first step, first batch, number of steps) of each stretch of consecutive batches."""
    ends = [entry.step for entry in schedule.entries[1:]] + [num_steps]
    return [
        (entry.step, entry.batch, min(end, num_steps) - entry.step)
        for entry, end in zip(schedule.entries, ends, strict=True)
        if entry.step < min(end, num_steps)
    ]
