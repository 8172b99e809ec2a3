"""Checkpoints: parameters, optimizer state, step, data position and experiment as one atomic unit.

WORKDIR/checkpoints/STEP appears, whole, when its save has ended. Beside the arrays it holds a
fingerprint of each, an integer that does not depend on how the array is spread over devices: an
array that comes back with another fingerprint is not what was saved.
"""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import logging
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.config import Experiment, ModelConfig, UserError
from llama_jax.data import tokenizer
from llama_jax.data.schedule import Entry, Schedule
from llama_jax.experiment import OtherSchema, from_json, to_json
from llama_jax.hosts import gather, together
from llama_jax.model import Llama, by_name, param_shapes
from llama_jax.place import absolute
from llama_jax.run.fingerprint import fingerprints
from llama_jax.run.local_checkpoints import common_steps, keep_only
from llama_jax.run.managers import Manager
from llama_jax.run.workdir import (
    checkpoints_dir,
    damaged_dir,
    is_whole,
    steps,
    store_dir,
    tokenizer_file,
    write_whole,
)
from llama_jax.sharding import abstract
from llama_jax.step import TrainState, init_state

log = logging.getLogger(__name__)
# orbax logs an error in hundreds of lines before it raises it, asyncio those of the other writes;
# and orbax a stop, which guards/stop.py says.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(
        lambda record: not record.exc_info and "preemption sync point" not in str(record.msg)
    )
# Fields of the model that decide which arrays a checkpoint holds, and of which shapes.
SHAPE_FIELDS = (
    *("num_layers", "embed_dim", "num_heads", "kv_heads", "mlp_dim"),
    *("vocab_size", "tie_embeddings"),
)
SCHEMA = 1  # of Meta in JSON; counts up when a field is added, renamed or removed
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory whose save was cut short


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a model was made from, by content, wherever that lies; empty for what there was none."""

    data_digest: str = ""  # of the token store that was trained on; none: an imported model
    tokenizer_sha256: str = ""  # of the SentencePiece model
    init: str = ""  # the digest of the weights that it started from; none: random ones


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself."""

    step: int  # updates made
    schedule: Schedule  # which batch each step is computed from
    experiment: Experiment
    origin: Origin
    fingerprints: dict[str, int]  # by parameter name

    @property
    def imported(self) -> bool:
        return not self.origin.data_digest


def save(
    manager: Manager,
    state: TrainState,
    experiment: Experiment,
    schedule: Schedule,
    origin: Origin,
) -> None:
    """Start to save the state under its step.

    Returns when the state is copied and may be donated; the files follow in the background.
    Raises OSError, for the save before this one, too.
    """
    model, optimizer = by_name(state.params), by_name(state.opt_state)
    step = int(jax.device_get(state.step))
    found = fingerprints(model) | fingerprints(optimizer)
    items = ocp.args.Composite(
        model=ocp.args.PyTreeSave(model, save_args=layer_chunks(model)),
        optimizer=ocp.args.PyTreeSave(optimizer),
        meta=ocp.args.JsonSave(meta_json(step, experiment, schedule, origin, found)),
    )
    manager.save(step, items)


def meta_json(
    step: int,
    experiment: Experiment,
    schedule: Schedule,
    origin: Origin,
    found: dict[str, int],
) -> dict[str, Any]:
    """Return the fields of Meta, as JSON. found: the fingerprints, by name."""
    return {
        "schema": SCHEMA,
        "step": step,
        "schedule": [entry._asdict() for entry in schedule.entries],
        "experiment": json.loads(to_json(experiment)),
        "origin": dataclasses.asdict(origin),
        "fingerprints": found,
    }


def read_meta(workdir: epath.Path, step: int) -> Meta:
    """Read what a checkpoint says of itself; its tokenizer is the workdir's, wherever that is now.

    Raises DamagedCheckpoint, and UserError for one of another schema.
    """
    fields = _read(workdir, step, meta=ocp.args.JsonRestore())["meta"]
    where = f"checkpoint {checkpoints_dir(workdir) / str(step)}"
    try:
        experiment = from_json(json.dumps(fields.pop("experiment")), where)
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise OtherSchema(f"{where}: its metadata has schema {schema!r}, expected {SCHEMA}")
        schedule = Schedule(tuple(Entry(**entry) for entry in fields.pop("schedule")))
        origin = Origin(**fields.pop("origin"))
        meta = Meta(experiment=experiment, schedule=schedule, origin=origin, **fields)
        whole_numbers = (
            meta.step,
            *itertools.chain(*schedule.entries),
            *meta.fingerprints.values(),
        )
        well_formed = all(type(n) is int for n in whole_numbers) and all(
            type(text) is str for text in dataclasses.astuple(origin)
        )
    except OtherSchema:
        raise
    except (UserError, TypeError, KeyError, AttributeError) as e:
        raise damaged(workdir, step, f"its metadata has another form: {e}") from e
    if not well_formed or not schedule.entries or schedule.entries[0].step != 0:
        raise damaged(workdir, step, "its metadata holds values of other types")
    if meta.step != step:
        raise damaged(workdir, step, f"it is a copy of checkpoint {meta.step}")
    data = experiment.data
    if own := tokenizer_file(workdir):
        data = dataclasses.replace(data, tokenizer=str(own))
    if meta.imported:  # an imported model has no store but one beside it
        data = dataclasses.replace(data, store=str(store_dir(workdir)))
    return dataclasses.replace(meta, experiment=dataclasses.replace(experiment, data=data))


