"""Checkpoints that are damaged, or of another token store."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import pytest
from etils import epath

from helpers.damage import flip_a_byte, largest_file, truncate
from helpers.runs import origin_of
from llama_jax.config import UserError
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
        lambda d: (d / "meta" / "metadata").write_text("[]"),
        lambda d: (shutil.rmtree(d), shutil.copytree(d.parent / "9", d)),
    ],
    ids=[
        *("truncated", "flipped", "item missing", "meta truncated", "array is not the saved one"),
        *("meta of another form", "a copy of step 9"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    trained, experiment, tmp_path, caplog, damage
):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    damage(Path(workdir / "checkpoints/12"))
    origin = origin_of(experiment)
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        caplog.at_level(logging.WARNING),
    ):
        restored = checkpoint.restore_newest(workdir, None, experiment, origin)
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
        checkpoint.restore_newest(workdir, None, experiment, origin_of(experiment))
    assert steps(workdir) == [6, 9, 12]


CHANGES = {
    "a key less": lambda meta: {k: v for k, v in meta.items() if k != "schedule"},
    "a key more": lambda meta: meta | {"x": 1},
    "a list": lambda meta: [meta],
    "a number": lambda meta: 3,
    "step is text": lambda meta: meta | {"step": "12"},
    "no experiment": lambda meta: meta | {"experiment": 5},
    "schedule of lists": lambda meta: meta | {"schedule": [[0, 0]]},
    "empty schedule": lambda meta: meta | {"schedule": []},
    "batch is text": lambda meta: meta | {"schedule": [{"step": 0, "batch": "0"}]},
    "fingerprints are a list": lambda meta: meta | {"fingerprints": []},
    "origin is text": lambda meta: meta | {"origin": "x"},
    "digest is a number": lambda meta: meta | {"origin": meta["origin"] | {"data_digest": 1}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_metadata_of_another_form_is_a_damaged_checkpoint(trained, tmp_path, change):
    file = tmp_path / "run/checkpoints/12/meta/metadata"
    shutil.copytree(trained / "checkpoints/12/meta", file.parent)
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(CHANGES[change](meta)))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="checkpoints/12 is damaged: ") as e:
        checkpoint.read_meta(epath.Path(tmp_path / "run"), 12)
    assert "\n" not in str(e.value)


def test_metadata_of_another_schema_is_not_called_damaged(trained, tmp_path):
    file = tmp_path / "run/checkpoints/12/meta/metadata"
    shutil.copytree(trained / "checkpoints/12/meta", file.parent)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    match = "checkpoints/12: its metadata has schema 99, expected"
    with pytest.raises(UserError, match=match) as e:
        checkpoint.read_meta(epath.Path(tmp_path / "run"), 12)
    assert not isinstance(e.value, checkpoint.DamagedCheckpoint)


def test_another_token_store_is_refused(trained, experiment, tmp_path):
    workdir = epath.Path(trained)
    origin = dataclasses.replace(origin_of(experiment), data_digest="0" * 64)
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match="data.store: .* has digest 000000000000, but checkpoint 12"),
    ):
        checkpoint.restore_newest(workdir, None, experiment, origin)
