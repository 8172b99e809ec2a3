"""A run is its workdir: moved alone it samples and exports, and other values are refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from etils import epath

from helpers.exports import export, sha256
from llama_jax.config import UserError
from llama_jax.data import tokenizer
from llama_jax.experiment import SCHEMA
from llama_jax.run import checkpoint
from llama_jax.run.workdir import config_file, write_whole
from llama_jax.train import check_workdir


def test_a_workdir_alone_samples_and_exports(cli, trained, tmp_path):
    """Where neither the tokenizer, the store nor the corpus that it was trained with exist."""
    moved = shutil.copytree(trained, tmp_path / "elsewhere/trained")
    meta = moved / "checkpoints/12/meta/metadata"
    data = json.loads(meta.read_text())["experiment"]["data"]
    for field in ("tokenizer", "store", "corpus"):
        assert Path(data[field]).exists()
        meta.write_text(meta.read_text().replace(data[field], str(tmp_path / "gone" / field)))
    done = cli("sample", moved, "--prompt", "import", "--temperature", 0, "--max-tokens", 8)
    assert done.returncode == 0 and done.stdout.startswith("import"), done.stderr
    there = cli("sample", trained, "--prompt", "import", "--temperature", 0, "--max-tokens", 8)
    assert done.stdout == there.stdout
    export(moved, tmp_path / "a", "gguf", verify=False)
    export(trained, tmp_path / "b", "gguf", verify=False)
    assert sha256(tmp_path / "a/model.gguf") == sha256(tmp_path / "b/model.gguf")


def test_another_tokenizer_than_the_workdirs_is_refused(trained, experiment, tmp_path):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    check_workdir(experiment, workdir, accept_changes=False)
    shutil.copy(tokenizer.EMBEDDED, workdir / "tokenizer.model")
    for accept_changes in (False, True):
        with pytest.raises(UserError, match="is not the tokenizer that .*/run was begun with"):
            check_workdir(experiment, workdir, accept_changes)


VERBS = {
    "sample": ("--prompt", "x"),
    "evaluate": (),
    "export": ("--to", "hf", "--out", "OUT"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_another_tokenizer_than_the_runs(cli, trained, tmp_path, verb):
    """Neither in the place of the workdir's copy nor by --set."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    options = [str(tmp_path / "out") if o == "OUT" else o for o in VERBS[verb]]
    refusal = "is not the tokenizer that checkpoint .*/run/checkpoints/12 was trained with"
    given = cli(verb, workdir, *options, "--set", "data.tokenizer=embedded")
    shutil.copy(tokenizer.EMBEDDED, workdir / "tokenizer.model")
    replaced = cli(verb, workdir, *options)
    for done, file in ((given, tokenizer.EMBEDDED), (replaced, workdir / "tokenizer.model")):
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert re.search(f"data.tokenizer: {file} {refusal}, whose copy in {workdir}/", line)
    assert not (tmp_path / "out").exists()


def test_where_the_data_lie_is_not_what_a_run_is(trained, experiment, tmp_path):
    places = {name: str(tmp_path / name) for name in ("corpus", "tokenizer", "store")}
    shutil.copy(experiment.data.tokenizer, places["tokenizer"])
    data = dataclasses.replace(experiment.data, **places)
    check_workdir(dataclasses.replace(experiment, data=data), epath.Path(trained), False)


def test_a_lost_config_is_read_from_the_newest_checkpoint(trained, experiment, tmp_path):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    config_file(workdir).unlink()
    check_workdir(experiment, workdir, accept_changes=False)
    shutil.rmtree(workdir / "checkpoints/12/meta")  # then the one before it says
    run = dataclasses.replace(experiment.run, num_steps=13)
    with pytest.raises(UserError, match="another experiment: run.num_steps: 12 -> 13;"):
        check_workdir(dataclasses.replace(experiment, run=run), workdir, accept_changes=False)


def test_a_run_moves_to_another_execution_but_not_to_another_rate(trained, experiment, tmp_path):
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    mesh = dataclasses.replace(experiment.execution.mesh, fsdp=2, tensor=4)
    execution = dataclasses.replace(experiment.execution, mesh=mesh, remat="linear")
    upkeep = dataclasses.replace(experiment.upkeep, keep_last=7)
    moved = dataclasses.replace(experiment, execution=execution, upkeep=upkeep)
    check_workdir(moved, workdir, accept_changes=False)
    optimizer = dataclasses.replace(experiment.optimizer, peak_lr=1e-3)
    changed = dataclasses.replace(experiment, optimizer=optimizer)
    with pytest.raises(UserError, match="another experiment: optimizer.peak_lr: 0.003 -> 0.001;"):
        check_workdir(changed, workdir, accept_changes=False)
    check_workdir(changed, workdir, accept_changes=True)


@pytest.mark.parametrize("content", ["text", b"bytes"])
def test_what_is_written_whole_is_there_whole(tmp_path, content):
    path = epath.Path(tmp_path / "file")
    for _ in range(2):  # the second time over the first
        assert write_whole(path, content) == path
        data = content.encode() if isinstance(content, str) else content
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = epath.Path(tmp_path / "file")
    path.write_text("old")

    def fail(self, data):
        if fails == "write_bytes":
            with open(self, "wb") as file:
                file.write(data[:2])  # and then the disk is full
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), fails, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_newer_schema_is_refused_by_train_and_by_sample(cli, trained, experiment_file, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    newer = f"written by a newer llama_jax, in schema 99; this one reads schema {SCHEMA}"
    config = Path(config_file(epath.Path(workdir)))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"schema": 99}))
    devices = ("--set", "execution.mesh.fsdp=8")
    done = cli("train", experiment_file, "--workdir", workdir, *devices)
    assert done.returncode == 2 and f"{config}: {newer}" in done.stderr
    meta = workdir / "checkpoints/12/meta/metadata"
    fields = json.loads(meta.read_text())
    fields["experiment"]["schema"] = 99
    meta.write_text(json.dumps(fields))
    done = cli("sample", workdir, "--prompt", "x")
    assert done.returncode == 2 and f"checkpoints/12: {newer}" in done.stderr
    with pytest.raises(UserError, match="schema 99"):
        checkpoint.read_meta(epath.Path(workdir), 12)
