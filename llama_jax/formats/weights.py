"""Weights on their way between a checkpoint and a file, one matrix at a time.

Every format keeps a matrix as torch does, [out, in], and so does what moves here; a parameter of a
checkpoint has its input axes first. A place is a parameter's name and its layer, None for those
that are not of a layer.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from llama_jax.config import Experiment, ModelConfig, UserError
from llama_jax.data import tokenizer
from llama_jax.formats import vocabulary
from llama_jax.progress import Progress
from llama_jax.run import checkpoint
from llama_jax.run.fingerprint import fingerprint_of

EMBEDDING, HEAD = "embed_VD", "lm_head_DV"
QUERY, KEY, VALUE = "layers/attn/wq_DGRK", "layers/attn/wk_DGK", "layers/attn/wv_DGK"
TYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(jnp.bfloat16), "f16": np.dtype(np.float16)}


class Place(NamedTuple):
    name: str
    layer: int | None


def shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The matrix of each parameter, [out, in] or [D], without the layer axis; in a file's order."""
    D, F, V = cfg.embed_dim, cfg.mlp_dim, cfg.vocab_size
    q, kv = cfg.num_heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    head = {} if cfg.tie_embeddings else {HEAD: (V, D)}
    return {
        EMBEDDING: (V, D),
        "layers/attn_norm/scale_D": (D,),
        QUERY: (q, D),
        KEY: (kv, D),
        VALUE: (kv, D),
        "layers/attn/wo_GRKD": (D, q),
        "layers/mlp_norm/scale_D": (D,),
        "layers/mlp/w_gate_DF": (F, D),
        "layers/mlp/w_up_DF": (F, D),
        "layers/mlp/w_down_FD": (D, F),
        "final_norm/scale_D": (D,),
        **head,
    }


def parameter_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of each parameter as the checkpoint has it, stacked along the layers."""
    G, K = cfg.kv_heads, cfg.head_dim
    sizes = dict(D=cfg.embed_dim, F=cfg.mlp_dim, V=cfg.vocab_size, G=G, K=K, R=cfg.num_heads // G)
    return {
        name: (cfg.num_layers,) * name.startswith("layers/")
        + tuple(sizes[letter] for letter in name.rpartition("_")[2])
        for name in shapes(cfg)
    }


def num_values(cfg: ModelConfig) -> int:
    return sum(map(math.prod, parameter_shapes(cfg).values()))


def places(cfg: ModelConfig) -> list[Place]:
    """Every matrix of the model, in a file's order."""
    names = list(shapes(cfg))
    of_layer = [name for name in names if name.startswith("layers/")]
    first, last = names[: names.index(of_layer[0])], names[names.index(of_layer[-1]) + 1 :]
    middle = [Place(name, layer) for layer in range(cfg.num_layers) for name in of_layer]
    return [*(Place(n, None) for n in first), *middle, *(Place(n, None) for n in last)]


def to_matrix(parameter: np.ndarray, name: str, cfg: ModelConfig) -> np.ndarray:
    """[out, in] of one layer's parameter. A view."""
    if name == EMBEDDING or parameter.ndim == 1:
        return parameter
    num_out, num_in = shapes(cfg)[name]
    return parameter.reshape(num_in, num_out).T


def from_matrix(matrix: np.ndarray, name: str, cfg: ModelConfig) -> np.ndarray:
    """The inverse of to_matrix. A view."""
    if name == EMBEDDING or matrix.ndim == 1:
        return matrix
    shape = parameter_shapes(cfg)[name]
    return matrix.T.reshape(shape[1:] if name.startswith("layers/") else shape)


# The rotary embedding pairs element i of a head with i + K/2 in our checkpoints and in Hugging
# Face's and litgpt's files; in Meta's, GGUF's and llama2.c's, element 2i with 2i + 1.


