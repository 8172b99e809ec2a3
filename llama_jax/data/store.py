"""The token store: every document of a mixture as token ids, tokenized once, under checksums.

    STORE/SOURCE/train-00000/       zarr3 array of token ids, from one shard file of the corpus
    STORE/SOURCE/train-00000.crc32/ zarr3 array with a checksum of each block of these
    STORE/SOURCE/train-00000.documents/  which document begins where, with checksums beside it, too
    STORE/SOURCE/train-00000.json   what it was made from, and the sha256 of its checksums
    STORE/SOURCE/train.json         the index of the split, written when all its shards are whole

The index vouches for the checksums, which are compared when a split is opened, and they for each
block, which is compared whenever it is read: what is read is what was written.

STORE is a local path or gs://. `cache.py` writes it; training reads it, without TensorFlow, and
`ledger.py` the documents.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import typing
import zlib
from collections.abc import Iterable

import numpy as np
import tensorstore as ts

from llama_jax.config import DataConfig, UserError
from llama_jax.data import tokenizer
from llama_jax.place import in_bucket, place

SPLITS = ("train", "validation")
BLOCK_TOKENS = 2**14  # under one checksum, and the least that is read at a time
FILE_TOKENS = 2**25  # written at a time: memory
TIMEOUT_SECONDS = 60.0  # for an answer of wherever the store is: TensorStore tries for ever
CACHE_BYTES = 2**27  # per source, mostly for the block indices of its files, 32 kB each


@dataclasses.dataclass(frozen=True)
class Shard:
    """One array of the store."""

    file: str  # name of the shard file in the corpus
    file_sha256: str
    tokenizer_sha256: str
    num_documents: int
    num_tokens: int
    sha256: str  # of the checksums of its blocks
    documents_sha256: str  # of those of its documents


@dataclasses.dataclass(frozen=True)
class Split:
    """The index of one split of one source."""

    vocab_size: int
    bos_id: int
    eos_id: int
    shards: tuple[Shard, ...]

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)


def exists(data: DataConfig) -> bool:
    """Return whether every source of the mixture is there."""
    indices = [index_path(source, split) for source, _ in data.mixture for split in SPLITS]
    return all(read_json(data.store, path) is not None for path in indices)


def read_index(data: DataConfig) -> dict[str, dict[str, Split]]:
    """Read index[source][split] of the mixture's sources. Raises UserError if one is missing."""
    return {source: {s: read_split(data, source, s) for s in SPLITS} for source, _ in data.mixture}


def read_split(data: DataConfig, source: str, split: str) -> Split:
    """Read the index of one split. Raises UserError if it is not there."""
    index = find_split(data.store, index_path(source, split))
    if index is None:
        raise UserError(
            f"data.store: token store {data.store} does not exist or is unfinished (no "
            f"{index_path(source, split)}); write it with: llama-jax cache EXPERIMENT"
        )
    return index


def find_split(store: str, path: str) -> Split | None:
    """Read an index; None if there is none. Raises UserError for what is no index."""
    found = read_json(store, path)
    if found is None:
        return None
    if isinstance(found, dict) and isinstance(shards := found.get("shards"), list):
        found["shards"] = tuple(_read_fields(Shard, shard, store, path) for shard in shards)
    return _read_fields(Split, found, store, path)


def find_shard(store: str, path: str) -> Shard | None:
    """Read the record of a shard; None if there is none. Raises UserError for what is no record."""
    found = read_json(store, path)
    return None if found is None else _read_fields(Shard, found, store, path)


def _read_fields(kind: type, found: typing.Any, store: str, path: str) -> typing.Any:
    types = {name: typing.get_origin(t) or t for name, t in typing.get_type_hints(kind).items()}
    if (
        not isinstance(found, dict)
        or found.keys() != types.keys()
        or any(type(found[name]) is not t for name, t in types.items())
        or any(type(value) is int and value < 0 for value in found.values())
    ):
        raise UserError(
            f"data.store: {store}/{path} is not what llama-jax cache writes: expected "
            f"{', '.join(types)}; delete that file and run llama-jax cache"
        )
    return kind(**found)


def check_tokenizer(data: DataConfig, vocab_size: int) -> None:
    """Raise UserError unless the store was made with data.tokenizer, for vocab_size tokens."""
    wanted, vocabulary = tokenizer.sha256(data.tokenizer), tokenizer.load(data.tokenizer)
    own = (vocabulary.vocab_size, vocabulary.bos_id, vocabulary.eos_ids[0])
    for source, splits in read_index(data).items():
        made_with = {shard.tokenizer_sha256 for split in splits.values() for shard in split.shards}
        if made_with != {wanted}:
            raise UserError(
                f"data.tokenizer: got {data.tokenizer!r}, but source {source} of the token store "
                f"{data.store} was made with another; set data.store to another directory, too"
            )
        for name, split in splits.items():
            if (split.vocab_size, split.bos_id, split.eos_id) != own:
                raise UserError(
                    f"data.store: {data.store}/{index_path(source, name)} says vocab_size "
                    f"{split.vocab_size}, bos_id {split.bos_id}, eos_id {split.eos_id}, but "
                    f"data.tokenizer={data.tokenizer!r} has {own[0]}, {own[1]}, {own[2]}; "
                    "`llama-jax cache` writes that file again"
                )
    if own[0] > vocab_size:
        raise UserError(
            f"model.vocab_size: got {vocab_size}, but the token store's tokenizer has {own[0]} "
            "pieces; expected at least that"
        )


