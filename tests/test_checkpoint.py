"""Checkpoints that are damaged, or of another token store."""

import logging
import shutil
from pathlib import Path

import jax
import pytest
from etils import epath

from helpers.damage import flip_a_byte, largest_file, truncate
from llama_jax.config import UserError
from llama_jax.data import store
from llama_jax.run import checkpoint
from llama_jax.run.workdir import steps
from llama_jax.sharding import make_mesh


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: truncate(largest_file(d / "model")),
        lambda d: flip_a_byte(largest_file(d / "optimizer")),
        lambda d: shutil.rmtree(d / "optimizer"),
        lambda d: truncate(d / "meta" / "metadata"),
        lambda d: (d / "meta" / "metadata").write_text(
            (d / "meta" / "metadata").read_text().replace('embed_VD": ', 'embed_VD": 1')
        ),
    ],
    ids=["truncated", "flipped", "item missing", "meta truncated", "array is not the saved one"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    trained, experiment, tmp_path, caplog, damage
):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    damage(Path(workdir / "checkpoints/12"))
    digest = store.digest(experiment.data)
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        caplog.at_level(logging.WARNING),
    ):
        restored = checkpoint.restore_newest(workdir, experiment, digest)
    assert restored is not None and int(restored[0].step) == 9
    assert "checkpoints/12 is damaged: " in caplog.text and "; skipped" in caplog.text
    assert steps(workdir) == [6, 9]
    assert (workdir / "damaged/12.0").exists()  # nothing is thrown away


def test_when_all_are_damaged_nothing_starts_over(trained, experiment, tmp_path):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    for step in steps(workdir):
        shutil.rmtree(workdir / f"checkpoints/{step}/model")
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match="none of the 3 checkpoints"),
    ):
        checkpoint.restore_newest(workdir, experiment, store.digest(experiment.data))
    assert steps(workdir) == [6, 9, 12]


def test_another_token_store_is_refused(trained, experiment, tmp_path):
    workdir = epath.Path(trained)
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match="data.store: .* has digest 000000000000, but checkpoint 12"),
    ):
        checkpoint.restore_newest(workdir, experiment, "0" * 64)
