"""A model opened in some files: configuration, tokenizer, and its matrices one by one."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig, UserError
from llama_jax.data.tokenizer import JSON, Vocabulary, file_name, from_bytes
from llama_jax.formats import vocabulary
from llama_jax.formats.parameters import Parameter

MOST = 2**31 - 1  # of any size, as in all programs that the formats are of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A model opened in some files, checked, its matrices unread.

    Whatever changes a model on its way wraps one: dataclasses.replace(weights, matrix=...).
    """

    name: str
    cfg: ModelConfig
    seq_len: int
    dtype: str  # of DTYPES: the precision that the values have
    matrix: Callable[[Parameter], np.ndarray]  # fp32 [out, in] or [D], in our rotary layout
    where: Callable[[Parameter], str]  # its file and the file's name of it, for errors
    read_tokenizer: Callable[[], bytes | None]  # see data.tokenizer.read; None: none comes
    provenance: dict[str, Any]  # what the manifest of a conversion says of these files
    # Raises UserError if what was read, all of it by now, is not what was saved.
    verify: Callable[[], None] = lambda: None

    def observed(self, observe: Callable[[int], None]) -> "Weights":
        """Return the same, but each matrix that is read tells `observe` its bytes."""

        def matrix(parameter: Parameter) -> np.ndarray:
            values = self.matrix(parameter)
            observe(values.nbytes)
            return values

        return dataclasses.replace(self, matrix=matrix)

    @functools.cached_property
    def tokenizer(self) -> bytes | None:
        return self.read_tokenizer()

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer. Raise UserError if there is none."""
        if self.tokenizer is None:
            raise UserError(f"{self.name}: comes without a tokenizer; give --tokenizer")
        return from_bytes(self.tokenizer, f"{self.name}: the tokenizer")

    @functools.cached_property
    def sentencepiece(self) -> Any:
        """Return the tokenizer as vocabulary.parse does, None for a tokenizer.json. Raise UserError
        if there is none."""
        if self.tokenizer is None:
            raise UserError(f"{self.name}: comes without a tokenizer; give --tokenizer")
        return None if file_name(self.tokenizer) == JSON else vocabulary.parse(self.tokenizer)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, unread."""

    file: Path
    dtype: str  # of DTYPES
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # as fp32


def check_tensors(
    where: Path,
    found: dict[str, tuple[Path, tuple[int, ...]]],
    expected: Iterable[tuple[str, tuple[int, ...]]],
    ignored: Iterable[str] = (),
) -> None:
    """Raise UserError, naming file and tensor, unless what was found is what was expected.

    where: the model. found: (file, shape) of each tensor. expected: names and shapes, which may
    come without end, as of two thousand million layers. ignored: endings of names that may be
    there.
    """
    known = set()
    for name, shape in expected:
        if name not in found:
            raise UserError(f"{where}: has no tensor {name}, which the model's configuration needs")
        file, got = found[name]
        if got != shape:
            raise UserError(f"{file}: tensor {name} has shape {got}, expected {shape}")
        known.add(name)
    for name, (file, _) in found.items():
        if name not in known and not name.endswith(tuple(ignored)):
            raise UserError(f"{file}: tensor {name} is of no LLaMA that llama_jax knows")


def positive(kind: type, file: Path, field: str, value: Any) -> Any:
    """Return a value of a model's configuration as an int or a float. Raise UserError if it is
    none above 0."""
    accepted = "whole number above 0 and below 2**31" if kind is int else "number above 0"
    given = type(value) is int or (kind is float and type(value) is float)
    largest = MOST if kind is int else sys.float_info.max
    if not given or not 0 < value <= largest:
        raise UserError(f"{file}: {field} is {printable(value)}, expected a {accepted}")
    return kind(value)


def check_divisor(file: Path, field: str, value: int, of: str, size: int) -> None:
    if size % value:
        raise UserError(f"{file}: {field} is {value}, expected a divisor of {of}, {size}")


def read_if_there(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.exists() else None
    except OSError as e:
        raise UserError(f"{file}: cannot be read: {e.strerror}") from e


def printable(value: Any) -> str:
    """Return a value of a file in a line that is not long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{file}: cannot be read as JSON: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds no JSON object")
    return value


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
