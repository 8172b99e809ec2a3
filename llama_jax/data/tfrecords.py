"""The files of a dataset that TFDS has prepared: NAME-SPLIT.tfrecord-00000-of-00001, of
tf.Examples."""

import json
import os
import re
import typing
from collections.abc import Iterator

from etils import epath

from llama_jax.data import columns

NAME = re.compile(r".*-(\w+)\.tfrecord-(\d+)-of-\d+")


def read(path: epath.Path, column: str) -> Iterator[columns.Row]:
    """Yield the rows.

    Raises ValueError if they have no such feature of text, or one that is not UTF-8; OSError if
    the file is damaged, or has not as many as dataset_info.json beside it says.
    """
    import tensorflow as tf

    number = 0
    try:
        for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
            number += 1
            yield columns.row_of(_features(tf.train.Example.FromString(record), column), column)
    except tf.errors.OpError as e:
        raise OSError(e.message) from e
    expected = _num_rows(path)
    if number != expected:  # TensorFlow takes a file that is cut between two rows for whole
        raise OSError(f"it has {number} rows, and {expected} in dataset_info.json")


def _features(example: typing.Any, column: str) -> dict[str, typing.Any]:
    """Return the values by name, with dots where TFDS has slashes."""
    row = {}
    for key, feature in sorted(example.features.feature.items(), key=lambda item: item[0]):
        name, values = key.replace("/", "."), _values(feature)
        value: typing.Any = values[0] if len(values) == 1 else values
        is_text = isinstance(value, bytes) and name in (column, *columns.ID_COLUMNS)
        row[name] = value.decode("utf-8") if is_text else value
    return row


def _values(feature: typing.Any) -> list[typing.Any]:
    return [*feature.bytes_list.value, *feature.int64_list.value, *feature.float_list.value]


def _num_rows(path: epath.Path) -> int:
    info = path.parent / "dataset_info.json"
    match = NAME.fullmatch(path.name)
    try:
        splits = {split["name"]: split for split in json.loads(info.read_text())["splits"]}
        assert match
        return int(splits[match[1]]["shardLengths"][int(match[2])])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise OSError(f"{info} does not say how many rows it has; {e!r}") from e
