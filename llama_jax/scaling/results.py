"""The measured losses of a sweep, from a table in CSV with a row a run or several."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np

from llama_jax.config import UserError
from llama_jax.plain_file import plain

SMALLEST = 1_000  # parameters of a model, and tokens of a run
FAR = 300  # C / 6ND, or its inverse: more than parameters without embeddings make of it
SAME_SIZE = 1.02  # models whose N differ by less than this factor count as one size


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns; None: the usual name (N, D, C), if the table has it. Two of N, D and C
    are needed, and C = 6ND gives the third. Rows with the same `run` are points on the training
    curve of one run; without such a column each row is a run."""

    params: str | None = None
    tokens: str | None = None
    flops: str | None = None
    loss: str = "loss"
    run: str = "run"


@dataclasses.dataclass(frozen=True)
class Points:
    """Rows of a table, as arrays [P] in float64, of which loss is in nats a token; run counts from
    0."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    run: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, rows) -> "Points":
        """Return the rows of those numbers, or of a mask."""
        return Points(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def final(self) -> "Points":
        """Return the row with the most tokens of each run."""
        order = np.lexsort((self.tokens, self.run))
        return self.take(order[np.append(np.diff(self.run[order]) != 0, True)])

    @property
    def size(self) -> np.ndarray:
        """Return, for each row, the number of its model size, from 0, the smallest."""
        order = np.argsort(self.params)
        steps = np.diff(np.log(self.params[order])) > math.log(SAME_SIZE)
        size = np.empty(len(self), int)
        size[order] = np.append(0, np.cumsum(steps))
        return size


def read(path: Path, columns: Columns, min_tokens_per_param: float = 0.0) -> Points:
    """Read a table. Raise UserError if it cannot be read, naming file, column and line."""
    try:
        with plain(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name for name in reader.fieldnames or ()]
            lines = [(reader.line_num, row) for row in reader]
    except OSError as e:
        raise UserError(f"table: cannot read {str(path)!r}: {e.strerror}") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"table: {str(path)!r} is no CSV text: {e}") from e

    def column(name: str) -> np.ndarray:
        values = [_number(path, line, name, row[name]) for line, row in lines]
        return np.array(values, np.float64)

    usual = {"params": "N", "tokens": "D", "flops": "C"}
    found = {}
    for quantity, name in usual.items():
        given = getattr(columns, quantity)
        if given is not None or name in header:
            found[quantity] = given or name
    for name in (*found.values(), columns.loss):
        if name not in header:
            raise UserError(
                f"{path}: no column {name!r}; there are {', '.join(header) or 'none'}"
                + _separator(header)
            )
    if len(found) < 2:
        raise UserError(
            f"{path}: two of parameters, tokens and FLOPs are needed: name their columns by --n, "
            f"--d and --flops; there are {', '.join(header)}"
        )
    values = {quantity: column(name) for quantity, name in found.items()}
    losses = column(columns.loss)
    _check_units(path, found, values)
    if "flops" not in values:
        values["flops"] = 6 * values["params"] * values["tokens"]
    elif "tokens" not in values:
        values["tokens"] = values["flops"] / (6 * values["params"])
    elif "params" not in values:
        values["params"] = values["flops"] / (6 * values["tokens"])
    for quantity, value in values.items():
        if not (np.isfinite(value) & (value > 0)).all():
            raise UserError(f"{path}: {quantity} by C = 6ND are out of the range of numbers")
    runs = [row[columns.run] for _, row in lines] if columns.run in header else range(len(lines))
    number = {run: i for i, run in enumerate(dict.fromkeys(runs))}
    run = np.array([number[run] for run in runs], int)
    points = Points(**values, loss=losses, run=run)
    for name, i in number.items():
        sizes = points.params[run == i]
        if sizes.max() > SAME_SIZE * sizes.min():
            raise UserError(
                f"{path}: column {columns.run!r}: the rows of {name!r} have from {sizes.min():.3g} "
                f"to {sizes.max():.3g} parameters, expected one model a run; give --run with the "
                "column that tells runs apart, or with a name that no column has: then each row "
                "is a run"
            )
    left = points.take(points.tokens / points.params >= min_tokens_per_param)
    if not len(left):
        raise UserError(
            f"{path}: no row is left: {len(points)} rows, none with {min_tokens_per_param:g} "
            "tokens per parameter (--min-tokens-per-param)"
        )
    return left


def _check_units(path: Path, names: dict[str, str], values: dict[str, np.ndarray]) -> None:
    """Raise UserError for parameters in millions, tokens in billions, FLOPs in exaFLOPs and such:
    numbers that are too small, or whose C is not near 6ND."""
    expected = "expected parameters, tokens and FLOPs, not millions or billions of them"
    for quantity in ("params", "tokens"):
        if quantity in values and len(values[quantity]) and values[quantity].min() < SMALLEST:
            least, most = values[quantity].min(), values[quantity].max()
            raise UserError(
                f"{path}: column {names[quantity]!r} goes from {least:g} to {most:g}; {expected}"
            )
    if len(values) == 3 and len(values["flops"]):
        ratios = values["flops"] / (6 * values["params"] * values["tokens"])
        ratio = float(np.median(ratios))
        if not 1 / FAR <= ratio <= FAR:
            n, d, c = (values[quantity][0] for quantity in ("params", "tokens", "flops"))
            raise UserError(
                f"{path}: {names['flops']} is {ratio:.3g} times 6 {names['params']} "
                f"{names['tokens']}, in the first row {c:g} for 6 * {n:g} * {d:g}; {expected}"
            )


def _separator(header: list[str]) -> str:
    """Return a hint, if another separator than a comma stands in a header that is a single name."""
    used = [mark for mark in ";\t|" if len(header) == 1 and mark in header[0]]
    return f"; expected ',' between columns, and found {used[0]!r}" if used else ""


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{path}: line {line}, column {name!r}: got {text!r}, expected a number above 0"
        )
    return value
