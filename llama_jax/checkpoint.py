"""Checkpoints: parameters, optimizer state, step, data position and experiment as one atomic unit.

WORKDIR/checkpoints/STEP appears, whole, when its save has ended. Beside the arrays it holds a
fingerprint of each, an integer that does not depend on how the array is spread over devices: an
array that comes back with another fingerprint is not what was saved.
"""

import dataclasses
import gc
import json
import logging
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.config import Experiment, UserError, from_json, to_json
from llama_jax.model import Llama
from llama_jax.sharding import abstract
from llama_jax.step import TrainState, init_state

log = logging.getLogger(__name__)
# Fields of the model that decide which arrays a checkpoint holds, and of which shapes.
SHAPE_FIELDS = (
    *("num_layers", "embed_dim", "num_heads", "kv_heads", "mlp_dim"),
    *("vocab_size", "tie_embeddings"),
)
PIECE = 2**26  # bytes that are copied at a time on the way to or from a file
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory whose save was cut short


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself."""

    step: int  # updates made, and the number of the next batch
    experiment: Experiment
    data_digest: str  # of the token store that was trained on
    fingerprints: dict[str, int]  # by parameter name


def directory(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints"


def open_manager(workdir: epath.Path, experiment: Experiment) -> ocp.CheckpointManager:
    """Saves in the background. Close it to wait for the last save."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=experiment.run.keep_last,
        keep_period=experiment.run.keep_every,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(directory(workdir).resolve(), options=options)


def save(
    manager: ocp.CheckpointManager, state: TrainState, experiment: Experiment, digest: str
) -> None:
    """Starts to save the state under its step. digest: of the token store.

    Returns when the state is copied and may be donated; the files follow in the background.
    """
    model, optimizer = by_name(state.model), by_name(state.opt_state)
    step = int(jax.device_get(state.step))
    fingerprints = _fingerprints(model) | _fingerprints(optimizer)
    items = ocp.args.Composite(
        model=ocp.args.StandardSave(model, save_args=layer_chunks(model)),
        optimizer=ocp.args.StandardSave(optimizer),
        meta=ocp.args.JsonSave(meta_fields(step, experiment, digest, fingerprints)),
    )
    manager.save(step, args=items)


def meta_fields(step: int, experiment: Experiment, digest: str, fingerprints: dict[str, int]):
    """Return the fields of Meta, as JSON."""
    return {
        "step": step,
        "experiment": json.loads(to_json(experiment)),
        "data_digest": digest,
        "fingerprints": fingerprints,
    }


def steps(workdir: epath.Path) -> list[int]:
    """The finished checkpoints, oldest first."""
    if not directory(workdir).exists():
        return []
    return sorted(int(path.name) for path in directory(workdir).iterdir() if path.name.isdigit())


def read_meta(workdir: epath.Path, step: int) -> Meta:
    """A tokenizer.model in the workdir is the run's, wherever both are now.

    Raises DamagedCheckpoint.
    """
    fields = _read(workdir, step, meta=ocp.args.JsonRestore())["meta"]
    experiment = from_json(json.dumps(fields.pop("experiment")))
    if (own := workdir / "tokenizer.model").exists():
        data = dataclasses.replace(experiment.data, tokenizer=str(own))
        experiment = dataclasses.replace(experiment, data=data)
    return Meta(experiment=experiment, **fields)


def layer_chunks(arrays: dict[str, Any]) -> dict[str, ocp.SaveArgs]:
    """Return SaveArgs that store each layer of a stacked parameter as its own chunk, so that one
    layer can be read alone."""
    return {
        name: ocp.SaveArgs(shard_axes=(0,) if name.startswith("layers/") else ()) for name in arrays
    }


def restore_model(workdir: epath.Path, step: int, experiment: Experiment) -> Llama:
    """The parameters of one checkpoint, on the mesh of jax.set_mesh. Raises DamagedCheckpoint."""
    target = abstract(lambda: init_state(experiment)).model
    return _restore(workdir, step, experiment, model=target)["model"]


def restore_state(workdir: epath.Path, step: int, experiment: Experiment) -> TrainState:
    """All of one checkpoint, on the mesh of jax.set_mesh, whatever mesh it was saved from.

    Raises DamagedCheckpoint.
    """
    target = abstract(lambda: init_state(experiment))
    items = _restore(workdir, step, experiment, model=target.model, optimizer=target.opt_state)
    replicated = target.step.sharding
    return TrainState(
        step=jax.device_put(jnp.int32(step), replicated),
        model=items["model"],
        opt_state=items["optimizer"],
    )


