"""The token store: every document of a mixture as token ids, tokenized once, under checksums.

    STORE/SOURCE/train-00000/      zarr3 array of token ids, from one shard file of the corpus
    STORE/SOURCE/train-00000.json  what it was made from, and the sha256 of its tokens
    STORE/SOURCE/train.json        the index of the split, written when all its shards are whole

STORE is a local path or gs://. `prepare.py` writes it; training reads it, without TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
import typing

import numpy as np
import tensorstore as ts

from llama_jax.config import DataConfig, UserError
from llama_jax.data import tokenizer

SPLITS = ("train", "validation")
BLOCK_TOKENS = 2**14  # under one checksum, and the least that is read at a time
FILE_TOKENS = 2**27
CACHE_BYTES = 2**27  # per source, mostly for the block indices of its files, 128 kB each


@dataclasses.dataclass(frozen=True)
class Shard:
    """One array of the store."""

    file: str  # name of the shard file in the corpus
    file_sha256: str
    tokenizer_sha256: str
    num_documents: int
    num_tokens: int
    sha256: str  # of the token ids as they are stored


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
    """Return whether every source of the mixture has been prepared."""
    indices = [index_path(source, split) for source, _ in data.mixture for split in SPLITS]
    return all(read_json(data.store, path) is not None for path in indices)


def read_index(data: DataConfig) -> dict[str, dict[str, Split]]:
    """Read index[source][split] of the mixture's sources. Raises UserError if one is missing."""
    return {source: {s: read_split(data, source, s) for s in SPLITS} for source, _ in data.mixture}


def read_split(data: DataConfig, source: str, split: str) -> Split:
    """Read the index of one split. Raises UserError if it has not been prepared."""
    found = read_json(data.store, index_path(source, split))
    if found is None:
        raise UserError(
            f"data.store: token store {data.store} does not exist or is unfinished (no "
            f"{index_path(source, split)}); write it with: llama-jax prepare EXPERIMENT"
        )
    found["shards"] = tuple(Shard(**shard) for shard in found["shards"])
    return Split(**found)


def check_tokenizer(data: DataConfig, vocab_size: int) -> None:
    """Raise UserError unless the store was made with data.tokenizer, for vocab_size tokens."""
    wanted = tokenizer.sha256(data.tokenizer)
    for source, splits in read_index(data).items():
        made_with = {shard.tokenizer_sha256 for split in splits.values() for shard in split.shards}
        if made_with != {wanted}:
            raise UserError(
                f"data.tokenizer: got {data.tokenizer!r}, but source {source} of the token store "
                f"{data.store} was made with another; set data.store to another directory, too"
            )
        size = splits["train"].vocab_size
        if size > vocab_size:
            raise UserError(
                f"model.vocab_size: got {vocab_size}, but the token store's tokenizer has {size} "
                f"pieces (source {source}); expected at least that"
            )


def digest(data: DataConfig) -> str:
    """Return a sha256 over the tokens of all sources of the mixture, whatever their rates."""
    tokens = {
        source: {name: [shard.sha256 for shard in split.shards] for name, split in splits.items()}
        for source, splits in read_index(data).items()
    }
    return hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest()


def open_tokens(data: DataConfig, source: str, split: str) -> ts.TensorStore:
    """Open the token ids of a split, shard after shard: one array [num_tokens] of unsigned ints.

    Raises UserError naming source and file; its reads raise ValueError, see `damaged`.
    """
    index = read_split(data, source, split)
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    futures = [
        open_array(data.store, shard_path(source, split, number), context)
        for number, shard in enumerate(index.shards)
        if shard.num_tokens
    ]
    try:
        tokens = ts.concat([future.result() for future in futures], axis=0)
    except ValueError as e:
        raise damaged(source, e) from e
    if tokens.size != index.num_tokens:
        error = ValueError(f"{split} holds {tokens.size} tokens, its index {index.num_tokens}")
        raise damaged(source, error)
    return tokens


def damaged(source: str, error: ValueError) -> UserError:
    """Make a UserError of TensorStore's error about a file of the store, which it names."""
    reason = str(error).partition(" [tensorstore_spec")[0]
    return UserError(
        f"data.store: source {source} cannot be read; if a file is damaged or missing, "
        f"`llama-jax prepare` makes it again; {reason}"
    )


# ---- files of the store, all through TensorStore, which speaks gs:// without TensorFlow


def shard_path(source: str, split: str, number: int) -> str:
    return f"{source}/{split}-{number:05d}"


def index_path(source: str, split: str) -> str:
    return f"{source}/{split}.json"


def write_array(store: str, path: str, tokens: np.ndarray) -> None:
    """Replace one array of the store by tokens [num_tokens], uint16 or uint32."""
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [BLOCK_TOKENS], "codecs": codecs, "index_codecs": codecs}
    metadata = {
        "shape": [len(tokens)],
        "data_type": tokens.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [FILE_TOKENS]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {"driver": "zarr3", "kvstore": _kvstore(store, f"{path}/"), "metadata": metadata}
    try:
        ts.open(spec, create=True, delete_existing=True).result().write(tokens).result()
    except ValueError as e:
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
    try:
        found = ts.KvStore.open(_kvstore(store, "")).result().read(path).result()
    except ValueError as e:
        raise _unusable(store, e) from e
    try:
        return None if found.state == "missing" else json.loads(found.value)
    except ValueError as e:
        raise UserError(f"data.store: {store}/{path} is not JSON; delete that file; {e}") from e


def write_json(store: str, path: str, value: dict[str, typing.Any]) -> None:
    """Replace a JSON file of the store, atomically."""
    text = json.dumps(value, indent=1).encode()
    try:
        ts.KvStore.open(_kvstore(store, "")).result().write(path, text).result()
    except ValueError as e:
        raise _unusable(store, e) from e


def _unusable(store: str, error: ValueError) -> UserError:
    reason = str(error).partition(" [")[0].splitlines()[0]
    return UserError(f"data.store: got {store!r}, which cannot be read or written; {reason}")


def _kvstore(store: str, path: str) -> typing.Any:
    if "://" in store:
        return f"{store.rstrip('/')}/{path}"
    return {"driver": "file", "path": f"{os.path.abspath(store)}/{path}"}
