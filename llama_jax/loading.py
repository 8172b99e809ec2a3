"""An experiment from its file and --set."""

import ast
import dataclasses
import functools
import importlib.util
import sys
import types
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

from llama_jax.config import Execution, Experiment, UserError
from llama_jax.data import tokenizer
from llama_jax.experiment import check_types, matches, shown, type_name, validate
from llama_jax.hardware import parse_slice
from llama_jax.process import Terminated


class UnnamedSlice(UserError):
    """An experiment file that names slices, but not the one asked for."""


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
    """Return the experiment that get_experiment() of the file at `path` returns, with a vocabulary,
    not yet validated.

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
    return with_vocabulary(experiment)


def with_vocabulary(experiment: Experiment) -> Experiment:
    """Return it with the size of data.tokenizer in place of a model.vocab_size of 0. Raise
    UserError if there is no such file."""
    if experiment.model.vocab_size != 0:
        return experiment
    size = tokenizer.load(experiment.data.tokenizer).vocab_size
    model = dataclasses.replace(experiment.model, vocab_size=size)
    return dataclasses.replace(experiment, model=model)


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
    except (KeyboardInterrupt, Terminated):
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
    if not matches(parsed, hint):
        raise UserError(f"{key}: got {shown(value)}, expected {type_name(hint)}")
    return dataclasses.replace(config, **{name: parsed})


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