def restore_newest(workdir: epath.Path, experiment: Experiment, digest: str) -> TrainState | None:
    """The newest state that can be read, None where nothing was saved.

    Damaged checkpoints are named in a warning and moved to WORKDIR/damaged. Raises UserError if
    there are checkpoints and none can be read, or if it was trained on another token store.
    """
    if directory(workdir).exists():
        for path in directory(workdir).iterdir():
            if UNFINISHED in path.name:
                log.warning("checkpoint %s was not finished; ignored", path)
    damaged: dict[int, DamagedCheckpoint] = {}
    for step in reversed(steps(workdir)):
        try:
            state = restore_state(workdir, step, experiment)
            trained_on = read_meta(workdir, step).data_digest
        except DamagedCheckpoint as e:
            damaged[step] = e
            log.warning("%s; skipped", e)
            continue
        if trained_on != digest:
            raise UserError(
                f"data.store: {experiment.data.store} has digest {digest[:12]}, but checkpoint "
                f"{step} in {workdir} was trained on {trained_on[:12]}; bring that store back or "
                "use another --workdir"
            )
        if jax.process_index() == 0:
            for bad in damaged:
                (workdir / "damaged").mkdir(exist_ok=True, parents=True)
                earlier = sum(p.name.startswith(f"{bad}.") for p in (workdir / "damaged").iterdir())
                moved = workdir / "damaged" / f"{bad}.{earlier}"
                (directory(workdir) / str(bad)).rename(moved)
        multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
        return state
    if damaged:
        raise UserError(
            f"workdir: none of the {len(damaged)} checkpoints in {directory(workdir)} can be read; "
            f"the newest: {damaged[max(damaged)]}; train from the start in another --workdir"
        )
    return None


def _restore(
    workdir: epath.Path, step: int, experiment: Experiment, **targets: Any
) -> dict[str, Any]:
    meta = read_meta(workdir, step)
    check_shapes(workdir, meta, experiment)
    names = {item: by_name(target) for item, target in targets.items()}
    arrays = _read(workdir, step, **{k: ocp.args.StandardRestore(v) for k, v in names.items()})
    for item in targets:
        for name, fingerprint in _fingerprints(arrays[item]).items():
            if fingerprint != meta.fingerprints.get(name):
                raise damaged(workdir, step, f"{item} array {name} is not what was saved")
    return {
        item: jax.tree.unflatten(jax.tree.structure(target), [arrays[item][k] for k in names[item]])
        for item, target in targets.items()
    }


def check_shapes(workdir: epath.Path, meta: Meta, experiment: Experiment) -> None:
    """Raises UserError if the experiment's model has other arrays than the checkpoint."""
    for field in SHAPE_FIELDS:
        saved, wanted = getattr(meta.experiment.model, field), getattr(experiment.model, field)
        if saved != wanted:
            raise UserError(
                f"model.{field}: got {wanted}, but checkpoint "
                f"{directory(workdir) / str(meta.step)} has {saved}; expected the same"
            )


def _read(workdir: epath.Path, step: int, **items: Any) -> Any:
    try:
        with ocp.CheckpointManager(directory(workdir).resolve()) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as e:  # orbax, tensorstore and json each have kinds of their own
        reason = str(e).splitlines()[0].partition(" See full")[0] if str(e) else ""
        problem = f"{type(e).__name__}: {reason}"
    # Outside of the handler, where nothing holds the reads that were given up any more.
    _collect_failed_reads()
    raise damaged(workdir, step, problem)


def _collect_failed_reads() -> None:
    """Lets the other reads of a failed restore end, and not print the pages they would print."""
    hooks, asyncio_log = (sys.excepthook, sys.unraisablehook), logging.getLogger("asyncio")
    level = asyncio_log.level
    sys.excepthook = sys.unraisablehook = lambda *_: None
    asyncio_log.setLevel(logging.CRITICAL + 1)
    time.sleep(0.5)  # they are in threads of TensorStore, which does not say when they are done
    gc.collect()
    sys.excepthook, sys.unraisablehook = hooks
    asyncio_log.setLevel(level)


def damaged(workdir: epath.Path, step: int, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"checkpoint {directory(workdir) / str(step)} is damaged: {reason}")


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves under names such as "layers/attn/wq_DGRK"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in leaves
    }


def _fingerprints(arrays: dict[str, jax.Array]) -> dict[str, int]:
    return {name: int(x) for name, x in jax.device_get(_fingerprint_all(arrays)).items()}


@jax.jit
def _fingerprint_all(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(fingerprint, arrays)


def fingerprint_of(values: np.ndarray, start: int) -> int:
    """What a part of an array adds to the array's fingerprint, a bounded copy at a time.

    start: the index of the part's first element among all of the array's, in C order.
    """
    size = values[0].size
    rows = max(1, PIECE // values[0].nbytes)
    return sum(
        int(
            _fingerprint_part(
                values[i : i + rows].reshape(-1), np.uint32((start + i * size) % 2**32)
            )
        )
        for i in range(0, len(values), rows)
    )


def fingerprint(x: jax.Array, start: int | jax.Array = 0) -> jax.Array:
    """Sum modulo 2^32 of each element's bits times an odd hash of its place: any one changed bit
    changes it; elements or blocks that change places do, but once in billions of times.

    start: the place of x in an array, whose fingerprint is the sum of its parts'.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    place = jnp.zeros_like(bits)
    for axis, size in enumerate(x.shape):
        iota = jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=jax.typeof(x).sharding
        )
        place = place * jnp.uint32(size) + iota
    place = place + jnp.uint32(start)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons' lowbias32
        place = (place ^ (place >> shift)) * jnp.uint32(factor)
    return jnp.sum(bits * ((place ^ (place >> 16)) | 1), dtype=jnp.uint32)


_fingerprint_part = jax.jit(fingerprint)
