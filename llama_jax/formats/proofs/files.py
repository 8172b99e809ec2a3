"""Exported files, read once more: by the library that their users have, and by names and axes that
are written here a second time, so that a mistake of a writer is not made again in its check."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.formats.parameters import parameters
from llama_jax.formats.weights import Weights, printable

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


Inputs = Callable[[np.ndarray, Tensor], np.ndarray]  # x as it is multiplied with a tensor


@dataclasses.dataclass(frozen=True)
class Files:
    """Exported files, opened by an independent reader."""

    conventions: Conventions
    tensor: Callable[[str, int], Tensor]  # of a role and, if it is of one, a layer
    differences: list[str]  # of their configuration from the checkpoint's
    encode: Callable[[str], list[int]]  # a text's tokens
    decode: Callable[[list[int]], str]  # and back
    inputs: Inputs | None = None  # of the format's program, where it rounds them


CAUSES = {  # what is wrong when these fields are
    **dict.fromkeys(
        ("rms_norm_eps", "norm_eps", "llama.attention.layer_norm_rms_epsilon"), "norm eps"
    ),
    **dict.fromkeys(
        ("rope_theta", "rope_parameters", "rope_base", "llama.rope.freq_base"), "rope base"
    ),
}
ABSENT = object()


def differences(file: str, got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return what is said of each field of a file that differs, is missing, or should not be there.

    Of the values in a field, the first that differs is named.
    """
    said = []
    for field in dict.fromkeys((*expected, *got)):
        where, value, wanted = _first(field, got.get(field, ABSENT), expected.get(field, ABSENT))
        if where:
            cause = f"{CAUSES[field]}: " if field in CAUSES else ""
            right = "nothing" if wanted is ABSENT else f"the checkpoint's {_shown(wanted)}"
            said.append(f"{cause}{where} is {_shown(value)} in {file}, expected {right}")
    return said


def _first(where: str, got: Any, expected: Any) -> tuple[str, Any, Any]:
    """Return the place of the first value that differs, and both; an empty place if none does."""
    if isinstance(got, dict) and isinstance(expected, dict):
        keys = dict.fromkeys((*expected, *got))
        parts = ((f"{where}.{k}", got.get(k, ABSENT), expected.get(k, ABSENT)) for k in keys)
    elif isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        parts = ((f"{where}[{i}]", *pair) for i, pair in enumerate(zip(got, expected, strict=True)))
    else:
        return ("" if _same(got, expected) else where), got, expected
    return next((found for part in parts if (found := _first(*part))[0]), ("", got, expected))


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, float) and type(got) in (int, float):
        return math.isclose(got, expected, rel_tol=1e-6)  # GGUF keeps them in fp32
    return type(got) is type(expected) and got == expected


def _shown(value: Any) -> str:
    return "missing" if value is ABSENT else printable(value)


def names_of(template: dict[str, str], cfg: ModelConfig) -> set[str]:
    """Return the names of all tensors. template: role -> name, with {} for the layer."""
    return {template[p.role].format(p.layer) + ".weight" for p in parameters(cfg)}


def extra(kind: str, where: str, found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Return what is said of each thing of a kind that should not be there."""
    wrong = sorted(set(found) - set(expected))
    return [f"{name}: is a {kind} in {where} that no model of this shape has" for name in wrong]


def extra_files(directory: Path, expected: Iterable[str]) -> list[str]:
    return extra("file", directory.name, (path.name for path in directory.iterdir()), expected)


def check_tokenizer(directory: Path, source: Weights) -> None:
    """Raise Unreadable if tokenizer.model is not the checkpoint's."""
    if (directory / "tokenizer.model").read_bytes() != source.tokenizer:
        raise Unreadable("tokenizer.model: is not the checkpoint's")


def special_ids(source: Weights, *names: str) -> dict[str, int]:
    return {name: getattr(source.sentencepiece.trainer_spec, name) for name in names}


Encode = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]


def fast_tokenizer(directory: Path) -> tuple[Encode, Decode]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<s>" in a text is text
    return lambda text: tokenizer.encode(text).ids, tokenizer.decode


def sentencepiece_model(model: bytes) -> tuple[Encode, Decode]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda text: [processor.bos_id(), *processor.encode(text)], processor.decode
