"""A trace of some steps, for TensorBoard or XProf."""

from typing import Any

import jax
from etils import epath


class Profile:
    """Traces a span of steps into a directory."""

    def __init__(self, directory: epath.Path, span: range):
        self.directory, self.span = directory, span

    def before(self, step: int) -> None:
        if self.span and step == self.span[0]:
            jax.profiler.start_trace(self.directory)

    def after(self, step: int, metrics: Any) -> bool:
        """Say whether the trace is written. metrics: arrays that are there when the step is done.
        Raises OSError."""
        if not self.span or step != self.span[-1]:
            return False
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        return True
