"""Rows of a table with names: a JSON object a line, or parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.data.sources.lines import lines, open_binary
from llama_jax.data.sources.source import Bad

BATCH = 64  # rows of parquet decoded at a time


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """Yield ("row 17", its fields) of a .parquet file, or of JSON lines, compressed or not.

    Raises what reading the file raises.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        number = 0
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
        return
    with open_binary(path) as file:
        for found in lines(file):
            if isinstance(found, Bad):
                yield found
                continue
            number, line = found
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                yield Bad(f"line {number}", f"is not JSON: {e}")
                continue
            if isinstance(row, dict):
                yield f"row {number}", row
            else:
                yield Bad(f"line {number}", "is no JSON object")
