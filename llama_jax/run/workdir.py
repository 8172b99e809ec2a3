"""A run is its workdir: where each of its files lies, and how one is written whole or not at all.

    WORKDIR/config.json        the experiment, as it was last started
    WORKDIR/tokenizer.model    the tokenizer it was trained with; or tokenizer.json, by its kind
    WORKDIR/checkpoints/STEP   see checkpoint.py; damaged ones are moved to WORKDIR/damaged
    WORKDIR/metrics.jsonl, tensorboard/, loss.png, profile/, nonfinite_step_STEP.txt
    WORKDIR/attempts/NUMBER.json, goodput.png    what the time of each attempt went into
    WORKDIR/store              the token store of an imported model
    WORKDIR/finished.json, failed.json, log.txt    of a sweep's run

A workdir is a local path or gs://. It holds all that sampling and exporting need, and evaluating
but for the token store, which is made again where it is missing.
"""

import contextlib
import errno
import secrets
from collections.abc import Iterator

from etils import epath

from llama_jax.config import UserError
from llama_jax.data import tokenizer
from llama_jax.place import in_bucket, place

COMMITTED = "commit_success.txt"  # orbax's sign of a checkpoint that is whole, in a bucket


def config_file(workdir: epath.Path) -> epath.Path:
    return workdir / "config.json"


def tokenizer_file(workdir: epath.Path) -> epath.Path | None:
    """Return the tokenizer that lies there, None where there is none yet."""
    files = (workdir / name for name in (tokenizer.MODEL, tokenizer.JSON))
    return next((file for file in files if file.exists()), None)


def checkpoints_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints"


def damaged_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "damaged"


def metrics_file(workdir: epath.Path) -> epath.Path:
    return workdir / "metrics.jsonl"


def tensorboard_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "tensorboard"


def store_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "store"


def loss_figure_file(workdir: epath.Path) -> epath.Path:
    return workdir / "loss.png"


def attempts_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "attempts"


def goodput_figure_file(workdir: epath.Path) -> epath.Path:
    return workdir / "goodput.png"


def profile_dir(workdir: epath.Path) -> epath.Path:
    return workdir / "profile"


def nonfinite_file(workdir: epath.Path, step: int) -> epath.Path:
    return workdir / f"nonfinite_step_{step}.txt"


def finished_file(workdir: epath.Path) -> epath.Path:
    return workdir / "finished.json"


def failed_file(workdir: epath.Path) -> epath.Path:
    return workdir / "failed.json"


def log_file(workdir: epath.Path) -> epath.Path:
    return workdir / "log.txt"


def steps(workdir: epath.Path) -> list[int]:
    """Return the steps of the finished checkpoints, oldest first."""
    directory = checkpoints_dir(workdir)
    if not directory.exists():
        return []
    names = (path.name for path in directory.iterdir() if is_whole(path))
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def is_whole(checkpoint: epath.Path) -> bool:
    """Say whether a checkpoint's save has ended. On a disk it has its name only then."""
    return not in_bucket(checkpoint) or (checkpoint / COMMITTED).exists()


def locate(text: str) -> tuple[epath.Path, int]:
    """Return the workdir and the step that WORKDIR[@STEP] names; the newest, if it names none.

    Raises UserError if there is no such checkpoint.
    """
    name, at, wanted = text.rpartition("@")
    if not at or not wanted.isdecimal():  # a path may have an @ of its own
        name, wanted = text, ""
    workdir = place(name, "workdir")
    found = steps(workdir)
    if not found:
        raise UserError(f"workdir: no checkpoint in {checkpoints_dir(workdir)}")
    if wanted and int(wanted) not in found:
        raise UserError(
            f"workdir: no checkpoint {wanted!r} in {name}; there are {', '.join(map(str, found))}"
        )
    return workdir, int(wanted) if wanted else found[-1]


@contextlib.contextmanager
def naming(path: epath.Path) -> Iterator[None]:
    """Have an OSError of the block name a file: that of a write to an open one names none."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(path)) from e


def write_whole(path: epath.Path, content: str | bytes) -> epath.Path:
    """Replace a file by `content`, so that a reader finds the old one or the new, and never a part.

    Returns the path. Raises OSError, and leaves what was there.
    """
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):  # where a file is never there in part
        with naming(path):
            path.write_bytes(data)
        return path
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            part.write_bytes(data)
            return part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
