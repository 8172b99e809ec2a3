"""Parquet and Arrow files, of which a few rows are in memory at a time."""

import contextlib
import itertools
import os
import typing
from collections.abc import Iterable, Iterator

from etils import epath

from llama_jax.data import columns

if typing.TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256  # of a Parquet file, that are decoded at a time
ARROW_FILE = b"ARROW1"  # how a file begins, and a stream, which save_to_disk writes, does not
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(path: epath.Path, column: str) -> Iterator[columns.Row]:
    """Yield the rows of a Parquet file.

    Raises ValueError if it has no such column of text, or one that is not UTF-8; OSError if it is
    damaged or encrypted.
    """
    import pyarrow.parquet

    with path.open("rb") as raw, _arrow_errors():
        file = pyarrow.parquet.ParquetFile(raw)
        text, key = _text(file.schema_arrow, column), _id(file.schema_arrow)
        names = [".".join(way) for way in (text, key) if way]
        yield from _rows(file.iter_batches(BATCH_ROWS, columns=names), text, key)


def read_arrow(path: epath.Path, column: str) -> Iterator[columns.Row]:
    """Yield the rows of an Arrow file or stream. Raises as read_parquet does."""
    import pyarrow as pa

    with path.open("rb") as raw, _arrow_errors():
        is_file = raw.read(len(ARROW_FILE)) == ARROW_FILE
        if not is_file and raw.seek(0, os.SEEK_END) > len(STREAM_END):
            raw.seek(-len(STREAM_END), os.SEEK_END)
            if raw.read() != STREAM_END:  # pyarrow takes a stream cut between two batches for whole
                raise OSError("the end of the stream is missing")
        raw.seek(0)
        reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
        text, key = _text(reader.schema, column), _id(reader.schema)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(reader)
        yield from _rows(batches, text, key)


@contextlib.contextmanager
def _arrow_errors() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as e:  # some of which are ValueErrors
        raise OSError(str(e)) from e


def _rows(
    batches: "Iterable[pa.RecordBatch]", text: list[str], key: list[str]
) -> Iterator[columns.Row]:
    for batch in batches:
        texts = _column(batch, text)
        keys = _column(batch, key) if key else itertools.repeat(None)
        for value, own in zip(texts, keys, strict=False):
            name = None if own is None else own.as_py()
            yield value.as_py() or "", None if name is None else str(name)


def _column(batch: "pa.RecordBatch", way: list[str]) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    array = batch.column(way[0])
    if way[1:]:
        array = pc.call_function(
            "struct_field", [array], pc.StructFieldOptions(way[1:])
        )  # null below null
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        # Or offsets that are damaged would lead out of memory. Its bytes: a text that is no UTF-8
        # is to be named by its row.
        binary = pa.binary() if pa.types.is_string(array.type) else pa.large_binary()
        array.cast(binary).validate(full=True)
    return array


def _text(schema: "pa.Schema", column: str) -> list[str]:
    """Return the names that lead to the text. Raises ValueError if there is no such column."""
    types = _types(schema)
    way = next((way for way in types if ".".join(way) == column), None)
    if way is None:
        raise columns.missing(column, [".".join(way) for way in types])
    if not _is_text(types[way]):
        raise ValueError(f'"{column}" is of type {types[way]}')
    return list(way)


def _id(schema: "pa.Schema") -> list[str]:
    """Return the names that lead to the rows' own ids; [] if they have none."""
    import pyarrow as pa

    ways = {
        ".".join(way): way
        for way, kind in _types(schema).items()
        if _is_text(kind) or pa.types.is_integer(kind)
    }
    return next((list(ways[name]) for name in columns.ID_COLUMNS if name in ways), [])


def _types(fields: "pa.Schema | pa.StructType") -> "dict[tuple[str, ...], pa.DataType]":
    """Return the type of each column that is no struct itself, by the names that lead to it."""
    import pyarrow as pa

    return {
        (field.name, *way): kind
        for field in fields
        for way, kind in (
            _types(field.type).items() if pa.types.is_struct(field.type) else [((), field.type)]
        )
    }


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
