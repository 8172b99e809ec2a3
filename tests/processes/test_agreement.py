"""Hosts that differ: none trains, each says so, and none is left waiting."""

import shutil

import pytest

from helpers.paths import ROOT
from helpers.processes import start_pod
from llama_jax.run.workdir import checkpoints_dir


def of_both(pod) -> list[str]:
    """The last line of each process, which ends with status 2."""
    printed = [process.communicate(timeout=120)[0] for process in pod]
    assert [process.returncode for process in pod] == [2, 2], printed
    assert "Traceback" not in "".join(printed)
    return [text.strip().splitlines()[-1] for text in printed]


@pytest.fixture
def train(experiment_file, tmp_path):
    """The arguments of a run, of which nothing may be left but its directory."""
    yield "train", experiment_file, "--workdir", tmp_path / "run"
    assert not checkpoints_dir(tmp_path / "run").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_another_experiment_is_named_by_its_fields(train):
    other = ("--set", "optimizer.peak_lr=1e-3", "--set", "upkeep.checkpoint_every=2")
    for line in of_both(start_pod(*train, of_second=other)):
        assert line.startswith("llama-jax train: --multihost: the hosts differ: ")
        assert "optimizer.peak_lr: 0.003 on " in line and ", 0.001 on " in line
        assert "upkeep.checkpoint_every: 3 on " in line and ", 2 on " in line
        assert "(process 0)" in line and "(process 1)" in line and "SHA-256" not in line


def test_other_code_is_refused(train, tmp_path):
    shutil.copytree(ROOT / "llama_jax", tmp_path / "code/llama_jax")
    with (tmp_path / "code/llama_jax/step.py").open("a") as file:
        file.write("# another revision\n")
    for line in of_both(start_pod(*train, code_of_second=str(tmp_path / "code"))):
        assert "the hosts differ: SHA-256 of the code: " in line and "optimizer" not in line


def test_what_one_host_lacks_ends_them_all(train, tmp_path):
    lacking = ("--set", f"data.store={tmp_path}/nowhere")
    first, second = of_both(start_pod(*train, of_second=lacking))
    assert "--multihost: refused on " in first
    assert f"(process 1): data.store: token store {tmp_path}/nowhere does not exist" in first
    assert second.startswith("llama-jax train: data.store: token store ")
