"""MaxText's own training loop on synthetic tokens, a few steps at a time, for train_step.py.

    python benchmarks/maxtext_train.py per_device_batch_size=8 max_target_length=512 ...

Reads a number of steps from a line of its input, takes them, prints their tokens/s and waits for
the next line; 0 ends it. The first step compiles. Runs in MaxText's environment, which
compiled_step.py makes.
"""

import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what MaxText prints goes to the error output

import jax  # noqa: E402
import maxtext  # noqa: E402  # pyright: ignore[reportMissingImports]
from maxtext.common.data_loader import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    DataLoader,
)
from maxtext.trainers.pre_train import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    train,
)

load_next_batch = DataLoader.load_next_batch


class Turn:
    """How many steps are left of those asked for, and since when."""

    asked = left = 0
    start = 0.0


def wait_for_turn(self, *args, **kwargs):
    """Load a batch once a step was asked for: MaxText calls this at the beginning of each."""
    if Turn.left == 0:
        jax.block_until_ready(jax.live_arrays())
        if Turn.asked:
            tokens = self.config.global_batch_size_to_train_on * self.config.max_target_length
            print(Turn.asked * tokens / (time.perf_counter() - Turn.start), file=answers)
        Turn.asked = Turn.left = int(sys.stdin.readline())
        if Turn.asked == 0:
            os._exit(0)
        Turn.start = time.perf_counter()
    Turn.left -= 1
    return load_next_batch(self, *args, **kwargs)


DataLoader.load_next_batch = wait_for_turn
assert maxtext.__file__
train.main(["train", str(Path(maxtext.__file__).parent / "configs" / "base.yml"), *sys.argv[1:]])
