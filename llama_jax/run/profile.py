"""A trace of some steps, for TensorBoard or XProf."""

import tempfile
from pathlib import Path
from typing import Any

import jax
from etils import epath

from llama_jax.place import in_bucket
from llama_jax.run.workdir import write_whole


class Profile:
    """Traces a span of steps into a directory, of a bucket once it has them all."""

    def __init__(self, directory: epath.Path, span: range):
        self.directory, self.span = directory, span
        # XLA writes it, which would reach a bucket by a way of its own.
        self.passed_on = tempfile.TemporaryDirectory() if span and in_bucket(directory) else None

    def before(self, step: int) -> None:
        if self.span and step == self.span[0]:
            local = self.passed_on.name if self.passed_on else self.directory
            jax.profiler.start_trace(local)

    def after(self, step: int, metrics: Any) -> bool:
        """Say whether the trace is written. metrics: arrays that are there when the step is done.
        Raises OSError."""
        if not self.span or step != self.span[-1]:
            return False
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        if self.passed_on:
            with self.passed_on as local:
                for file in filter(Path.is_file, Path(local).rglob("*")):
                    write_whole(self.directory / file.relative_to(local), file.read_bytes())
        return True
