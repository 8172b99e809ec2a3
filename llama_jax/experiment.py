"""An experiment from its file, from JSON or by --set; validated, compared, identified."""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from llama_jax.config import (
    ATTENTION_KERNELS,
    COMPUTE_DTYPES,
    REMAT_POLICIES,
    DataConfig,
    Execution,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    UserError,
)
from llama_jax.hardware import parse_slice

SCHEMA = 1  # of an experiment in JSON; counts up when a field is renamed, moved or removed
IDENTITY = ("model", "data", "optimizer", "run", "init")  # what a result depends on
# But not on where these lie: what is in them is compared, by digest.
PLACES = ("data.corpus", "data.tokenizer", "data.store")


class UnnamedSlice(UserError):
    """An experiment file that names slices, but not the one asked for."""


class OtherSchema(UserError):
    """What another version of llama_jax has written as JSON."""


def load(
    path: str, overrides: typing.Sequence[str] = (), slice_name: str | None = None
) -> Experiment:
    """Read and validate an experiment. Raises UserError, as read and validate do."""
    experiment = read(path, overrides, slice_name)
    validate(experiment)
    return experiment


def read(
    path: str, overrides: typing.Sequence[str] = (), slice_name: str | None = None
) -> Experiment:
    """Return the experiment that get_experiment() of the file at `path` returns, not yet validated.

    overrides: "section.field=value" strings, applied in order.
    slice_name: takes the execution under that name in the file's SLICES, a dict of Executions. A
    file that names no slice goes on any; one that names others does if overrides give the mesh.
    Raises UserError for a file or value that cannot be used, UnnamedSlice for another slice.
    """
    module = execute(path)
    if not hasattr(module, "get_experiment"):
        raise UserError(
            f"experiment: {path}: no get_experiment(), which returns an Experiment, as in "
            "experiments/quickstart.py; get_sweep() is for llama-jax sweep"
        )
    experiment = called(path, module.get_experiment)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"experiment: get_experiment() of {path} returned {type(experiment).__name__}; "
            "it must return a llama_jax.config.Experiment"
        )
    slices = getattr(module, "SLICES", {})
    if not isinstance(slices, dict) or not all(
        isinstance(name, str) and isinstance(e, Execution) for name, e in slices.items()
    ):
        raise UserError(f"experiment: SLICES of {path} must be a dict of Executions by slice")
    check_types(experiment)
    for execution in slices.values():
        check_types(execution, "execution.")
    mesh_given = any(text.startswith("execution.mesh.") for text in overrides)
    experiment = _on_slice(path, experiment, slices, slice_name, mesh_given)
    for text in overrides:
        experiment = override(experiment, text)
    return experiment


def _on_slice(
    path: str,
    experiment: Experiment,
    slices: dict[str, Execution],
    name: str | None,
    mesh_given: bool,
) -> Experiment:
    execution = experiment.execution
    own = next((n for n, e in slices.items() if e is execution), execution.slice)
    known = list(slices) or ([own] if own else [])
    if name is None:
        name = own
    elif known and parse_slice(name).name not in known and not mesh_given:
        raise UnnamedSlice(
            f"--slice: {path} names no slice {name!r}; it has {', '.join(known)}; "
            f"for another, llama-jax plan {path} --search --slice {name} finds a layout, or --set "
            "execution.mesh.FIELD=N gives one"
        )
    if name is None:
        return experiment
    name = parse_slice(name).name
    execution = dataclasses.replace(slices.get(name, execution), slice=name)
    return dataclasses.replace(experiment, execution=execution)


def execute(path: str) -> types.ModuleType:
    """Run an experiment file, see find, and return its module. Raises UserError if it cannot be
    run.

    It may import the files beside it.
    """
    file = find(path)
    spec = importlib.util.spec_from_file_location("experiment", file)
    if spec is None or spec.loader is None:
        raise UserError(
            f"experiment: {path!r} is not a Python file; experiments/quickstart.py is one"
        )
    module = importlib.util.module_from_spec(spec)
    loaded = set(sys.modules)
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        called(path, functools.partial(spec.loader.exec_module, module))
    finally:
        beside = sys.path.pop(0)
        for name in set(sys.modules) - loaded:  # another directory may have one of that name
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(beside):
                del sys.modules[name]
    return module


