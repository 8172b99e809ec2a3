"""Every number a run depends on, as frozen dataclasses: an experiment file returns an Experiment.

Nothing else in the package reads flags, environment variables or files for its settings.
"""

import ast
import dataclasses
import importlib.util
import json
import types
import typing
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend. The command line prints it as one line and exits with 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape and numerics of one decoder (paper section 2.2; defaults are the paper's)."""

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None  # None: one per query head, as in the paper
    mlp_dim_override: int | None = None  # None: the paper's rule, see mlp_dim
    vocab_size: int = 32_000
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False
    init_std: float = 0.02  # the paper does not state its initialisation; 0.02 is OpenLLaMA's
    compute_dtype: str = "bfloat16"  # one of COMPUTE_DTYPES; parameters are always float32
    remat: str = "nothing"  # one of REMAT_POLICIES
    attention: str = "reference"  # one of ATTENTION_KERNELS
    attention_block: int = 512  # queries and keys in a tile of the splash kernel

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def mlp_dim(self) -> int:
        """Width of the SwiGLU: 2/3 of 4 * embed_dim, rounded up to a multiple of 256."""
        if self.mlp_dim_override is not None:
            return self.mlp_dim_override
        return -(-(8 * self.embed_dim // 3) // 256) * 256


LOSS_CHUNK = 1024  # tokens per device whose logits exist at a time
COMPUTE_DTYPES = ("bfloat16", "float32")
ATTENTION_KERNELS = ("reference", "splash", "cudnn")  # any device; TPU; NVIDIA GPU


@dataclasses.dataclass(frozen=True)
class Remat:
    """The outputs in a block, by their names in model.py, that the backward pass need not compute
    again: kept in device memory, or sent to the host's and fetched back."""

    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()


# The paper, section 2.4: save what is expensive to compute, such as the outputs of linear layers.
_LINEAR = ("query", "key", "value", "out", "gate", "up")
REMAT_POLICIES = {
    "nothing": Remat(),  # but the block's input, called residual
    "qkv": Remat(save=("query", "key", "value", "context")),
    "qkv_offload": Remat(save=("query", "key", "value"), offload=("context", "residual")),
    "offload": Remat(offload=("query", "key", "value", "context", "residual")),
    "linear": Remat(save=(*_LINEAR, "context")),
    "linear_offload": Remat(save=_LINEAR, offload=("context", "residual")),
    "mlp_offload": Remat(
        save=("gate", "up"), offload=("query", "key", "value", "out", "context", "residual")
    ),
    "everything": Remat(),  # no rematerialisation at all, see model.py
}

# Options of libtpu for run.compiler_options; the effect of each is in experiments/LOG.md.
ASYNC_GATHERS = (
    "xla_enable_async_all_gather",
    "true",
    "v4 gathers the next weights while it multiplies by these; v5p's gathers stay synchronous",
)
WHOLE_LOOPS = (
    "xla_tpu_pipeline_memory_host_transfers",
    "false",
    "with offloading, the pipeliner peels a layer off the loop and copies all that is saved",
)

# The paper's sizes (Table 2). norm_eps is the released params.json's: 1e-5 for 65B only.
LLAMA_7B = ModelConfig(num_layers=32, embed_dim=4096, num_heads=32)
LLAMA_13B = ModelConfig(num_layers=40, embed_dim=5120, num_heads=40)
LLAMA_33B = ModelConfig(num_layers=60, embed_dim=6656, num_heads=52)
LLAMA_65B = ModelConfig(num_layers=80, embed_dim=8192, num_heads=64, norm_eps=1e-5)
# Smaller members of the family, for sweeps and benchmarks. 15M and 110M follow llama2.c's shapes,
# which count one (tied) embedding; 1B is TinyLlama's width and depth with one KV head per head.
LLAMA_15M = ModelConfig(num_layers=6, embed_dim=288, num_heads=6)
LLAMA_110M = ModelConfig(num_layers=12, embed_dim=768, num_heads=12)
LLAMA_1B = ModelConfig(num_layers=22, embed_dim=2048, num_heads=32)


# Share of the training tokens that comes from each source (paper Table 1).
LLAMA_MIXTURE = (
    ("commoncrawl", 0.67),
    ("c4", 0.15),
    ("github", 0.045),
    ("wikipedia", 0.045),
    ("books", 0.045),
    ("arxiv", 0.025),
    ("stackexchange", 0.02),
)


BATCH_KEYS = ("tokens", "targets", "segments", "positions")  # the arrays of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and in which order: global batch n depends on these fields and on n alone."""

    mixture: tuple[tuple[str, float], ...] = LLAMA_MIXTURE  # (seqio Task, share of tokens)
    corpus: str = "embedded"  # or a directory: CORPUS/SOURCE/{train,validation}*.jsonl[.gz|.xz]
    tokenizer: str = "embedded"  # or the path of a SentencePiece model
    store: str  # directory of the token store that `llama-jax prepare` writes
    seq_len: int = 2048  # tokens in a row
    batch_size: int  # rows in a step, over all devices and micro-batches
    seed: int = 0
    attend_across_documents: bool = False  # True: a row is one segment, as in the paper's replicas


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and a cosine to a tenth of the peak (paper section 2.3)."""

    peak_lr: float
    warmup_steps: int = 2_000
    final_lr_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8  # the paper does not state it; this is optax's and PyTorch's
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = (
        "norm",
    )  # a parameter with one of these in its path is not decayed
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways each mesh axis splits the devices; their product is the number of devices."""

    replica: int = 1  # batch split, parameters copied
    fsdp: int = 1  # batch and parameters split
    ring: int = 1  # of fsdp, so many devices sum gradients in hops, see sharding.reduce_scatter
    tensor: int = 1  # heads, MLP width and vocabulary split
    sequence_parallel: bool = False  # between blocks, split activations in time over `tensor`
    slice: str | None = None  # what it is laid out for, as `llama-jax plan` names it: "v5p:4x4x4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, and what is kept."""

    num_steps: int
    micro_batches: int = 1  # gradients of this many slices of the batch are added up
    gradient_dtype: str = "float32"  # one of COMPUTE_DTYPES: of the sum over micro-batches
    # Of libtpu or XLA, for the train step: (name, value, the reason why).
    compiler_options: tuple[tuple[str, str, str], ...] = ()
    seed: int = 0  # of the initial weights
    eval_every: int  # steps
    eval_rows: int  # held-out rows per source, at the most
    checkpoint_every: int  # steps
    keep_last: int = 3  # checkpoints
    keep_every: int | None = None  # also keep every checkpoint at a multiple of this many steps
    wandb_project: str | None = None  # also log to this Weights & Biases project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    run: RunConfig


def load(
    path: str, overrides: typing.Sequence[str] = (), slice_name: str | None = None
) -> Experiment:
    """The validated experiment that get_experiment() of the file at `path` returns.

    overrides: "section.field=value" strings, applied in order before validation.
    slice_name: goes to get_experiment(slice) if it is one of the file's SLICES; otherwise the
    experiment is the default one, and its mesh is said to be for that slice.
    Raises UserError for a file, field or value that cannot be used.
    """
    module = execute(path)
    try:
        if slice_name in getattr(module, "SLICES", ()):
            experiment = module.get_experiment(slice_name)
        else:
            experiment = module.get_experiment()
    except Exception as e:
        raise UserError(f"experiment: {path}: {type(e).__name__}: {e}") from e
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"experiment: get_experiment() of {path} returned {type(experiment).__name__}; "
            "it must return a llama_jax.config.Experiment"
        )
    if slice_name is not None:
        experiment = override(experiment, f"mesh.slice={slice_name}")
    for text in overrides:
        experiment = override(experiment, text)
    validate(experiment)
    return experiment


def execute(path: str) -> types.ModuleType:
    """The module that the file at `path` is. Raises UserError if it cannot be run."""
    if not Path(path).is_file():
        raise UserError(f"experiment: no file {path!r}; experiments/quickstart.py is one")
    spec = importlib.util.spec_from_file_location("experiment", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"experiment: {path!r} is not a Python file; experiments/quickstart.py is one"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise UserError(f"experiment: {path}: {type(e).__name__}: {e}") from e
    return module


def override(experiment: Experiment, text: str) -> Experiment:
    """Replaces one field: override(e, "model.num_layers=8"). Raises UserError.

    Values are Python literals; a field of type str takes the text as it stands.
    """
    key, equals, value = text.partition("=")
    section_name, _, field_name = key.partition(".")
    if not equals or not field_name:
        raise UserError(f"--set {text}: expected SECTION.FIELD=VALUE, e.g. model.num_layers=8")
    sections = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
    if section_name not in sections:
        raise UserError(f"{key}: no section {section_name!r}; there are {', '.join(sections)}")
    section = sections[section_name]
    hints = typing.get_type_hints(type(section))
    if field_name not in hints:
        raise UserError(f"{key}: no such field; {section_name} has {', '.join(hints)}")
    parsed = _parse(value, hints[field_name])
    if not _matches(parsed, hints[field_name]):
        raise UserError(f"{key}: got {value!r}, expected {_type_name(hints[field_name])}")
    section = dataclasses.replace(section, **{field_name: parsed})
    return dataclasses.replace(experiment, **{section_name: section})


def _parse(text: str, hint: typing.Any) -> typing.Any:
    if hint is str:
        return text
    if hint == str | None and text.lower() != "none":
        return text
    literals = {"true": True, "false": False, "none": None}
    try:
        value = literals[text.lower()] if text.lower() in literals else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if hint is float and type(value) is int:
        return float(value)
    return value


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


ZERO_ALLOWED = ("seed", "warmup_steps", "weight_decay", "final_lr_ratio")


def validate(experiment: Experiment) -> None:
    """Raises UserError, naming field, value and what is accepted, unless the numbers fit."""
    for section_field in dataclasses.fields(experiment):
        section = getattr(experiment, section_field.name)
        for name, hint in typing.get_type_hints(type(section)).items():
            value = getattr(section, name)
            if not _matches(value, hint):
                raise UserError(
                    f"{section_field.name}.{name}: got {value!r}, expected {_type_name(hint)}"
                )
            if type(value) in (int, float):
                ok = value >= 0 if name in ZERO_ALLOWED else value > 0
                accepted = "0 or more" if name in ZERO_ALLOWED else "more than 0"
                if not ok:
                    raise UserError(
                        f"{section_field.name}.{name}: got {value}, expected {accepted}"
                    )

    def check(ok: bool, field: str, given: typing.Any, accepted: str) -> None:
        if not ok:
            raise UserError(f"{field}: got {given}, expected {accepted}")

    model, data, mesh = experiment.model, experiment.data, experiment.mesh
    optimizer, run = experiment.optimizer, experiment.run
    D, H, G = model.embed_dim, model.num_heads, model.kv_heads
    check(D % H == 0, "model.num_heads", H, f"a divisor of model.embed_dim={D}")
    check(
        model.head_dim % 2 == 0,
        "model.num_heads",
        H,
        f"an even head_dim for rotary pairs, but model.embed_dim={D} gives {model.head_dim}",
    )
    check(H % G == 0, "model.num_kv_heads", G, f"a divisor of model.num_heads={H}")
    check(
        model.compute_dtype in COMPUTE_DTYPES,
        "model.compute_dtype",
        repr(model.compute_dtype),
        f"one of {', '.join(COMPUTE_DTYPES)}",
    )
    check(
        run.gradient_dtype in COMPUTE_DTYPES,
        "run.gradient_dtype",
        repr(run.gradient_dtype),
        f"one of {', '.join(COMPUTE_DTYPES)}",
    )
    check(
        model.attention in ATTENTION_KERNELS,
        "model.attention",
        repr(model.attention),
        f"one of {', '.join(ATTENTION_KERNELS)}",
    )
    check(
        model.remat in REMAT_POLICIES,
        "model.remat",
        repr(model.remat),
        f"one of {', '.join(REMAT_POLICIES)}",
    )

    for field, size, axis in (
        ("model.embed_dim", D, "fsdp"),
        ("model.num_kv_heads", G, "tensor"),
        ("model.mlp_dim", model.mlp_dim, "tensor"),
        ("model.vocab_size", model.vocab_size, "tensor"),
    ):
        ways = getattr(mesh, axis)
        check(size % ways == 0, field, size, f"a multiple of mesh.{axis}={ways}")
    check(mesh.fsdp % mesh.ring == 0, "mesh.ring", mesh.ring, f"a divisor of mesh.fsdp={mesh.fsdp}")
    ways = mesh.replica * mesh.fsdp * run.micro_batches
    check(
        data.batch_size % ways == 0,
        "data.batch_size",
        data.batch_size,
        f"a multiple of mesh.replica * mesh.fsdp * run.micro_batches = {ways}",
    )
    if mesh.sequence_parallel:
        check(
            data.seq_len % mesh.tensor == 0,
            "data.seq_len",
            data.seq_len,
            f"a multiple of mesh.tensor={mesh.tensor} with mesh.sequence_parallel",
        )

    rates = [rate for _, rate in data.mixture]
    names = [name for name, _ in data.mixture]
    check(bool(names), "data.mixture", data.mixture, "at least one (source, rate)")
    check(len(set(names)) == len(names), "data.mixture", names, "each source once")
    check(all(r > 0 for r in rates), "data.mixture", rates, "rates above 0")
    check(abs(sum(rates) - 1) < 1e-6, "data.mixture", f"rates that sum to {sum(rates):g}", "1")
    check(
        optimizer.warmup_steps < run.num_steps,
        "optimizer.warmup_steps",
        optimizer.warmup_steps,
        f"less than run.num_steps={run.num_steps}",
    )
    check(optimizer.b1 < 1, "optimizer.b1", optimizer.b1, "less than 1")
    check(optimizer.b2 < 1, "optimizer.b2", optimizer.b2, "less than 1")
    check(
        optimizer.final_lr_ratio <= 1,
        "optimizer.final_lr_ratio",
        optimizer.final_lr_ratio,
        "0 to 1",
    )


def to_json(experiment: Experiment) -> str:
    return json.dumps(dataclasses.asdict(experiment), indent=2)


def from_json(text: str) -> Experiment:
    """The inverse of to_json. Raises UserError if the text is not an experiment of this version."""

    def tuples(value: typing.Any) -> typing.Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        sections = json.loads(text)
        hints = typing.get_type_hints(Experiment)
        return Experiment(
            **{
                name: hints[name](**{k: tuples(v) for k, v in fields.items()})
                for name, fields in sections.items()
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"config.json: not an experiment of this version of llama_jax: {e}") from e


def differences(old: Experiment, new: Experiment) -> list[str]:
    """One "section.field: OLD -> NEW" for each field that differs."""
    a, b = dataclasses.asdict(old), dataclasses.asdict(new)
    return [
        f"{section}.{field}: {a[section][field]!r} -> {b[section][field]!r}"
        for section in a
        for field in a[section]
        if a[section][field] != b[section][field]
    ]
