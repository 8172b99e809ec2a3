"""Whole runs: killed and resumed, on one device, on eight, and a pod of two."""

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.damage import largest_file, truncate
from helpers.processes import environment, run_telling, start_pod, telling
from helpers.runs import NUM_STEPS, fingerprints, losses
from llama_jax.config import MeshConfig
from llama_jax.run import checkpoint
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import steps
from llama_jax.train import train


@pytest.fixture(scope="session")
def straight(experiment_file, tmp_path_factory) -> tuple[Path, str]:
    """(workdir, what it printed) of a run without interruption in a process of its own."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = run_telling("train", experiment_file, "--workdir", workdir, "--profile", "2")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout + done.stderr


# A run, and what it leaves behind


def test_a_run_writes_what_it_says(straight):
    workdir, printed = straight
    assert list(losses(workdir)) == list(range(1, NUM_STEPS + 1))
    assert losses(workdir)[NUM_STEPS] < losses(workdir)[1] - 0.1
    held_out = [r for r in read_metrics(epath.Path(workdir)) if "validation_loss" in r]
    assert [r["step"] for r in held_out] == [6, 12]
    assert {k for k in held_out[0] if "/" in k} == {
        f"validation_loss/{source}" for source in ("github", "books", "stackexchange")
    }
    assert steps(epath.Path(workdir)) == [6, 9, 12]  # the last two, and every sixth
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    for name in ("loss.png", "metrics.jsonl", "tensorboard", "checkpoints", "config.json"):
        assert str(workdir / name) in printed and (workdir / name).exists()
    assert re.search(r"12/12  loss \d\.\d+  [\d,]+ tok/s  MFU [\d.]+%  HFU [\d.]+%", printed)
    assert "loaded TensorFlow: False" in printed
    assert f"profiled steps 2 to 3 into {workdir / 'profile'}" in printed
    assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_tensorboard_reads_the_events(straight):
    from tensorflow.compat.v1.train import summary_iterator  # pyright: ignore[reportMissingImports]

    (path,) = (straight[0] / "tensorboard").glob("events*")
    events = {
        (event.step, value.tag): value.simple_value
        for event in summary_iterator(str(path))
        for value in event.summary.value
    }
    np.testing.assert_allclose(
        [events[step, "loss"] for step in range(1, NUM_STEPS + 1)],
        list(losses(straight[0]).values()),
        rtol=1e-6,
    )


def test_a_finished_run_has_nothing_left_to_do(straight, experiment_file, tmp_path):
    workdir = shutil.copytree(straight[0], tmp_path / "run")
    done = run_telling("train", experiment_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert fingerprints(workdir) == fingerprints(straight[0])
    assert losses(workdir) == losses(straight[0])


# Killed and resumed


def kill_when(condition, *args, by=signal.SIGKILL) -> tuple[int, str]:
    """Start llama-jax and kill it, as a power cut would, once the condition holds; return its exit
    status and what it printed."""
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            telling(*args), env=environment(), stderr=printed, stdout=printed
        )
        try:
            while True:
                assert process.poll() is None, "it ended before the condition held"
                if condition():
                    process.send_signal(signal.SIGSTOP)
                    if condition():  # still, now that nothing moves any more
                        break
                    process.send_signal(signal.SIGCONT)
            process.send_signal(by)
            process.send_signal(signal.SIGCONT)
            status = process.wait(timeout=120)
        finally:
            process.kill()
            process.wait()
        printed.seek(0)
        return status, printed.read()


def reached(workdir: Path, step: int):
    """Return the condition that so many steps are done."""

    def condition() -> bool:
        time.sleep(0.01)
        path = workdir / "metrics.jsonl"
        return path.exists() and f'"step": {step},' in path.read_text()

    return condition


def test_killed_between_saves_and_resumed_is_bit_identical(straight, experiment_file, tmp_path):
    workdir = tmp_path / "run"
    kill_when(reached(workdir, 5), "train", experiment_file, "--workdir", workdir)
    assert NUM_STEPS not in steps(epath.Path(workdir))
    done = run_telling("train", experiment_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert fingerprints(workdir) == fingerprints(straight[0])
    assert losses(workdir) == losses(straight[0])  # each step once, and the same
    held_out = [r["step"] for r in read_metrics(epath.Path(workdir)) if "validation_loss" in r]
    assert held_out == [6, 12]


def test_killed_during_a_save_and_resumed_is_bit_identical(straight, experiment_file, tmp_path):
    workdir = tmp_path / "run"
    saves = workdir / "checkpoints"

    def saving_step_6():
        return saves.exists() and any(
            name.startswith("6" + checkpoint.UNFINISHED) for name in os.listdir(saves)
        )

    kill_when(saving_step_6, "train", experiment_file, "--workdir", workdir)
    assert steps(epath.Path(workdir)) == [3]
    done = run_telling("train", experiment_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert re.search(r"WARNING: checkpoint \S+/6\.\S+ was not finished; ignored", done.stderr)
    assert fingerprints(workdir) == fingerprints(straight[0])


def test_a_checkpoint_comes_back_on_another_mesh_and_goes_on(straight, experiment, tmp_path):
    """Saved by one device, taken over by eight from the last whole one: the same steps."""
    workdir = epath.Path(shutil.copytree(straight[0], tmp_path / "run"))
    truncate(largest_file(Path(workdir / "checkpoints/12/model")))
    other = MeshConfig(replica=2, fsdp=2, tensor=2, sequence_parallel=True)
    on_eight = dataclasses.replace(experiment.execution, mesh=other)
    train(dataclasses.replace(experiment, execution=on_eight), workdir, accept_changes=False)
    resumed, reference = losses(Path(workdir)), losses(straight[0])
    np.testing.assert_allclose(list(resumed.values()), list(reference.values()), rtol=1e-5)
    assert steps(workdir) == [6, 9, 12]  # a new 12 in place of the damaged one
    assert (workdir / "damaged/12.0").exists()


# Asked to end


def test_terminated_it_saves_and_resumed_is_bit_identical(straight, experiment_file, tmp_path):
    workdir, args = tmp_path / "run", ("train", experiment_file, "--workdir", tmp_path / "run")
    status, printed = kill_when(reached(workdir, 4), *args, by=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, printed
    saved = steps(epath.Path(workdir))[-1]
    last = printed.strip().splitlines()[-1]
    path = workdir / f"checkpoints/{saved}"
    assert last == (
        f"llama-jax train: stopped by SIGTERM: step {saved} is saved in {path}; "
        "the same command goes on"
    )
    assert list(losses(workdir)) == list(range(1, saved + 1)) and saved < NUM_STEPS
    done = run_telling(*args)
    assert done.returncode == 0, done.stderr
    assert fingerprints(workdir) == fingerprints(straight[0])
    assert losses(workdir) == losses(straight[0])


ENDLESS = ("--set", "run.num_steps=100000", "--set", "upkeep.eval_every=100000")
ENDLESS = (*ENDLESS, "--set", "upkeep.checkpoint_every=100000", "--set", "upkeep.keep_every=100000")


def test_a_terminal_that_closes_costs_no_step(experiment_file, tmp_path):
    """The process loses its controlling terminal, and with it stdout and stderr."""
    workdir = tmp_path / "run"
    master, terminal = os.openpty()
    process = subprocess.Popen(
        telling("train", experiment_file, "--workdir", workdir, *ENDLESS),
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    threading.Thread(target=drain, args=(master,), daemon=True).start()
    condition = reached(workdir, 3)
    while not condition():
        assert process.poll() is None
    os.close(master)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert steps(epath.Path(workdir)) == [list(losses(workdir))[-1]]


def drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def test_interrupted_while_it_compiles_it_ends_at_once(experiment_file, tmp_path):
    status, printed = kill_when(
        (tmp_path / "run").exists,
        *("train", experiment_file, "--workdir", tmp_path / "run"),
        by=signal.SIGINT,
    )
    assert status == 128 + signal.SIGINT
    assert printed.splitlines()[-1] == "llama-jax train: interrupted"


# The other verbs


def test_sampling_as_users_run_it_speaks_of_no_tpu(straight):
    options = ("--prompt", "import", "--prompt", "I", "--seed", 3)
    as_users_run_it = {k: v for k, v in environment().items() if k != "JAX_PLATFORMS"}
    sample = subprocess.run(
        telling("sample", f"{straight[0]}@9", *options),
        env=as_users_run_it,
        capture_output=True,
        text=True,
    )
    assert sample.returncode == 0 and "TPU" not in sample.stderr, sample.stderr
    assert sample.stdout.startswith("import") and "\n\nI" in sample.stdout


def test_a_damaged_checkpoint_is_one_line_on_the_terminal(straight, tmp_path):
    workdir = shutil.copytree(straight[0], tmp_path / "run")
    truncate(largest_file(workdir / "checkpoints/12/model"))
    done = run_telling("sample", workdir, "--prompt", "x")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"checkpoint {workdir}/checkpoints/12 is damaged: " in line


def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(straight, tmp_path):
    shutil.copy(straight[0] / "metrics.jsonl", tmp_path)
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *telling("plot", tmp_path)]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = f"llama-jax plot: [Errno 27] File too large: '{tmp_path}/loss.png'"
    assert done.stderr.splitlines()[-1] == said
    assert not (tmp_path / "loss.png").exists()


def test_a_save_that_meets_a_full_disk_is_tried_again_until_too_much_is_at_risk(
    experiment_file, tmp_path
):
    """No file may grow beyond 40 kB, less than the embedding."""
    sets = ("run.num_steps=100", "upkeep.eval_every=100", "upkeep.checkpoint_every=20")
    arguments = [argument for text in sets for argument in ("--set", text)]
    train = telling("train", experiment_file, "--workdir", tmp_path / "run", *arguments)
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", *train]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if "could not be saved" in line]
    assert said[0].startswith("WARNING: step 20: could not be saved: [Errno 27] ")
    assert said[0].endswith("it is tried again every 2 steps, and training ends when 40 are")
    last = done.stderr.splitlines()[-1]
    assert last == said[-1] and last.startswith("llama-jax train: step ")
    assert last.endswith("; 40 steps are at risk; the newest whole checkpoint: none")
    assert "File too large" in last and f"'{tmp_path}/run/checkpoints/" in last
    assert not steps(epath.Path(tmp_path / "run"))
    assert list(losses(tmp_path / "run"))[:5] == [1, 2, 3, 4, 5]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounts need root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_for_a_while_costs_a_pod_nothing(experiment_file, small_disk):
    """It fills up in the middle of the run, and has room again once the run has said so twice."""
    workdir, ballast = small_disk / "run", small_disk / "ballast"
    sets = (
        *("run.num_steps=100", "upkeep.eval_every=100", "upkeep.checkpoint_every=40"),
        "upkeep.keep_every=100",
    )
    arguments = [argument for text in sets for argument in ("--set", text)]
    pod = start_pod("train", experiment_file, "--workdir", workdir, *arguments)
    while not reached(workdir, 3)():
        assert pod[0].poll() is None
    with contextlib.suppress(OSError), open(ballast, "wb", 0) as file:
        while file.write(bytes(4096)):
            pass
    assert pod[0].stdout is not None
    said = []
    for line in pod[0].stdout:
        said.append(line)
        if sum("could not be saved" in line for line in said) == 2 and ballast.exists():
            ballast.unlink()
    assert [process.wait() for process in pod] == [0, 0], said
    assert any("step 44: could not be saved" in line for line in said), said
    assert list(losses(workdir)) == list(range(1, 101)) and 100 in steps(epath.Path(workdir))


# A pod


def test_a_pod_stops_after_one_step_when_one_process_is_terminated(experiment_file, tmp_path):
    workdir = tmp_path / "run"
    pod = start_pod("train", experiment_file, "--workdir", workdir, *ENDLESS)
    condition = reached(workdir, 3)
    while not condition():
        assert pod[0].poll() is None
    pod[1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=120)[0] for process in pod]
    assert [process.returncode for process in pod] == [128 + signal.SIGTERM] * 2, printed
    (saved,) = steps(epath.Path(workdir))
    assert list(losses(workdir)) == list(range(1, saved + 1))
    assert all(f"SIGTERM: step {saved} is saved" in text for text in printed)


def test_a_pod_of_two_processes_trains_as_one(straight, experiment_file, tmp_path):
    pod = start_pod("train", experiment_file, "--workdir", tmp_path / "run")
    printed = [process.communicate()[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    assert "12/12  loss" in printed[0] and "12/12" not in printed[1]
    np.testing.assert_allclose(
        list(losses(tmp_path / "run").values()), list(losses(straight[0]).values()), rtol=1e-5
    )
    assert steps(epath.Path(tmp_path / "run")) == [6, 9, 12]