def called(path: str, function: Callable[[], typing.Any]) -> typing.Any:
    """Return what code of the file at `path` returns. Raise UserError for whatever it raises."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # sys.exit(), too, would end us as if all were done
        raise UserError(f"experiment: {path}: {type(e).__name__}: {e}") from e


def find(path: str) -> Path:
    """Return the file at `path`, or else the one by that name, such as "quickstart", of those that
    come with the package. Raises UserError, which lists them, if there is neither."""
    if Path(path).is_file():
        return Path(path)
    package = Path(__file__).parent
    # Installed, they lie in the package; in a clone, beside it.
    own = next(d / "experiments" for d in (package, package.parent) if (d / "experiments").is_dir())
    named = {str(p.relative_to(own).with_suffix("")): p for p in own.rglob("*.py")}
    if path not in named:
        raise UserError(
            f"experiment: no file {path!r}, and none of that name comes with llama_jax; these do: "
            f"{', '.join(sorted(named))}"
        )
    return named[path]


# Fields by name


def fields(config: typing.Any, prefix: str = "") -> Iterator[tuple[str, typing.Any, typing.Any]]:
    """Yield (name, type, value) of every field that is no config itself: "execution.mesh.fsdp"."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, hint):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, value


def override(experiment: Experiment, text: str) -> Experiment:
    """Replace one field: override(e, "model.num_layers=8"). Raises UserError.

    Values are Python literals; a field of type str takes the text as it stands.
    """
    key, equals, value = text.partition("=")
    if not equals or ("." not in key and key != "init"):
        raise UserError(f"--set {text}: expected SECTION.FIELD=VALUE, e.g. model.num_layers=8")
    return _override(experiment, key, key.split("."), value)


def _override(config: typing.Any, key: str, names: list[str], value: str) -> typing.Any:
    name, *inner = names
    hints = typing.get_type_hints(type(config))
    if name not in hints:
        if isinstance(config, Experiment):
            raise UserError(f"{key}: no section {name!r}; there are {', '.join(hints)}")
        raise UserError(f"{key}: no such field; {_parent(key, names)} has {', '.join(hints)}")
    hint = hints[name]
    if dataclasses.is_dataclass(hint):
        if not inner:
            known = ", ".join(typing.get_type_hints(hint))
            raise UserError(f"{key}: expected one of its fields, {key}.FIELD=VALUE: {known}")
        return dataclasses.replace(
            config, **{name: _override(getattr(config, name), key, inner, value)}
        )
    if inner:
        raise UserError(f"{key}: no such field; {_parent(key, inner)} has no fields")
    parsed = _parse(value, hint)
    if not _matches(parsed, hint):
        raise UserError(f"{key}: got {shown(value)}, expected {_type_name(hint)}")
    return dataclasses.replace(config, **{name: parsed})


def shown(value: typing.Any) -> str:
    """Return what was given, for the line of an error: its beginning, if it is long."""
    try:
        text = repr(value)
    except ValueError:  # of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _parent(key: str, names: list[str]) -> str:
    return ".".join(key.split(".")[: -len(names)])


def _parse(text: str, hint: typing.Any) -> typing.Any:
    if hint is str:
        return text
    if hint == str | None and text.lower() != "none":
        return text
    literals = {"true": True, "false": False, "none": None}
    try:
        with warnings.catch_warnings(action="ignore"):  # of literals that are hardly any: 1is
            value = literals[text.lower()] if text.lower() in literals else ast.literal_eval(text)
        return float(value) if hint is float and type(value) is int else value
    except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
        return text


def _matches(value: typing.Any, hint: typing.Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_matches(value, arg) for arg in args)
    if origin is tuple and args[-1] is Ellipsis:
        return isinstance(value, tuple) and all(_matches(v, args[0]) for v in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(args) and all(map(_matches, value, args))
        )
    return type(value) is hint


