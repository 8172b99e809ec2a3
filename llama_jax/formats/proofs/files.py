"""Exported files, read once more: by the library that their users have, and by names and axes that
are written here a second time, so that a mistake of a writer is not made again in its check."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.formats.weights import Weights

ROWS = 4096  # of a matrix that are read at a time


class Unreadable(Exception):
    """Files in which a reader of their format does not find what it looks for."""


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How the files' numbers are to be computed with."""

    norm_eps: float
    rope_theta: float
    q_pairs: bool  # rotary partners are neighbours (2i, 2i + 1), and not (i, i + K/2)
    k_pairs: bool
    transposed: str | None = None  # a role: a mistake to try
    swapped: bool = False  # gate and up: another


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A matrix [out, in] or a vector in a file."""

    name: str  # the format's
    shape: tuple[int, ...]
    read: Callable[[slice], np.ndarray]  # some rows, as fp32

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, self.shape[0], ROWS):
            rows = slice(start, min(start + ROWS, self.shape[0]))
            yield rows, self.read(rows)

    def whole(self) -> np.ndarray:
        return self.read(slice(0, self.shape[0]))


@dataclasses.dataclass(frozen=True)
class Files:
    """Exported files, opened by an independent reader."""

    conventions: Conventions
    tensor: Callable[[str, int], Tensor]  # of a role and, if it is of one, a layer
    differences: list[str]  # of their configuration from the checkpoint's
    encode: Callable[[str], list[int]]  # a text's tokens


def differences(file: str, fields: dict[str, tuple[Any, Any]]) -> list[str]:
    """Return what is said of each field that differs. fields: name -> what the file says and what
    the checkpoint does."""
    return [
        f"{field} is {got!r} in {file}, expected the checkpoint's {expected!r}"
        for field, (got, expected) in fields.items()
        if not _same(got, expected)
    ]


def _same(got: Any, expected: Any) -> bool:
    if isinstance(got, float) and isinstance(expected, float):
        return math.isclose(got, expected, rel_tol=1e-6)  # GGUF keeps them in fp32
    return got == expected


def special_ids(source: Weights, *names: str) -> dict[str, int]:
    return {name: getattr(source.vocabulary.trainer_spec, name) for name in names}


def fast_tokenizer(directory: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text
    return lambda text: tokenizer.encode(text).ids


def sentencepiece_encoder(model: bytes) -> Callable[[str], list[int]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda text: [processor.bos_id(), *processor.encode(text)]
