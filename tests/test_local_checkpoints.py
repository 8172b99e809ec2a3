"""Checkpoints on the hosts' own disks: newer than the workdir's, and never needed."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
from etils import epath

from helpers.damage import largest_file, truncate
from helpers.runs import NUM_STEPS, fingerprints
from llama_jax.config import UserError
from llama_jax.experiment import validate
from llama_jax.run import local_checkpoints
from llama_jax.run.attempt import Attempt
from llama_jax.run.workdir import checkpoints_dir, steps
from llama_jax.train import train


@pytest.fixture
def often(experiment, tmp_path):
    upkeep = dataclasses.replace(
        experiment.upkeep, checkpoint_every=6, local_dir=str(tmp_path / "disk"), local_every=2
    )
    return dataclasses.replace(experiment, upkeep=upkeep)


def test_a_run_goes_on_from_the_newest_of_both(often, trained, tmp_path, caplog):
    workdir = epath.Path(tmp_path / "run")

    def go_on() -> int:
        """Train to the end as if the last save had not been; return from where on."""
        shutil.rmtree(checkpoints_dir(workdir) / str(NUM_STEPS), ignore_errors=True)
        train(often, workdir, accept_changes=False)
        assert fingerprints(Path(workdir)) == fingerprints(trained)
        records = (json.loads(p.read_text()) for p in sorted(workdir.glob("attempts/*.json")))
        return [record["first_step"] for record in records][-1]

    assert go_on() == 0
    local = local_checkpoints.find(often.upkeep, workdir, Attempt(workdir, 0.0))
    assert local is not None and steps(workdir) == [6, 12] and steps(local) == [8, 10]
    assert go_on() == 10

    truncate(largest_file(Path(checkpoints_dir(local) / "10/model")))
    with caplog.at_level(logging.WARNING):
        assert go_on() == 6
    assert f"{local}/checkpoints/10 is damaged" in caplog.text
    assert not (workdir / "damaged").exists() and steps(local) == [8, 10]

    shutil.rmtree(local)
    assert go_on() == 6

    shutil.rmtree(workdir)
    again = local_checkpoints.find(often.upkeep, workdir, Attempt(workdir, 1.0))
    assert again is not None and again != local and steps(again) == []


def test_what_cannot_be_kept_there_is_refused(often, tmp_path):
    with pytest.raises(UserError, match="upkeep.local_dir: got None, expected that and upkeep"):
        upkeep = dataclasses.replace(often.upkeep, local_dir=None)
        validate(dataclasses.replace(often, upkeep=upkeep))
    (tmp_path / "file").write_text("")
    upkeep = dataclasses.replace(often.upkeep, local_dir=str(tmp_path / "file/disk"))
    with pytest.raises(UserError, match="upkeep.local_dir: cannot write to .*/file/disk"):
        local_checkpoints.check(upkeep)