def _type_name(hint: typing.Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


# What fits together

MOST_SHOWN = 200  # characters of a value in an error
LARGEST = 2**31 - 1  # that XLA and the steps of an optimizer count to
ZERO_ALLOWED = ("seed", "warmup_steps", "weight_decay", "final_lr_ratio", "fsdp")
Check = tuple[
    bool, str, typing.Any, str
]  # whether it holds, field, what was given, what is accepted


def validate(experiment: Experiment) -> None:
    """Raise UserError, naming field, value and what is accepted, unless the numbers fit."""
    check_types(experiment)
    for name, _, value in fields(experiment):
        if type(value) in (int, float):
            if type(value) is int and value > LARGEST:
                raise UserError(f"{name}: got {shown(value)}, expected {LARGEST} at the most")
            if not math.isfinite(value):
                raise UserError(f"{name}: got {value}, expected a finite number")
            zero = name.rpartition(".")[2] in ZERO_ALLOWED
            if not (value >= 0 if zero else value > 0):
                accepted = "0 or more" if zero else "more than 0"
                raise UserError(f"{name}: got {shown(value)}, expected {accepted}")
    checks = (
        _model_checks(experiment.model),
        _execution_checks(experiment),
        _data_checks(experiment.data),
        _optimizer_checks(experiment.optimizer, experiment.run.num_steps),
    )
    for section in checks:
        for ok, field, given, accepted in section:
            if not ok:
                raise UserError(f"{field}: got {given}, expected {accepted}")


def check_types(config: typing.Any, prefix: str = "") -> None:
    """Raise UserError, naming the field, unless every field of a config is of its type."""
    for name, hint, value in fields(config, prefix):
        if not _matches(value, hint):
            raise UserError(f"{name}: got {shown(value)}, expected {_type_name(hint)}")
        for text in _texts(value):
            if "\0" in text or text != text.encode(errors="ignore").decode():
                raise UserError(f"{name}: got {shown(value)}, expected text in UTF-8 without NUL")


def _texts(value: typing.Any) -> list[str]:
    """Return the strings in a field's value."""
    if isinstance(value, tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _one_of(field: str, given: str, accepted: typing.Iterable[str]) -> Check:
    return given in accepted, field, shown(given), f"one of {', '.join(accepted)}"


def _model_checks(model: ModelConfig) -> Iterator[Check]:
    D, H, G = model.embed_dim, model.num_heads, model.kv_heads
    yield D % H == 0, "model.num_heads", H, f"a divisor of model.embed_dim={D}"
    even = f"an even head_dim for rotary pairs, but model.embed_dim={D} gives {model.head_dim}"
    yield model.head_dim % 2 == 0, "model.num_heads", H, even
    yield H % G == 0, "model.num_kv_heads", G, f"a divisor of model.num_heads={H}"
    yield _one_of("model.compute_dtype", model.compute_dtype, COMPUTE_DTYPES)


def _execution_checks(experiment: Experiment) -> Iterator[Check]:
    model, data, execution = experiment.model, experiment.data, experiment.execution
    mesh = execution.mesh
    yield _one_of("run.gradient_dtype", experiment.run.gradient_dtype, COMPUTE_DTYPES)
    yield _one_of("execution.attention", execution.attention, ATTENTION_KERNELS)
    yield _one_of("execution.remat", execution.remat, REMAT_POLICIES)
    for field, size, axis in (
        ("model.embed_dim", model.embed_dim, "fsdp"),
        ("model.num_kv_heads", model.kv_heads, "tensor"),
        ("model.mlp_dim", model.mlp_dim, "tensor"),
        ("model.vocab_size", model.vocab_size, "tensor"),
    ):
        ways = getattr(mesh, axis) or 1
        yield size % ways == 0, field, size, f"a multiple of execution.mesh.{axis}={ways}"
    of_fsdp = f"a divisor of execution.mesh.fsdp={mesh.fsdp}"
    yield mesh.fsdp % mesh.ring == 0, "execution.mesh.ring", mesh.ring, of_fsdp
    ways = mesh.replica * (mesh.fsdp or 1) * execution.micro_batches
    multiple = (
        "a multiple of execution.mesh.replica * execution.mesh.fsdp * execution.micro_batches = "
        f"{ways}"
    )
    yield data.batch_size % ways == 0, "data.batch_size", data.batch_size, multiple
    in_time = f"a multiple of execution.mesh.tensor={mesh.tensor} with sequence_parallel"
    divides = not mesh.sequence_parallel or data.seq_len % mesh.tensor == 0
    yield divides, "data.seq_len", data.seq_len, in_time


def _data_checks(data: DataConfig) -> Iterator[Check]:
    rates = [rate for _, rate in data.mixture]
    names = [name for name, _ in data.mixture]
    yield bool(names), "data.mixture", data.mixture, "at least one (source, rate)"
    yield len(set(names)) == len(names), "data.mixture", names, "each source once"
    yield all(r > 0 for r in rates), "data.mixture", rates, "rates above 0"
    total = f"rates that sum to {sum(rates):g}"
    yield abs(sum(rates) - 1) < 1e-6, "data.mixture", total, "1"


def _optimizer_checks(optimizer: OptimizerConfig, num_steps: int) -> Iterator[Check]:
    warmup = optimizer.warmup_steps
    fewer = f"less than run.num_steps={num_steps}"
    yield warmup < num_steps, "optimizer.warmup_steps", warmup, fewer
    yield optimizer.b1 < 1, "optimizer.b1", optimizer.b1, "less than 1"
    yield optimizer.b2 < 1, "optimizer.b2", optimizer.b2, "less than 1"
    ratio = optimizer.final_lr_ratio
    yield ratio <= 1, "optimizer.final_lr_ratio", ratio, "0 to 1"


# JSON, and what is the same


def to_json(experiment: Experiment) -> str:
    """Return the text of config.json: every field, under the number of the schema."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(experiment)}, indent=2)


def from_json(text: str | bytes, where: str = "config.json") -> Experiment:
    """Return the experiment that to_json wrote. where: it was read, for the error.

    Raises UserError if the text is none, or of another schema than this version's.
    """
    try:
        sections = json.loads(text)
        schema = sections.pop("schema", None)
        if schema == SCHEMA:
            experiment = _config(Experiment, sections)
            check_types(experiment)
            return experiment
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{where}: not an experiment of this version of llama_jax: {e}") from e
    if type(schema) is int and schema > SCHEMA:
        raise OtherSchema(
            f"{where}: written by a newer llama_jax, in schema {schema}; this one reads schema "
            f"{SCHEMA}: update llama_jax"
        )
    raise OtherSchema(f"{where}: has schema {shown(schema)}, expected {SCHEMA}")


def _config(kind: typing.Any, values: dict[str, typing.Any]) -> typing.Any:
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: _config(hints[name], value)
            if dataclasses.is_dataclass(hints[name])
            else _tuples(value)
            for name, value in values.items()
        }
    )


def _tuples(value: typing.Any) -> typing.Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def identity(experiment: Experiment) -> str:
    """Return the SHA-256, in hex, of what a result depends on: see IDENTITY."""
    what = {name: value for name, _, value in fields(experiment) if _is_identity(name)}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def changes(old: Experiment, new: Experiment) -> dict[str, tuple[typing.Any, typing.Any]]:
    """Return field -> (old, new) for each field that differs: "execution.mesh.fsdp"."""
    return {
        name: (a, b)
        for (name, _, a), (_, _, b) in zip(fields(old), fields(new), strict=True)
        if a != b
    }


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Return one "section.field: OLD -> NEW" for each difference in what a result depends on."""
    return [
        f"{name}: {a!r} -> {b!r}"
        for name, (a, b) in changes(old, new).items()
        if _is_identity(name)
    ]


def _is_identity(name: str) -> bool:
    return name.partition(".")[0] in IDENTITY and name not in PLACES