def newest_meta(workdir: epath.Path) -> Meta | None:
    """Read that of the newest checkpoint whose metadata can be read; None if there is none."""
    for step in reversed(steps(workdir)):
        with contextlib.suppress(DamagedCheckpoint):
            return read_meta(workdir, step)
    return None


def weights_digest(fingerprints: dict[str, int]) -> str:
    """Return a SHA-256, in hex, of the fingerprints of a model's arrays."""
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()


def check_tokenizer(workdir: epath.Path, meta: Meta, experiment: Experiment) -> None:
    """Raise UserError unless data.tokenizer is the one that the checkpoint was trained with."""
    given, wanted = experiment.data.tokenizer, meta.origin.tokenizer_sha256
    if wanted and tokenizer.sha256(given) != wanted:
        raise UserError(
            f"data.tokenizer: {tokenizer.find(given)} is not the tokenizer that checkpoint "
            f"{checkpoints_dir(workdir) / str(meta.step)} was trained with, whose copy in "
            f"{workdir}/tokenizer.* had sha256 {wanted[:12]}; bring that one back"
        )


def layer_chunks(arrays: dict[str, Any]) -> dict[str, ocp.SaveArgs]:
    """Return SaveArgs that store each layer of a stacked parameter as a chunk, to be read alone."""
    return {
        name: ocp.SaveArgs(shard_axes=(0,) if name.startswith("layers/") else ()) for name in arrays
    }


def restore_model(workdir: epath.Path, step: int, experiment: Experiment) -> Llama:
    """Restore a checkpoint's parameters, on the mesh of jax.set_mesh. Raises DamagedCheckpoint."""
    target = abstract(lambda: init_state(experiment)).params
    return _restore(workdir, step, experiment, model=target)["model"]


def restore_state(workdir: epath.Path, step: int, experiment: Experiment) -> TrainState:
    """Restore all of one checkpoint, on the mesh of jax.set_mesh, whatever mesh it was saved from.

    Raises DamagedCheckpoint.
    """
    target = abstract(lambda: init_state(experiment))
    items = _restore(workdir, step, experiment, model=target.params, optimizer=target.opt_state)
    replicated = target.step.sharding
    return TrainState(
        step=jax.device_put(jnp.int32(step), replicated),
        params=items["model"],
        frozen=None,
        opt_state=items["optimizer"],
    )


def start(experiment: Experiment, origin: Origin, params: Llama) -> tuple[TrainState, Origin]:
    """Return the state before step 0 from given weights, which are donated, and what it is from."""
    origin = dataclasses.replace(origin, init=weights_digest(fingerprints(by_name(params))))
    state = jax.jit(lambda params: init_state(experiment, params), donate_argnums=0)(params)
    return state, origin


def restore_newest(
    workdir: epath.Path, local: epath.Path | None, experiment: Experiment, origin: Origin
) -> tuple[TrainState, Schedule, Origin] | None:
    """Return the newest state that can be read, its schedule and its origin; None where nothing was
    saved. An imported model gets a new optimizer.

    local: where this run has checkpoints on the hosts' own disks, if it does; those that were not
    taken are deleted. Damaged checkpoints of the workdir are named in a warning and moved to
    WORKDIR/damaged. Raises UserError if there are checkpoints and none can be read, or if it has
    another origin.
    """
    if checkpoints_dir(workdir).exists():
        for path in checkpoints_dir(workdir).iterdir():
            if UNFINISHED in path.name or not is_whole(path):
                log.warning("checkpoint %s was not finished; ignored", path)
    damaged: dict[int, DamagedCheckpoint] = {}

    def check(place: epath.Path, step: int) -> Meta:
        meta = read_meta(place, step)
        check_tokenizer(workdir, meta, experiment)
        if not meta.imported and meta.origin.data_digest != origin.data_digest:
            raise UserError(
                f"data.store: {experiment.data.store} has digest {origin.data_digest[:12]}, "
                f"but checkpoint {step} in {workdir} was trained on "
                f"{meta.origin.data_digest[:12]}; bring that store back or use another --workdir"
            )
        return meta

    found = [(step, workdir) for step in gather(steps(workdir))[0]]
    if local is not None:
        found += [(step, local) for step in common_steps(local) if (step, workdir) not in found]
    for step, place in sorted(found, key=lambda it: it[0], reverse=True):
        try:
            call = functools.partial(check, place, step)
            meta = together(call, DamagedCheckpoint, UserError)
            if meta.imported:
                params = restore_model(place, step, experiment)
                state, origin = start(experiment, origin, params)
            else:
                state, origin = restore_state(place, step, experiment), meta.origin
        except DamagedCheckpoint as e:
            if place == workdir:
                damaged[step] = e
            log.warning("%s; skipped", e)
            continue
        keep_only(local, step if place == local else None)
        if jax.process_index() == 0:
            for bad in damaged:
                aside = damaged_dir(workdir)
                aside.mkdir(exist_ok=True, parents=True)
                earlier = sum(path.suffix != ".txt" for path in aside.glob(f"{bad}.*"))
                moved = aside / f"{bad}.{earlier}"
                # First why: in a bucket there is no directory before there is a file in it.
                write_whole(aside / f"{moved.name}.txt", str(damaged[bad]))
                (checkpoints_dir(workdir) / str(bad)).rename(moved)
        multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
        return state, meta.schedule, origin
    if damaged:
        raise UserError(
            f"workdir: none of the {len(damaged)} checkpoints in {checkpoints_dir(workdir)} can be "
            f"read; the newest: {damaged[max(damaged)]}; train from the start in another --workdir"
        )
    return None