def digest(data: DataConfig) -> str:
    """Return a sha256 over the tokens of all sources of the mixture, whatever their rates."""
    tokens = {
        source: {name: [shard.sha256 for shard in split.shards] for name, split in splits.items()}
        for source, splits in read_index(data).items()
    }
    return hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest()


class Tokens:
    """The token ids of a split, shard after shard: unsigned ints [num_tokens]."""

    def __init__(self, data: DataConfig, source: str, split: str):
        """Open a split. Raises UserError naming source and file if it is missing or damaged."""
        self.data, self.source, self.index = data, source, read_split(data, source, split)
        context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
        self.paths = [shard_path(source, split, k) for k in range(len(self.index.shards))]
        arrays = [open_array(data.store, path, context) for path in self.paths]
        checksums = [open_array(data.store, f"{path}.crc32") for path in self.paths]
        try:
            self.arrays = [array.result(TIMEOUT_SECONDS) for array in arrays]
            reads = [array.result(TIMEOUT_SECONDS).read() for array in checksums]
            self.checksums = [read.result(TIMEOUT_SECONDS) for read in reads]
        except TimeoutError as e:
            raise _unusable(data.store, e) from e
        except ValueError as e:
            raise damaged(source, e) from e
        for path, shard, array, sums in zip(
            self.paths, self.index.shards, self.arrays, self.checksums, strict=True
        ):
            if array.size != shard.num_tokens:
                self._not_as_written(
                    path, f"holds {array.size} tokens, its index {shard.num_tokens}"
                )
            if hashlib.sha256(sums.data).hexdigest() != shard.sha256:
                self._not_as_written(path, "is not the array that its index has the sha256 of")
        ends = itertools.accumulate(shard.num_tokens for shard in self.index.shards)
        self.starts = np.array([0, *ends])

    def __len__(self) -> int:
        return self.index.num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the ids from start to stop. Raises UserError if they are not what was written."""
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        parts = []
        while start < stop:
            begin, end = (int(n) for n in self.starts[first : first + 2])
            upto = min(stop, end)
            if start < upto:
                parts.append(self._read_shard(first, start - begin, upto - begin))
            start, first = max(start, upto), first + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_shard(self, number: int, start: int, stop: int) -> np.ndarray:
        path, vocab_size = f"{self.data.store}/{self.paths[number]}", self.index.vocab_size
        try:
            wanted = read_checked(path, self.arrays[number], self.checksums[number], start, stop)
        except ValueError as e:
            raise damaged(self.source, e) from e
        if wanted.max() >= vocab_size:
            self._not_as_written(self.paths[number], f"holds token {wanted.max()} of {vocab_size}")
        return wanted

    def _not_as_written(self, path: str, reason: str) -> typing.NoReturn:
        raise damaged(self.source, ValueError(f"{self.data.store}/{path} {reason}"))


def read_checked(
    path: str, array: ts.TensorStore, checksums: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Read whole blocks, as TensorStore does anyway, and cut out what is wanted.

    Raises ValueError naming the file if they are not as their checksums have them.
    """
    first = start // BLOCK_TOKENS
    aligned, end = first * BLOCK_TOKENS, min(-(-stop // BLOCK_TOKENS) * BLOCK_TOKENS, array.size)
    blocks = array[aligned:end].read().result()
    found = block_checksums(blocks)
    if not np.array_equal(found, checksums[first : first + len(found)]):
        raise ValueError(f"{path} holds other tokens than its index, from {aligned} to {end}")
    return blocks[start - aligned : stop - aligned]


def is_whole(store: str, path: str, sha256: str) -> bool:
    """Return whether an array is as it was written, by the sha256 of its checksums."""
    try:
        opened = [open_array(store, name) for name in (path, f"{path}.crc32")]
        array, of_all = (future.result() for future in opened)
        checksums = of_all.read().result()
        for k in range(0, array.size, FILE_TOKENS):
            read_checked(path, array, checksums, k, min(k + FILE_TOKENS, array.size))
    except ValueError:
        return False
    whole = len(checksums) == -(-array.size // BLOCK_TOKENS)
    return whole and hashlib.sha256(checksums.data).hexdigest() == sha256


def block_checksums(tokens: np.ndarray) -> np.ndarray:
    """Return uint32 [blocks]: the CRC-32 of each BLOCK_TOKENS of token ids, as they are stored."""
    starts = range(0, len(tokens), BLOCK_TOKENS)
    return np.array([zlib.crc32(tokens[k : k + BLOCK_TOKENS].data) for k in starts], np.uint32)


def damaged(source: str, error: ValueError) -> UserError:
    """Make a UserError of TensorStore's error about a file of the store, which it names."""
    reason = " ".join(str(error).partition(" [tensorstore_spec")[0].split())
    return UserError(
        f"data.store: source {source} cannot be read; if a file is damaged or missing, "
        f"`llama-jax cache` makes it again; {reason}"
    )


# ---- files of the store, all through TensorStore, which speaks gs:// without TensorFlow


def shard_path(source: str, split: str, number: int) -> str:
    return f"{source}/{split}-{number:05d}"


def index_path(source: str, split: str) -> str:
    return f"{source}/{split}.json"


def write_tokens(store: str, path: str, tokens: np.ndarray) -> str:
    """Replace one shard of the store by tokens [n], uint16 or uint32. Return its sha256."""
    pieces = (tokens[k : k + FILE_TOKENS] for k in range(0, len(tokens), FILE_TOKENS))
    return write_pieces(store, path, len(tokens), tokens.dtype, pieces)


def write_pieces(
    store: str, path: str, size: int, dtype: np.dtype, pieces: Iterable[np.ndarray]
) -> str:
    """Replace one array and its checksums by pieces of FILE_TOKENS, but for the last, each written
    before the next is asked for. Return the sha256 of the checksums."""
    checksums, start = [np.zeros(0, np.uint32)], 0
    array = _create(store, path, size, dtype)
    for piece in pieces:
        _write(store, array[start : start + len(piece)], piece)
        checksums.append(block_checksums(piece))
        start += len(piece)
    of_all = np.concatenate(checksums)
    write_array(store, f"{path}.crc32", of_all)
    return hashlib.sha256(of_all.data).hexdigest()


def write_array(store: str, path: str, values: np.ndarray) -> None:
    """Replace one array of the store by unsigned ints [n]."""
    _write(store, _create(store, path, len(values), values.dtype), values)


def _create(store: str, path: str, size: int, dtype: np.dtype) -> ts.TensorStore:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [BLOCK_TOKENS], "codecs": codecs, "index_codecs": codecs}
    metadata = {
        "shape": [size],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [FILE_TOKENS]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {"driver": "zarr3", "kvstore": _kvstore(store, f"{path}/"), "metadata": metadata}
    try:
        return ts.open(spec, create=True, delete_existing=True).result()
    except (ValueError, NotImplementedError) as e:
        raise _unusable(store, e) from e


def _write(store: str, array: ts.TensorStore, values: np.ndarray) -> None:
    try:
        array.write(values).result()
    except (ValueError, NotImplementedError) as e:
        raise _unusable(store, e) from e


def open_array(store: str, path: str, context: ts.Context | None = None) -> ts.Future:
    """Open one array of the store, a future. It and its reads raise ValueError naming the file."""
    spec = {
        "driver": "zarr3",
        "kvstore": _kvstore(store, f"{path}/"),
        "fill_missing_data_reads": False,  # or a lost file would read as zeros
        "recheck_cached_data": False,
    }
    return ts.open(spec, open=True, read=True, context=context)


def read_json(store: str, path: str) -> dict[str, typing.Any] | None:
    """Read a JSON file of the store; None if there is no such file."""
    files = _kvstore(store, "")
    try:
        found = ts.KvStore.open(files).result().read(path).result(TIMEOUT_SECONDS)
    except (ValueError, TimeoutError) as e:
        raise _unusable(store, e) from e
    try:
        return None if found.state == "missing" else json.loads(found.value)
    except (ValueError, RecursionError) as e:
        raise UserError(f"data.store: {store}/{path} is not JSON; delete that file; {e}") from e


def write_json(store: str, path: str, value: dict[str, typing.Any]) -> None:
    """Replace a JSON file of the store, atomically."""
    text, files = json.dumps(value, indent=1).encode(), _kvstore(store, "")
    try:
        ts.KvStore.open(files).result().write(path, text).result(TIMEOUT_SECONDS)
    except (ValueError, TimeoutError, NotImplementedError) as e:
        raise _unusable(store, e) from e


def _unusable(store: str, error: Exception) -> UserError:
    if isinstance(error, TimeoutError):
        reason = f"no answer within {TIMEOUT_SECONDS:g} s"
    else:
        reason = str(error).partition(" [")[0].splitlines()[0]
    return UserError(f"data.store: got {store!r}, which cannot be read or written; {reason}")


def _kvstore(store: str, path: str) -> typing.Any:
    if store.startswith("file://") or in_bucket(place(store, "data.store")):
        return f"{store.rstrip('/')}/{path}"
    return {"driver": "file", "path": f"{os.path.abspath(store)}/{path}"}
