"""What llama_jax can do with one format of files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.config import ModelConfig
from llama_jax.formats.parameters import Parameter, cast
from llama_jax.formats.proofs.files import Files
from llama_jax.formats.weights import Weights


def _rounded(matrix: np.ndarray, dtype: str, parameter: Parameter, cfg: ModelConfig) -> np.ndarray:
    return cast(matrix, dtype, parameter).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A module of a format ends with one of these, and convert.FORMATS names it."""

    # Reading: whether a path is of this format, and the model there. Raise UserError.
    is_it: Callable[[Path], bool] = lambda path: False
    read: Callable[[Path], Weights] | None = None

    # Writing: write(weights, directory, dtype, **options). Raises UserError.
    write: Callable[..., None] | None = None
    dtypes: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # and their defaults
    # fp32 values of a matrix as the files of a dtype hold them.
    rounded: Callable[[np.ndarray, str, Parameter, ModelConfig], np.ndarray] = _rounded

    # Proving: open_files(directory, weights, dtype) by an independent reader.
    open_files: Callable[[Path, Weights, str], Files] | None = None
    client: tuple[str, ...] = ()  # the packages to install for its program, which comes first
    keeps_spaces: bool = False  # its programs remove no extra spaces, even if the tokenizer does
