"""A token store of made-up tokens, fixed for ever, which is made without TensorFlow."""

import dataclasses
import gzip
import itertools
import json
import lzma
from collections.abc import Generator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import DataConfig
from llama_jax.data import batches, store, tokenizer

BOS, EOS = 1, 2

ROWS = P(None, "fsdp", None)


def data_sharding(spec=ROWS, devices=None) -> NamedSharding:
    axes = (AxisType.Explicit, AxisType.Explicit)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=axes, devices=devices)
    return NamedSharding(mesh, spec)


def take(data: DataConfig, steps: range, micro_batches: int = 1) -> list[dict[str, np.ndarray]]:
    stream = batches.train_batches(
        data, micro_batches, data_sharding(), itertools.count(steps.start)
    )
    taken = [jax.tree.map(np.asarray, next(stream)) for _ in steps]
    assert isinstance(stream, Generator)
    stream.close()
    return taken


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- A store of made-up tokens: fixed for ever, and made without TensorFlow

MADE_UP = {"long": [3000, 2001], "short": [900], "other": [0, 1500]}  # tokens of each train shard


def made_up_tokens(size: int, seed: int) -> np.ndarray:
    """Documents of 37 tokens, no two of which are alike."""
    i = np.arange(size)
    tokens = 3 + (i * i * 7919 + i * 104729 + seed * 31337) % 9973
    tokens[0::37], tokens[36::37] = BOS, EOS
    return tokens.astype(np.uint16)


def write(data: DataConfig) -> None:
    """Write the store of MADE_UP."""
    for number, (source, sizes) in enumerate(MADE_UP.items()):
        write_split(data, source, "train", [made_up_tokens(size, number) for size in sizes])
        write_split(data, source, "validation", [made_up_tokens(300, number + 10)])


def write_split(
    data: DataConfig, source: str, split: str, arrays: list[np.ndarray], of_tokenizer: bool = False
) -> None:
    """Write one split. of_tokenizer: as if data.tokenizer had made these tokens."""
    made_with, ids = "", {"vocab_size": 10_000, "bos_id": BOS, "eos_id": EOS}
    if of_tokenizer:
        made_with, vocabulary = tokenizer.sha256(data.tokenizer), tokenizer.load(data.tokenizer)
        ids = {"vocab_size": vocabulary.vocab_size, "bos_id": vocabulary.bos_id}
        ids["eos_id"] = vocabulary.eos_ids[0]
    paths = [store.shard_path(source, split, number) for number in range(len(arrays))]
    shards = tuple(
        store.Shard(
            *("file", "", made_with, 1, len(a), store.write_tokens(data.store, path, a)),
            documents_sha256="",  # which training has no use for
        )
        for path, a in zip(paths, arrays, strict=True)
    )
    index = store.Split(**ids, shards=shards)
    store.write_json(data.store, store.index_path(source, split), dataclasses.asdict(index))


def all_tokens(data: DataConfig, source: str, split: str) -> np.ndarray:
    tokens = store.Tokens(data, source, split)
    return tokens.read(0, len(tokens)).astype(np.int32)


# ---- Store


def files_of(directory: str) -> dict[str, bytes]:
    root = Path(directory)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write_jsonl(path: Path, texts: list[str]) -> None:
    opener = {".jsonl": open, ".gz": gzip.open, ".xz": lzma.open}[path.suffix]
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
