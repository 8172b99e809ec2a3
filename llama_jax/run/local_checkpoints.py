"""Checkpoints on the hosts' own disks, saved more often than those of the workdir.

    LOCAL_DIR/NAME-ID/checkpoints/STEP    of the form of WORKDIR/checkpoints/STEP

On each host it holds what the host's own devices have. A run whose processes died goes on from
there, if the same hosts with the same mesh start it again; another one from the workdir's.
"""

import hashlib
import shutil
import tempfile

from etils import epath

from llama_jax.config import Upkeep, UserError
from llama_jax.hosts import gather
from llama_jax.place import absolute
from llama_jax.run.attempt import Attempt, first_began
from llama_jax.run.workdir import checkpoints_dir, steps

KEPT = 2  # one that not all hosts have finished, and the one before


def find(upkeep: Upkeep, workdir: epath.Path, attempt: Attempt) -> epath.Path | None:
    """Return the directory of a run's local checkpoints, the same on all hosts; None for none.

    Each process calls this. A workdir that was deleted and begun again has another one.
    """
    if upkeep.local_dir is None:
        return None
    run = f"{absolute(workdir)} {first_began(workdir, attempt)}"
    digest = hashlib.sha256(gather(run)[0].encode()).hexdigest()
    return epath.Path(upkeep.local_dir).absolute() / f"{workdir.name}-{digest[:12]}"


def check(upkeep: Upkeep) -> None:
    """Raise UserError if this host cannot write there."""
    if upkeep.local_dir is not None:
        path = epath.Path(upkeep.local_dir)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as e:
            raise UserError(f"upkeep.local_dir: cannot write to {path}: {e.strerror or e}") from e


def common_steps(directory: epath.Path) -> list[int]:
    """Return the steps that all hosts have, oldest first. Each process calls this."""
    return sorted(set.intersection(*map(set, gather(steps(directory)))))


def keep_only(directory: epath.Path | None, step: int | None) -> None:
    """Delete this host's local checkpoints but one; None: all of them."""
    if directory is None:
        return
    for found in steps(directory):
        if found != step:
            shutil.rmtree(checkpoints_dir(directory) / str(found), ignore_errors=True)
