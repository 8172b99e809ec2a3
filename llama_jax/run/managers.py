"""What saves checkpoints in the background: orbax's managers, of a workdir and of local disks."""

import contextlib
import errno
import re
import sys
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import type_handlers

from llama_jax.config import Upkeep
from llama_jax.place import absolute
from llama_jax.run.local_checkpoints import KEPT
from llama_jax.run.workdir import checkpoints_dir


@contextlib.contextmanager
def open_manager(workdir: epath.Path, upkeep: Upkeep) -> Iterator[ocp.CheckpointManager]:
    """Yield what saves in the background, and wait for the last save at the end. Raises OSError."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=upkeep.keep_last,
        keep_period=upkeep.keep_every,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    directory = absolute(checkpoints_dir(workdir))
    with os_errors(directory):
        manager = ocp.CheckpointManager(directory, options=options)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: _is_of_a_failed_save(found.exc_value) or hook(found)
    try:
        yield manager
    finally:
        with os_errors(directory):
            manager.close()
        sys.unraisablehook = hook


def _is_of_a_failed_save(e: BaseException | None) -> bool:
    """Say whether a thread of TensorStore reports to a save that was given up."""
    return isinstance(e, RuntimeError) and str(e) == "Event loop is closed"


@contextlib.contextmanager
def open_local_manager(directory: epath.Path | None) -> Iterator[ocp.CheckpointManager | None]:
    """Yield what saves there in the background, and wait for the last save at the end.

    Yields None where there is no directory. Raises OSError.
    """
    if directory is None:
        yield None
        return
    # Each host is the first of its own disk, and writes all that its devices hold.
    alone = ocp.options.MultiprocessingOptions(primary_host=None)
    arrays = type_handlers.ArrayHandler(
        primary_host=None, replica_id=None, use_replica_parallel=False
    )
    handlers = type_handlers.create_type_handler_registry((jax.Array, arrays))

    def handler() -> ocp.PyTreeCheckpointHandler:
        return ocp.PyTreeCheckpointHandler(
            type_handler_registry=handlers, multiprocessing_options=alone
        )

    path = checkpoints_dir(directory)
    with os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        manager = ocp.CheckpointManager(
            path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, create=False, multiprocessing_options=alone
            ),
            item_handlers={
                "model": handler(),
                "optimizer": handler(),
                "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
        )
    try:
        yield manager
    finally:
        with contextlib.suppress(OSError), os_errors(path):  # of a save that nobody will need
            manager.close()


@contextlib.contextmanager
def os_errors(path: epath.Path) -> Iterator[None]:
    """Have what orbax and TensorStore raise in the block, which writes, be OSErrors of one line.

    path: that they name if there is no other.
    """
    try:
        yield
    except Exception as e:  # a full disk is a ValueError of TensorStore, for one
        if isinstance(e, OSError) and e.filename:
            raise
        text = (str(e).splitlines() or [type(e).__name__])[0].partition(" [")[0]
        found = re.search(r'.*"(/[^"]*)": (.*)', text)  # the innermost file and its reason
        file, reason = found.groups() if found else (str(path), text)
        code = re.search(r"os_error_code='(\d+)'", str(e))
        raise OSError(int(code[1]) if code else errno.EIO, reason, file) from e