def _restore(
    workdir: epath.Path, step: int, experiment: Experiment, **targets: Any
) -> dict[str, Any]:
    names = {item: by_name(target) for item, target in targets.items()}

    def read() -> tuple[Meta, Any]:
        meta = read_meta(workdir, step)
        check_shapes(workdir, meta, experiment)
        items = {item: ocp.args.StandardRestore(arrays) for item, arrays in names.items()}
        return meta, _read(workdir, step, **items)

    def compare() -> None:
        for item, arrays in found.items():
            for name, fingerprint in arrays.items():
                if fingerprint != meta.fingerprints.get(name):
                    raise damaged(workdir, step, f"{item} array {name} is not what was saved")

    meta, arrays = together(read, DamagedCheckpoint, UserError)
    found = {item: fingerprints(arrays[item]) for item in targets}
    together(compare, DamagedCheckpoint)  # each has copies of its own
    return {
        item: jax.tree.unflatten(jax.tree.structure(target), [arrays[item][k] for k in names[item]])
        for item, target in targets.items()
    }


def check_shapes(workdir: epath.Path, meta: Meta, experiment: Experiment) -> None:
    """Raise UserError if the experiment's model has other arrays than the checkpoint."""
    where = f"checkpoint {checkpoints_dir(workdir) / str(meta.step)}"
    check_shape(where, meta.experiment.model, experiment.model)
    # Names of the optimizer's arrays begin with a place in optax's chain.
    saved = {name for name in meta.fingerprints if not name[0].isdigit()}
    own = param_shapes(experiment.model).keys()
    for name in sorted(saved ^ own) if saved else []:  # without any it is damaged, see _restore
        only = "the checkpoint" if name in saved else "llama_jax/model.py"
        raise UserError(
            f"model: only {only} has parameter {name}; {where} expects the model.py that it was "
            "trained with, or take another --workdir"
        )


def check_shape(where: str, saved: ModelConfig, wanted: ModelConfig) -> None:
    """Raise UserError, naming the field, unless the two have the same arrays."""
    for field in SHAPE_FIELDS:
        has, got = getattr(saved, field), getattr(wanted, field)
        if has != got:
            raise UserError(f"model.{field}: got {got}, but {where} has {has}; expected the same")


def _alone() -> ocp.CheckpointManagerOptions:
    """Return what has a process read without waiting for the others, which may fail."""
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"read_{index}"
    )
    return ocp.CheckpointManagerOptions(multiprocessing_options=options, create=False)


def _read(workdir: epath.Path, step: int, **items: Any) -> Any:
    directory = absolute(checkpoints_dir(workdir))
    try:
        with ocp.CheckpointManager(directory, options=_alone()) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as e:  # orbax, tensorstore and json each have kinds of their own
        reason = str(e).splitlines()[0].partition(" See full")[0] if str(e) else ""
        problem = f"{type(e).__name__}: {reason}"
    # Outside of the handler, where nothing holds the reads that were given up any more.
    _collect_failed_reads()
    raise damaged(workdir, step, problem)


def _collect_failed_reads() -> None:
    """Let the other reads of a failed restore end, and not print the pages they would print."""
    hooks, asyncio_log = (sys.excepthook, sys.unraisablehook), logging.getLogger("asyncio")
    level = asyncio_log.level
    sys.excepthook = sys.unraisablehook = lambda *_: None
    asyncio_log.setLevel(logging.CRITICAL + 1)
    time.sleep(0.5)  # they are in threads of TensorStore, which does not say when they are done
    gc.collect()
    sys.excepthook, sys.unraisablehook = hooks
    asyncio_log.setLevel(level)


def damaged(workdir: epath.Path, step: int, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"checkpoint {checkpoints_dir(workdir) / str(step)} is damaged: {reason}"
    )
