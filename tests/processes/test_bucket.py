"""Workdirs, stores and corpora in a bucket: real processes, against a storage emulator."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.processes import environment, start_pod
from helpers.runs import EXPERIMENT, NUM_STEPS
from helpers.storage_emulator import StorageEmulator
from llama_jax.config import DataConfig
from llama_jax.run import checkpoint
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import steps

pytest.importorskip("gcsfs", reason="gcsfs is not installed")

BUCKET, FORBIDDEN = "llama-runs", "not-ours"
RUN = f"gs://{BUCKET}/run"
# One device, no TensorFlow: what a training process may load.
MAIN = """
import sys
from llama_jax.cli import main
sys.modules["tensorflow"] = None
main()
"""


def command(*args) -> list[str]:
    return [sys.executable, "-c", MAIN, *map(str, args)]


def llama_jax(*args) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), env=environment(), capture_output=True, text=True)


def start(*args) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*args), env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def losses(workdir: epath.Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(workdir) if "loss" in r}


@pytest.fixture(scope="module")
def storage() -> Iterator[StorageEmulator]:
    with StorageEmulator(BUCKET, FORBIDDEN) as storage, pytest.MonkeyPatch.context() as patch:
        storage.forbidden.add(FORBIDDEN)
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage


@pytest.fixture(scope="module")
def data(storage, tiny_data) -> DataConfig:
    """tiny_data, of which corpus, tokenizer and store lie in the bucket."""
    storage.copy_in(BUCKET, "corpus", Path(tiny_data.corpus))
    storage.put(BUCKET, "tokenizer.model", Path(tiny_data.tokenizer).read_bytes())
    return dataclasses.replace(
        tiny_data,
        corpus=f"gs://{BUCKET}/corpus",
        tokenizer=f"gs://{BUCKET}/tokenizer.model",
        store=f"gs://{BUCKET}/store",
    )


@pytest.fixture(scope="module")
def experiment(data, cli, tmp_path_factory) -> Path:
    """An experiment file, whose store is prepared."""
    path = tmp_path_factory.mktemp("bucket") / "tiny.py"
    path.write_text(EXPERIMENT.format(data=data, num_steps=NUM_STEPS))
    done = cli("prepare", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def straight(experiment, tmp_path_factory) -> epath.Path:
    """The workdir, on a disk, of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = llama_jax("train", experiment, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return epath.Path(workdir)


@pytest.fixture(scope="module")
def killed(storage, experiment) -> epath.Path:
    """A run in the bucket, killed in the middle of its second save."""
    with holding(storage, "run/checkpoints/6/commit_success"):
        process = start("train", experiment, "--workdir", RUN)
        assert storage.reached.wait(120), process.communicate(timeout=1)
        process.kill()
        process.communicate()
    assert storage.names(BUCKET, "run/checkpoints/6/")
    return epath.Path(RUN)


@contextlib.contextmanager
def holding(storage: StorageEmulator, name: str) -> Iterator[None]:
    storage.reached.clear()
    storage.held = name
    try:
        yield
    finally:
        storage.held = None


@pytest.fixture(scope="module")
def resumed(killed, experiment) -> tuple[epath.Path, str]:
    """The same run, which was started again, and what that printed."""
    done = llama_jax("train", experiment, "--workdir", RUN, "--profile", "2")
    assert done.returncode == 0, done.stderr
    return killed, done.stdout + done.stderr


def test_a_save_that_was_cut_short_is_no_checkpoint(killed, cli):
    assert steps(killed) == [3]
    done = cli("evaluate", RUN)
    assert done.returncode == 0 and f"{RUN}@3: held-out loss" in done.stdout, done.stderr


def test_a_run_in_a_bucket_that_is_killed_goes_on_exactly(straight, resumed):
    workdir, printed = resumed
    assert "checkpoints/6 was not finished; ignored" in printed
    assert "steps 3 to 12" in printed
    assert losses(workdir) == losses(straight)
    assert [r["step"] for r in read_metrics(workdir) if "loss" not in r] == [6, 12]
    assert steps(workdir) == steps(straight) == [6, 9, 12]
    last = [checkpoint.read_meta(path, NUM_STEPS).fingerprints for path in (workdir, straight)]
    assert last[0] == last[1]


def test_what_a_run_in_a_bucket_leaves_behind(resumed, storage, tmp_path):
    assert not Path("gs:").exists()
    names = set(storage.names(BUCKET, "run/"))
    assert {"run/config.json", "run/tokenizer.model", "run/loss.png"} < names
    assert not [name for name in names if ".lease" in name or name.endswith(".tmp")]
    assert any(name.endswith(".xplane.pb") for name in names if name.startswith("run/profile/"))
    values = {}
    for name in sorted(names):
        if name.startswith("run/tensorboard/"):
            file = tmp_path / name.rpartition("/")[2]
            file.write_bytes(storage.buckets[BUCKET][name].content)
            values |= events(file)
    for step, loss in losses(resumed[0]).items():
        assert values[step, "loss"] == pytest.approx(loss)


def events(file: Path) -> dict[tuple[int, str], float]:
    from tensorflow.compat.v1.train import summary_iterator  # pyright: ignore[reportMissingImports]

    return {
        (event.step, value.tag): value.simple_value
        for event in summary_iterator(str(file))
        for value in event.summary.value
    }


def test_the_verbs_read_a_run_in_a_bucket(resumed, cli, tmp_path, storage):
    done = cli("sample", f"{RUN}@9", "--prompt", "a", "--max-tokens", "3")
    assert done.returncode == 0 and done.stdout.startswith("a"), done.stderr
    done = cli("export", RUN, "--to", "hf", "--out", tmp_path / "hf")
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    done = cli("plot", RUN, RUN, "--out", f"gs://{BUCKET}/curves.png")
    assert done.returncode == 0, done.stderr
    assert storage.buckets[BUCKET]["curves.png"].content.startswith(b"\x89PNG")


def test_two_processes_do_not_train_in_one_bucket_workdir(experiment, storage):
    workdir = f"gs://{BUCKET}/both"
    first = start("train", experiment, "--workdir", workdir, "--set", "run.num_steps=100000")
    wait_until(lambda: storage.names(BUCKET, "both/config.json"), first)
    second = llama_jax("train", experiment, "--workdir", workdir)
    assert second.returncode == 2 and f"in use by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM, printed
    saved = steps(epath.Path(workdir))[-1]
    assert f"step {saved} is saved" in printed
    assert list(losses(epath.Path(workdir))) == list(range(1, saved + 1))


def test_a_pod_trains_into_a_bucket(straight, experiment):
    workdir = f"gs://{BUCKET}/pod"
    pod = start_pod("train", experiment, "--workdir", workdir)
    printed = [process.communicate(timeout=240)[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    found = losses(epath.Path(workdir))
    np.testing.assert_allclose(list(found.values()), list(losses(straight).values()), rtol=1e-5)
    assert steps(epath.Path(workdir)) == [6, 9, 12]


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
