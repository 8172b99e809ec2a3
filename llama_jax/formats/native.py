"""Our own checkpoints: a run's workdir as Weights, and one written matrix by matrix."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from llama_jax.config import (
    DataConfig,
    Experiment,
    OptimizerConfig,
    RunConfig,
    Upkeep,
    UserError,
)
from llama_jax.data import tokenizer as vocabularies
from llama_jax.data.schedule import Schedule
from llama_jax.experiment import identity, to_json, validate
from llama_jax.formats import vocabulary
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import (
    NAMES,
    OF_LAYERS,
    Parameter,
    check_known,
    from_matrix,
    native_shapes,
    parameters,
    shapes,
    to_matrix,
)
from llama_jax.formats.weights import Weights
from llama_jax.loading import override
from llama_jax.model import Llama
from llama_jax.place import absolute
from llama_jax.run import checkpoint, managers
from llama_jax.run.checkpoint import Origin, damaged
from llama_jax.run.fingerprint import PIECE, fingerprint_of
from llama_jax.run.workdir import (
    checkpoints_dir,
    config_file,
    locate,
    metrics_file,
    store_dir,
    tokenizer_file,
    write_whole,
)
from llama_jax.sharding import abstract
from llama_jax.step import init_state

# Fields that exported files hold; others, beside SHAPE_FIELDS, say how the model is computed.
EXPORTED_FIELDS = ("norm_eps", "rope_theta", "init_std")


def is_it(path: Path) -> bool:
    """Return whether a run has begun there."""
    workdir = epath.Path(path)
    return checkpoints_dir(workdir).exists() or metrics_file(workdir).exists()


def read(path: Path) -> Weights:
    """Open the newest checkpoint of a workdir. Raise UserError."""
    return read_step(*open_run(str(path), ()))


def open_run(text: str, overrides: Sequence[str]) -> tuple[epath.Path, int, Experiment]:
    """Return workdir, step and the checkpoint's own experiment, of WORKDIR[@STEP].

    overrides: "section.field=value" strings. Raises UserError, also for another tokenizer than it
    was trained with.
    """
    workdir, step = locate(text)
    meta = checkpoint.read_meta(workdir, step)
    experiment = meta.experiment
    for change in overrides:
        experiment = override(experiment, change)
    validate(experiment)
    checkpoint.check_tokenizer(workdir, meta, experiment)
    return workdir, step, experiment


def read_step(workdir: epath.Path, step: int, experiment: Experiment) -> Weights:
    """Open one checkpoint. experiment: its own, or one with the same model.

    Raise UserError; matrices raise DamagedCheckpoint.
    """
    check_known(experiment.model)
    meta = checkpoint.read_meta(workdir, step)
    checkpoint.check_shapes(workdir, meta, experiment)
    for field in EXPORTED_FIELDS:
        value, got = getattr(meta.experiment.model, field), getattr(experiment.model, field)
        if got != value:
            raise UserError(
                f"--set: got model.{field}={got}, but the checkpoint is of {value}; expected no "
                "change of what is exported"
            )
    cfg = experiment.model
    arrays = {role: open_array(workdir, step, NAMES[role]) for role in shapes(cfg)}
    found: dict[Parameter, int] = {}

    def matrix(parameter: Parameter) -> np.ndarray:
        role, layer = parameter
        array = arrays[role] if layer is None else arrays[role][layer]
        try:
            values = array.read().result()
        except ValueError as e:
            reason = f"{NAMES[role]}: {str(e).partition(' [')[0]}"
            raise damaged(workdir, step, reason) from e
        if parameter not in found:
            found[parameter] = fingerprint_of(values, (layer or 0) * values.size)
        return to_matrix(values, role, cfg)

    def verify() -> None:
        for role in shapes(cfg):
            total = sum(n for parameter, n in found.items() if parameter.role == role) % 2**32
            if total != meta.fingerprints.get(NAMES[role]):
                reason = f"model array {NAMES[role]} is not what was saved"
                raise damaged(workdir, step, reason)

    return Weights(
        name=workdir.name,
        cfg=cfg,
        seq_len=experiment.data.seq_len,
        dtype="f32",
        matrix=matrix,
        where=lambda p: f"checkpoint {checkpoints_dir(workdir) / str(step)}: {NAMES[p.role]}",
        read_tokenizer=lambda: _read_tokenizer(experiment),
        provenance={
            "checkpoint": str(workdir),
            "step": step,
            "experiment_sha256": identity(experiment),
            "data_digest": meta.origin.data_digest,
            "tokenizer_sha256": meta.origin.tokenizer_sha256,
        },
        verify=verify,
    )


def open_array(workdir: epath.Path, step: int, name: str) -> ts.TensorStore:
    """Open one parameter of a checkpoint without its values; those of one layer can be read alone.

    Raise DamagedCheckpoint; reads of the array raise ValueError.
    """
    path = str(absolute(checkpoints_dir(workdir)) / str(step) / "model")
    base = f"{path}/" if "://" in path else {"driver": "file", "path": f"{path}/"}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,  # or a lost chunk would read as zeros
    }
    try:
        return ts.open(spec, open=True).result()
    except ValueError as e:
        raise damaged(workdir, step, f"{name}: {str(e).partition(' [')[0]}") from e


def _read_tokenizer(experiment: Experiment) -> bytes:
    """Return the run's tokenizer. Raise UserError if there is none or it is too large."""
    path = experiment.data.tokenizer
    content, where = vocabularies.read(path), f"data.tokenizer: {path}"
    if vocabularies.file_name(content) == vocabularies.MODEL:
        vocabulary.parse(content)
    pieces = vocabularies.from_bytes(content, where).vocab_size
    vocabulary.check_size(pieces, experiment.model.vocab_size, where)
    return content


