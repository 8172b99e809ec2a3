"""What saves checkpoints in the background: orbax's managers, of a workdir and of local disks."""

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import type_handlers

from llama_jax.config import Upkeep
from llama_jax.place import absolute
from llama_jax.run.local_checkpoints import KEPT
from llama_jax.run.workdir import checkpoints_dir


class Manager:
    """Saves into a directory, in the background. Its methods raise OSError."""

    def __init__(self, directory: epath.Path, open_orbax: Callable[[], ocp.CheckpointManager]):
        self.directory, self.open_orbax = directory, open_orbax
        self.renew()

    def renew(self) -> None:
        """Begin afresh, on all processes: after a save that failed, orbax raises what went wrong at
        one of the next, once for each thread, where the thread was, while the others go on."""
        with os_errors(self.directory):
            self.orbax = self.open_orbax()

    def save(self, step: int, items: ocp.args.Composite) -> None:
        """Start to save. Returns when the arrays are copied and may be donated."""
        with os_errors(self.directory):
            self.orbax.save(step, args=items)

    def wait(self) -> None:
        """Wait for the save in the background."""
        with os_errors(self.directory):
            self.orbax.wait_until_finished()

    def close(self) -> None:
        """Wait, and end its threads."""
        with os_errors(self.directory):
            self.orbax.close()


@contextlib.contextmanager
def open_manager(workdir: epath.Path, upkeep: Upkeep) -> Iterator[Manager]:
    """Yield what saves in the workdir, and wait for the last save at the end. Raises OSError."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=upkeep.keep_last,
        keep_period=upkeep.keep_every,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    directory = absolute(checkpoints_dir(workdir))
    manager = Manager(directory, lambda: ocp.CheckpointManager(directory, options=options))
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: _is_of_a_failed_save(found.exc_value) or hook(found)
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(OSError):  # of a save that was told of
            manager.close()
        raise
    else:
        manager.close()
    finally:
        sys.unraisablehook = hook


def _is_of_a_failed_save(e: BaseException | None) -> bool:
    """Say whether a thread of TensorStore reports to a save that was given up."""
    return isinstance(e, RuntimeError) and str(e) == "Event loop is closed"


@contextlib.contextmanager
def open_local_manager(directory: epath.Path | None) -> Iterator[Manager | None]:
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
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, create=False, multiprocessing_options=alone
    )

    def open_orbax() -> ocp.CheckpointManager:
        meta = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        items = {"model": handler(), "optimizer": handler(), "meta": meta}
        return ocp.CheckpointManager(path, options=options, item_handlers=items)

    manager = Manager(path, open_orbax)
    try:
        yield manager
    finally:
        with contextlib.suppress(OSError):  # of a save that nobody will need
            manager.close()


@contextlib.contextmanager
def os_errors(path: epath.Path) -> Iterator[None]:
    """Have what orbax and TensorStore raise in the block, which writes, be OSErrors of one line.

    path: that they name if there is no other.
    """
    try:
        yield
    except Exception as e:  # a full disk is a ValueError of TensorStore, for one
        if isinstance(e, OSError) and e.errno:
            raise OSError(e.errno, e.strerror, e.filename or str(path)) from e
        text = (str(e).splitlines() or [type(e).__name__])[0].partition(" [")[0]
        found = re.search(r'.*"(/[^"]*)": (.*)', text)  # the innermost file and its reason
        file, reason = found.groups() if found else (str(path), text)
        code = re.search(r"os_error_code='(\d+)'", str(e))
        raise OSError(int(code[1]) if code else errno.EIO, reason, file) from e
