"""A loss or a state that is not finite ends the run."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.runs import losses
from llama_jax.guards.spikes import Diverged
from llama_jax.run.workdir import steps
from llama_jax.train import train

# A loss that is not finite


def test_a_non_finite_loss_names_step_and_rows_and_keeps_the_last_good(experiment, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    optimizer = dataclasses.replace(experiment.optimizer, peak_lr=1e20, warmup_steps=11)
    with pytest.raises(Diverged) as e:
        train(dataclasses.replace(experiment, optimizer=optimizer), workdir, accept_changes=False)
    said = re.match(r"step (\d+): loss is ", str(e.value))
    assert said is not None
    step = int(said.group(1))
    rows = (workdir / f"nonfinite_step_{step}.txt").read_text().splitlines()
    assert len(rows) == experiment.data.batch_size
    assert re.match(r"row 0: \w+ window \d+, tokens \d+\.\.\d+", rows[0]) and rows[0] in str(
        e.value
    )
    saved = steps(workdir)
    assert all(s < step for s in saved)
    assert all(np.isfinite(loss) for loss in losses(Path(workdir)).values())


@pytest.mark.parametrize("change", [dict(eps=1e-300), dict(peak_lr=1e39)])
def test_a_state_that_the_update_itself_breaks_is_not_kept(experiment, tmp_path, change):
    """Loss and gradient are finite, and what fp32 makes of these numbers is not."""
    workdir = epath.Path(tmp_path / "run")
    upkeep = dataclasses.replace(experiment.upkeep, checkpoint_every=1, eval_every=1)
    optimizer = dataclasses.replace(experiment.optimizer, **change)
    broken = dataclasses.replace(experiment, optimizer=optimizer, upkeep=upkeep)
    with pytest.raises(Diverged) as e:
        train(broken, workdir, accept_changes=False)
    said = re.match(r"step (\d+): after the update, array \S+ (and|is) ", str(e.value))
    assert said is not None and "\n" not in str(e.value)
    step = int(said.group(1))
    assert all(s < step for s in steps(workdir))
    kept = f"checkpoint {step - 1} is the last good one" if step > 1 else "no checkpoint was saved"
    assert kept in str(e.value)