def experiment_of(weights: Weights, workdir: Path) -> Experiment:
    """Return what write needs to make `workdir` of a model. What training would need besides is not
    in a model; --set, or an experiment of one's own, says it."""
    directory = epath.Path(workdir.absolute())
    experiment = Experiment(
        model=dataclasses.replace(
            weights.cfg, compute_dtype="bfloat16" if weights.dtype == "bf16" else "float32"
        ),
        data=DataConfig(
            tokenizer=str(directory / vocabularies.file_name(weights.tokenizer or b"")),
            store=str(store_dir(directory)),
            seq_len=weights.seq_len,
            batch_size=1,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=0),
        run=RunConfig(num_steps=1),
        upkeep=Upkeep(eval_every=1, eval_rows=32, checkpoint_every=1),
    )
    validate(experiment)
    return experiment


def write(weights: Weights, out: Path, dtype: str, experiment: Experiment) -> None:
    """Write checkpoint 0 of `experiment`, its config.json and the tokenizer, if there is one, into
    the directory `out`. Raise UserError or OSError."""
    assert dtype == "f32"  # as all parameters are
    workdir, cfg = epath.Path(out), weights.cfg
    if weights.tokenizer is not None:
        write_whole(workdir / vocabularies.file_name(weights.tokenizer), weights.tokenizer)
    with managers.os_errors(workdir):
        arrays = create(workdir, experiment)
    fingerprints = dict.fromkeys(arrays, 0)
    for parameter in parameters(cfg):
        role, layer = parameter
        values = _values(weights, parameter)
        write_array(arrays[role] if layer is None else arrays[role][layer], values)
        fingerprints[role] += fingerprint_of(values, (layer or 0) * values.size)
    with managers.os_errors(workdir):
        finish(workdir, experiment, {NAMES[role]: n % 2**32 for role, n in fingerprints.items()})
    write_whole(config_file(workdir), to_json(experiment))


def _values(weights: Weights, parameter: Parameter) -> np.ndarray:
    """Read one layer of our parameter. Raise UserError for what is not finite."""
    matrix = weights.matrix(parameter)
    if not np.isfinite([matrix.min(), matrix.max()]).all():  # NaN is both
        raise UserError(
            f"{weights.where(parameter)} has values that are not finite; expected a sound copy of "
            "the model"
        )
    return from_matrix(matrix, parameter.role, weights.cfg)


def to_params(weights: Weights, experiment: Experiment) -> Llama:
    """Return a model as training has it, on the mesh of jax.set_mesh. Raise UserError."""
    check_known(experiment.model)
    target = abstract(lambda: init_state(experiment)).params
    role_of = {name: role for role, name in NAMES.items()}
    leaves = []
    for name, leaf in checkpoint.by_name(target).items():
        role = role_of[name]
        if role in OF_LAYERS:
            layers = range(weights.cfg.num_layers)
            values = np.stack([_values(weights, Parameter(role, layer)) for layer in layers])
        else:
            values = _values(weights, Parameter(role))
        leaves.append(jax.device_put(values, leaf.sharding))
    weights.verify()
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def create(workdir: epath.Path, experiment: Experiment) -> dict[str, ts.TensorStore]:
    """Write checkpoint 0 of a new workdir as training would, but without optimizer and values.

    Return each role's array, to be written to; then call finish, before which there is no
    checkpoint in the workdir.
    """
    unfinished, cfg = workdir / "unfinished", experiment.model
    zeros = {
        NAMES[role]: np.broadcast_to(np.float32(0), shape)
        for role, shape in native_shapes(cfg).items()
    }
    handlers = (
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    with ocp.CheckpointManager(
        absolute(checkpoints_dir(unfinished)),
        item_handlers={
            "model": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "meta": ocp.JsonCheckpointHandler(),
        },
    ) as manager:
        outside = [NAMES[role] for role in shapes(cfg) if role not in OF_LAYERS]
        pieces = {name: ocp.SaveArgs(chunk_byte_size=PIECE) for name in outside}
        model = ocp.args.PyTreeSave(zeros, save_args=checkpoint.layer_chunks(zeros) | pieces)
        meta = ocp.args.JsonSave(checkpoint.meta_json(0, experiment, Schedule(), Origin(), {}))
        manager.save(0, args=ocp.args.Composite(model=model, meta=meta))
    return {role: open_array(unfinished, 0, NAMES[role]) for role in shapes(cfg)}


def finish(workdir: epath.Path, experiment: Experiment, fingerprints: dict[str, int]) -> None:
    """Say what the arrays that create() returned hold by now, and give the checkpoint its name.

    fingerprints: of each parameter, by our name.
    """
    unfinished, own = workdir / "unfinished", tokenizer_file(workdir)
    origin = Origin(tokenizer_sha256=vocabularies.sha256(str(own)) if own else "")
    meta = ocp.args.JsonSave(checkpoint.meta_json(0, experiment, Schedule(), origin, fingerprints))
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(
            absolute(checkpoints_dir(unfinished)) / "0" / "meta", args=meta, force=True
        )
    checkpoints_dir(unfinished).rename(checkpoints_dir(workdir))
    unfinished.rmdir()


def write_array(array: ts.TensorStore, values: np.ndarray) -> None:
    """Write chunk by chunk, since TensorStore holds several copies of what it writes. Raise
    OSError."""
    chunk: Any = array.chunk_layout.write_chunk.shape  # of an open array: all ints
    files: Any = array.kvstore  # which an open array has
    for position in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, chunk, strict=True))):
        box = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(position, chunk, array.shape, strict=True)
        )
        with managers.os_errors(epath.Path(files.base.path)):
            array[box].write(np.ascontiguousarray(values[box])).result()


FORMAT = Format(is_it=is_it, read=read, write=write, dtypes=("f32",))
