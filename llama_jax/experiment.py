"""An experiment by field: validated, compared, identified, in JSON."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator

from llama_jax.config import (
    ATTENTION_KERNELS,
    COMPUTE_DTYPES,
    REMAT_POLICIES,
    SPIKE_ACTIONS,
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    Upkeep,
    UserError,
)

SCHEMA = 1  # of an experiment in JSON; counts up when a field is renamed, moved or removed
IDENTITY = ("model", "data", "optimizer", "run", "init")  # what a result depends on
# But not on where these lie, and how they are read: what is in them is compared, by digest.
PLACES = (
    *("data.corpus", "data.sources", "data.held_out", "data.tokenizer", "data.store"),
    "upkeep.local_dir",
)


class OtherSchema(UserError):
    """What another version of llama_jax has written as JSON."""


# Fields by name


def fields(config: typing.Any, prefix: str = "") -> Iterator[tuple[str, typing.Any, typing.Any]]:
    """Yield (name, type, value) of every field that is no config itself: "execution.mesh.fsdp"."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, hint):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, value


def shown(value: typing.Any) -> str:
    """Return what was given, for the line of an error: its beginning, if it is long."""
    try:
        text = repr(value)
    except ValueError:  # of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def matches(value: typing.Any, hint: typing.Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(matches(value, arg) for arg in args)
    if origin is tuple and args[-1] is Ellipsis:
        return isinstance(value, tuple) and all(matches(v, args[0]) for v in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(args) and all(map(matches, value, args))
        )
    return type(value) is hint


def type_name(hint: typing.Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


# What fits together

MOST_SHOWN = 200  # characters of a value in an error
LARGEST = 2**31 - 1  # that XLA and the steps of an optimizer count to
ZERO_ALLOWED = ("seed", "warmup_steps", "weight_decay", "final_lr_ratio", "fsdp", "damaged_rows")
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
        _upkeep_checks(experiment.upkeep),
    )
    for section in checks:
        for ok, field, given, accepted in section:
            if not ok:
                raise UserError(f"{field}: got {given}, expected {accepted}")


def check_types(config: typing.Any, prefix: str = "") -> None:
    """Raise UserError, naming the field, unless every field of a config is of its type."""
    for name, hint, value in fields(config, prefix):
        if not matches(value, hint):
            raise UserError(f"{name}: got {shown(value)}, expected {type_name(hint)}")
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
    yield _one_of("run.on_spike", experiment.run.on_spike, SPIKE_ACTIONS)
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
    for name in ("corpus", "tokenizer"):
        given = getattr(data, name)
        reached = "://" not in given or given.startswith("gs://")
        yield reached, f"data.{name}", shown(given), "a local path or gs://"
    rates = [rate for _, rate in data.mixture]
    names = [name for name, _ in data.mixture]
    yield bool(names), "data.mixture", data.mixture, "at least one (source, rate)"
    yield len(set(names)) == len(names), "data.mixture", names, "each source once"
    yield all(r > 0 for r in rates), "data.mixture", rates, "rates above 0"
    total = f"rates that sum to {sum(rates):g}"
    yield abs(sum(rates) - 1) < 1e-6, "data.mixture", total, "1"
    placed = [name for name, _, _ in data.sources]
    for name in placed:
        yield _one_of("data.sources", name, names)
    yield len(set(placed)) == len(placed), "data.sources", placed, "each source once"
    yield data.held_out < 1, "data.held_out", data.held_out, "less than 1"


def _optimizer_checks(optimizer: OptimizerConfig, num_steps: int) -> Iterator[Check]:
    warmup = optimizer.warmup_steps
    fewer = f"less than run.num_steps={num_steps}"
    yield warmup < num_steps, "optimizer.warmup_steps", warmup, fewer
    yield optimizer.b1 < 1, "optimizer.b1", optimizer.b1, "less than 1"
    yield optimizer.b2 < 1, "optimizer.b2", optimizer.b2, "less than 1"
    ratio = optimizer.final_lr_ratio
    yield ratio <= 1, "optimizer.final_lr_ratio", ratio, "0 to 1"


def _upkeep_checks(upkeep: Upkeep) -> Iterator[Check]:
    place, every = upkeep.local_dir, upkeep.local_every
    both = "that and upkeep.local_every, or neither"
    yield (place is None) == (every is None), "upkeep.local_dir", shown(place), both
    fewer = f"less than upkeep.checkpoint_every={upkeep.checkpoint_every}"
    yield every is None or every < upkeep.checkpoint_every, "upkeep.local_every", every, fewer
    yield "://" not in (place or ""), "upkeep.local_dir", shown(place), "a directory of each host"


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
