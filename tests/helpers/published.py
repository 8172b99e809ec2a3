"""Corpora as they are published, in miniature: files of each kind, by other writers than ours."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_jax.config import DataConfig
from llama_jax.data import documents

Rows = list[dict]
ROWS = [{"text": f"Text {i}: naïve 😀\n\tend", "id": f"doc-{i}"} for i in range(7)]


def corpus(directory: Path, *sources: tuple[str, str, str], **fields) -> DataConfig:
    """A corpus whose only sources are these."""
    rates = tuple((name, 1 / len(sources)) for name, _, _ in sources)
    data = DataConfig(corpus=str(directory), store="", batch_size=1, mixture=rates, sources=sources)
    return dataclasses.replace(data, **fields)


def read(data: DataConfig, source: str = "mine", split: str = "train") -> list:
    return [d for part in documents.parts(data, source, split) for d in documents.read(part)]


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def zstd(content: bytes) -> bytes:
    """In two frames, as parallel compressors write them."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    half = len(content) // 2
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:half]) + compress(content[half:])


def parquet(rows: Rows, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2, **options)
    return out.getvalue()


def arrow_stream(rows: Rows) -> bytes:
    """As save_to_disk of Hugging Face's datasets, which is not installed here, writes them."""
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def arrow_file(rows: Rows) -> bytes:
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


KINDS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "JSON lines": ("jsonl", lines),
    "gzip": ("json.gz", lambda rows: gzip.compress(lines(rows))),
    "gzip by row": ("jsonl.gz", lambda rows: b"".join(gzip.compress(lines([r])) for r in rows)),
    "xz": ("jsonl.xz", lambda rows: lzma.compress(lines(rows))),
    "bzip2": ("jsonl.bz2", lambda rows: bz2.compress(lines(rows))),
    "zstd": ("jsonl.zst", lambda rows: zstd(lines(rows))),
    "Parquet": ("parquet", parquet),
    "Parquet by zstd": ("parquet", lambda rows: parquet(rows, compression="zstd")),
    "an Arrow stream": ("arrow", arrow_stream),
    "an Arrow file": ("arrow", arrow_file),
}  # fmt: skip


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