def to_pairs(matrix: np.ndarray, name: str, cfg: ModelConfig) -> np.ndarray:
    """The rows of a query or key matrix [heads * K, in] in the order of Meta's layout; any other
    matrix as it is."""
    if name not in (QUERY, KEY):
        return matrix
    split = matrix.reshape(-1, 2, cfg.head_dim // 2, matrix.shape[1])
    return split.swapaxes(1, 2).reshape(matrix.shape)


def from_pairs(matrix: np.ndarray, name: str, cfg: ModelConfig) -> np.ndarray:
    """The inverse of to_pairs."""
    if name not in (QUERY, KEY):
        return matrix
    split = matrix.reshape(-1, cfg.head_dim // 2, 2, matrix.shape[1])
    return split.swapaxes(1, 2).reshape(matrix.shape)


def cast(matrix: np.ndarray, type: str, place: Place) -> np.ndarray:
    """A contiguous array of one of TYPES. Raises UserError if a value is too large for it."""
    with np.errstate(over="ignore"):
        done = np.ascontiguousarray(matrix.astype(TYPES[type], order="C"))
    if type == "f16" and not np.isfinite(done).all():
        where = f"layer {place.layer}" if place.layer is not None else "the model"
        raise UserError(
            f"--type: {place.name} of {where} has a value beyond the {np.finfo('f2').max:g} of "
            "f16; expected bf16 or f32"
        )
    return done


class Meter:
    """Progress in bytes of tensors, shown in MB."""

    def __init__(self, num_bytes: int):
        self._total, self._done = math.ceil(num_bytes / 1e6), 0.0
        self._progress = Progress(self._total, 0)

    def add(self, num_bytes: int, doing: str) -> None:
        before = math.ceil(self._done)
        self._done += num_bytes / 1e6
        if before < math.ceil(self._done) <= self._total:
            self._progress.update(math.ceil(self._done), f"MB  {doing}")

    def close(self) -> None:
        self._progress.close()


class Checkpoint:
    """The matrices of one checkpoint, read from it one by one."""

    def __init__(self, workdir: epath.Path, step: int, experiment: Experiment):
        meta = checkpoint.read_meta(workdir, step)
        checkpoint.check_shapes(workdir, meta, experiment)
        self.workdir, self.step = workdir, step
        self.experiment, self.cfg = experiment, experiment.model
        self.tokenizer = tokenizer.find(self.experiment.data.tokenizer).read_bytes()
        self.vocabulary = vocabulary.parse(self.tokenizer)
        where = f"data.tokenizer: {self.experiment.data.tokenizer}"
        vocabulary.check_size(len(self.vocabulary.pieces), self.cfg.vocab_size, where)
        self.observe: Callable[[int], None] = lambda num_bytes: None  # of every read
        self._expected = meta.fingerprints
        self._found: dict[Place, int] = {}
        self._arrays = {
            name: checkpoint.open_array(workdir, step, name) for name in shapes(self.cfg)
        }

    def matrix(self, place: Place) -> np.ndarray:
        """fp32, see to_matrix. Raises DamagedCheckpoint."""
        array = self._arrays[place.name]
        try:
            values = (array if place.layer is None else array[place.layer]).read().result()
        except ValueError as e:
            reason = f"{place.name}: {str(e).partition(' [')[0]}"
            raise checkpoint.damaged(self.workdir, self.step, reason) from e
        if place not in self._found:
            self._found[place] = fingerprint_of(values, (place.layer or 0) * values.size)
        self.observe(values.nbytes)
        return to_matrix(values, place.name, self.cfg)

    def check(self) -> None:
        """Raises DamagedCheckpoint if what was read, all of it by now, is not what was saved."""
        for name in shapes(self.cfg):
            found = sum(n for place, n in self._found.items() if place.name == name) % 2**32
            if found != self._expected.get(name):
                raise checkpoint.damaged(
                    self.workdir, self.step, f"model array {name} is not what was saved"
                )


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where in a file an array lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def type(self) -> str:
        return next(type for type, dtype in TYPES.items() if dtype == self.dtype)

    def read(self) -> np.ndarray:
        size = math.prod(self.shape)
        return np.fromfile(self.file, self.dtype, size, offset=self.offset).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in some format's files, opened and checked, its matrices still unread."""

    cfg: ModelConfig
    seq_len: int
    type: str  # of TYPES: the precision that the values have
    tokenizer: Callable[[], bytes | None]  # a SentencePiece model, if one comes with it
    matrix: Callable[[Place], np.ndarray]  # rotary layout and shape are ours
    where: Callable[[Place], str]  # its file and the file's name of it


def names_in(template: dict[str, str], cfg: ModelConfig) -> dict[str, Place]:
    """A format's name of each tensor -> its place. template: our name -> theirs, {} for layer."""
    return {template[place.name].format(place.layer): place for place in places(cfg)}


def check_tensors(
    found: dict[str, tuple[Path, tuple[int, ...]]],
    expected: dict[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
    """Raises UserError, naming file and tensor, unless what was found is what was expected.

    found: (file, shape) of each tensor. ignored: endings of names that may be there.
    """
    where = next(iter(found.values()))[0].parent if found else "the files"
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{where}: has no tensor {name}, which the model's configuration needs")
        file, got = found[name]
        if got != shape:
            raise UserError(f"{file}: tensor {name} has shape {got}, expected {shape}")
    for name, (file, _) in found.items():
        if name not in expected and not name.endswith(tuple(ignored)):
            raise UserError(f"{file}: tensor {name} is of no LLaMA that llama_jax knows")


def positive(kind: type, file: Path, field: str, value: Any) -> Any:
    """The value, of a model's configuration, as an int or a float. Raises UserError."""
    accepted = "whole number" if kind is int else "number"
    given = type(value) is int or (kind is float and type(value) is float)
    if not given or not 0 < value < math.inf:
        raise UserError(f"{file}: {field} is {value!r}, expected a {accepted} above 0")
    return kind(value)


def check_divisor(file: Path, field: str, value: int, of: str, size: int) -> None:
    if size % value:
        raise UserError(f"{file}: {field} is {value}, expected a divisor of {of}, {size}")


def read_if_there(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def read_json(file: Path) -> dict:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{file}: cannot be read as JSON: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds no JSON object")
    return value


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
