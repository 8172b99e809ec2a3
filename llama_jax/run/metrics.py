"""The figures of a run, written to metrics.jsonl, TensorBoard and Weights & Biases."""

import hashlib
import importlib.util
import json
import time
from typing import Any

import jax
from etils import epath

from llama_jax.config import UserError
from llama_jax.place import absolute, in_bucket
from llama_jax.plain_file import plain
from llama_jax.run import appended
from llama_jax.run.workdir import metrics_file, naming, tensorboard_dir, write_whole

FLUSH_SECONDS = 30.0  # between which TensorBoard may see nothing new


class Writer:
    """Writes a row of figures per step to every destination, from the first process only.

    metrics.jsonl holds each step once: rows after `start_step`, which a killed run wrote beyond its
    last checkpoint and which will be computed again, are dropped when it is opened.
    """

    def __init__(self, workdir: epath.Path, start_step: int, wandb_project: str | None):
        self.dropped: list[dict[str, Any]] = []  # rows beyond start_step
        if jax.process_index() != 0:
            return
        self.path = path = metrics_file(workdir)
        rows = read_metrics(workdir) if path.exists() else []
        kept = [row for row in rows if row["step"] <= start_step]
        self.dropped = [row for row in rows if row["step"] > start_step]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        for piece in _pieces(path):
            piece.unlink()
        from tensorboardX import record_writer
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        if in_bucket(path):
            from llama_jax import bucket

            self.jsonl, event_files, kind = bucket.Growing(path), bucket.EventFiles, "gs"
        else:
            self.jsonl, event_files, kind = appended.Appended(path), appended.EventFiles, "file"
        record_writer.register_writer_factory(kind, event_files)

        self.proto: Any = event_pb2  # whose names are made when it is imported
        self.events_dir, self.flushed = tensorboard_dir(workdir), 0.0
        self.events_dir.mkdir(parents=True, exist_ok=True)
        # At once: SummaryWriter has a thread for it, and once a full disk has ended that one, it
        # waits for ever. From this step on TensorBoard drops what earlier files have.
        events = str(absolute(self.events_dir / "events"))
        self.events = EventsWriter(events if kind == "gs" else f"file:{events}")
        start = self.proto.SessionLog(status=self.proto.SessionLog.START)
        self.events.write_event(self.proto.Event(step=start_step + 1, session_log=start))
        self.wandb = None
        if wandb_project:
            import wandb  # pyright: ignore[reportMissingImports]

            place = hashlib.sha256(str(absolute(workdir)).encode()).hexdigest()[:8]
            self.wandb = wandb.init(
                project=wandb_project,
                id=f"{workdir.name}-{place}",  # of the workdir, so that a resumed run goes on
                dir=None if in_bucket(workdir) else str(workdir),
                resume="allow",
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a row. step: updates made. values may have names like "validation_loss/c4".

        Raises OSError if the disk does not take it; it is written with a later one then.
        """
        if jax.process_index() != 0:
            return
        self.jsonl.write(json.dumps({"step": step, **values}) + "\n")
        from tensorboardX.summary import scalar

        now = time.time()
        for name, value in values.items():
            summary = scalar(name, value)
            self.events.write_event(self.proto.Event(wall_time=now, step=step, summary=summary))
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        if now - self.flushed > FLUSH_SECONDS:
            self.flushed = now
            self.flush()
        elif not in_bucket(self.path):
            self.jsonl.flush()

    def flush(self) -> None:
        """Have the rows so far outlive this process. Raises OSError."""
        if jax.process_index() != 0:
            return
        for file, path in ((self.jsonl, self.path), (self.events, self.events_dir)):
            with naming(path):
                file.flush()

    def close(self) -> None:
        if jax.process_index() != 0:
            return
        for file, path in ((self.jsonl, self.path), (self.events, self.events_dir)):
            with naming(path):
                file.close()
        if self.wandb is not None:
            self.wandb.finish()


def check_wandb(project: str | None) -> None:
    """Raise UserError if the experiment wants Weights & Biases and it is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"upkeep.wandb_project: got {project!r}, but wandb is not installed; run `pip install "
            "wandb`, or leave the field None"
        )


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl and its pieces, but for an end that a kill or a crash of the
    machine cut off.

    Raises UserError for a damaged line before that, and for a file that cannot be read.
    """
    path = metrics_file(workdir)
    try:
        content = b"".join(file.read_bytes() for file in (plain(path), *_pieces(path)))
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror or e}") from e
    rows = [_row(line) for line in content.split(b"\n")]
    while rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise UserError(
            f"{path}: line {rows.index(None) + 1} is damaged, expected figures of a step in JSON; "
            "delete the line to go on without that step's"
        )
    # A run that was killed while it opened its files has rows in pieces that are in the file, too.
    return list({(row["step"], "loss" in row): row for row in rows if row is not None}.values())


def _pieces(path: epath.Path) -> list[epath.Path]:
    """Return what a file that grows in a bucket is continued in, in its order."""
    return sorted(path.parent.glob(path.name + "." + 6 * "[0-9]"))


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a row of metrics.jsonl; None for what is not a whole one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or any(type(value) not in (int, float) for value in row.values()):
        return None
    figures = {"validation_loss"} if "validation_loss" in row else {"loss", "tokens_per_second"}
    return row if {"step", "tokens"} | figures <= row.keys() else None
