"""Whole runs: real processes, killed and resumed, on one device, on eight, and a pod of two."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from llama_jax import cli
from llama_jax.config import Experiment, MeshConfig, UserError
from llama_jax.data import store
from llama_jax.experiment import load, to_json
from llama_jax.guards.monitor import NonFiniteLoss
from llama_jax.run import checkpoint, fingerprint
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import steps
from llama_jax.sharding import make_mesh
from llama_jax.train import train

NUM_STEPS = 12
EXPERIMENT = """
from llama_jax.config import *

def get_experiment():
    return Experiment(
        model=ModelConfig(num_layers=2, embed_dim=32, num_heads=4, vocab_size=512,
                          compute_dtype="float32"),
        data={data!r},
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
        run=RunConfig(num_steps={num_steps}),
        upkeep=Upkeep(eval_every=6, eval_rows=8, checkpoint_every=3, keep_last=2, keep_every=6),
    )
"""
# One device, no TensorFlow: what a training process may load.
MAIN = """
import sys
from llama_jax.cli import main
try:
    main()
finally:
    print("loaded TensorFlow:", "tensorflow" in sys.modules)
"""


def command(*args) -> list[str]:
    return [sys.executable, "-c", MAIN, *map(str, args)]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def llama_jax(*args) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="session")
def experiment_file(tiny_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT.format(data=tiny_data, num_steps=NUM_STEPS))
    return path


@pytest.fixture
def experiment(experiment_file) -> Experiment:
    """The same on the eight devices of this process."""
    return load(str(experiment_file), ["execution.mesh.fsdp=8"])


@pytest.fixture(scope="session")
def straight(experiment_file, tmp_path_factory) -> tuple[Path, str]:
    """(workdir, what it printed) of a run without interruption in a process of its own."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = llama_jax("train", experiment_file, "--workdir", workdir, "--profile", "2")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout + done.stderr


def fingerprints(workdir: Path, step: int = NUM_STEPS) -> dict[str, int]:
    return checkpoint.read_meta(epath.Path(workdir), step).fingerprints


def losses(workdir: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(epath.Path(workdir)) if "loss" in r}


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
    from tensorflow.compat.v1.train import summary_iterator

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
    done = llama_jax("train", experiment_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert fingerprints(workdir) == fingerprints(straight[0])
    assert losses(workdir) == losses(straight[0])


# Killed and resumed


def kill_when(condition, *args) -> None:
    """Starts llama-jax and kills it, as a power cut would, once the condition holds."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            command(*args), env=environment(), stderr=nowhere, stdout=nowhere
        )
    try:
        while True:
            assert process.poll() is None, "it ended before the condition held"
            if condition():
                process.send_signal(signal.SIGSTOP)
                if condition():  # still, now that nothing moves any more
                    return
                process.send_signal(signal.SIGCONT)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_between_saves_and_resumed_is_bit_identical(straight, experiment_file, tmp_path):
    workdir = tmp_path / "run"

    def five_steps_done():
        time.sleep(0.01)
        path = workdir / "metrics.jsonl"
        return path.exists() and '"step": 5' in path.read_text()

    kill_when(five_steps_done, "train", experiment_file, "--workdir", workdir)
    assert NUM_STEPS not in steps(epath.Path(workdir))
    done = llama_jax("train", experiment_file, "--workdir", workdir)
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
    done = llama_jax("train", experiment_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    assert re.search(r"WARNING: checkpoint \S+/6\.\S+ was not finished; ignored", done.stderr)
    assert fingerprints(workdir) == fingerprints(straight[0])


# Checkpoints that are damaged, or come back elsewhere


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


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
    straight, experiment, tmp_path, caplog, damage
):
    workdir = epath.Path(shutil.copytree(straight[0], tmp_path / "run"))
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


def test_when_all_are_damaged_nothing_starts_over(straight, experiment, tmp_path):
    workdir = epath.Path(shutil.copytree(straight[0], tmp_path / "run"))
    for step in steps(workdir):
        shutil.rmtree(workdir / f"checkpoints/{step}/model")
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match="none of the 3 checkpoints"),
    ):
        checkpoint.restore_newest(workdir, experiment, store.digest(experiment.data))
    assert steps(workdir) == [6, 9, 12]


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


def test_the_fingerprint_sees_a_bit_and_a_swap_but_not_the_mesh(experiment):
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    flipped, swapped = x.copy(), x.copy()
    flipped.view(np.int32)[3, 5] ^= 1
    swapped[:4], swapped[4:] = x[4:], x[:4]  # blocks, at a distance of a power of two
    mesh = make_mesh(experiment.execution.mesh, jax.devices())
    prints = []
    with jax.set_mesh(mesh):
        for value, spec in [
            (x, jax.P()), (x, jax.P("plane")), (x, jax.P(None, "plane")), (flipped, jax.P()),
            (swapped, jax.P()),
        ]:  # fmt: skip
            array = jax.device_put(value, jax.NamedSharding(mesh, spec))
            prints.append(fingerprint.fingerprints({"x": array})["x"])
    assert prints[0] == prints[1] == prints[2]
    assert len(set(prints)) == 3


def test_another_token_store_is_refused(straight, experiment, tmp_path):
    workdir = epath.Path(straight[0])
    with (
        jax.set_mesh(make_mesh(experiment.execution.mesh, jax.devices())),
        pytest.raises(UserError, match="data.store: .* has digest 000000000000, but checkpoint 12"),
    ):
        checkpoint.restore_newest(workdir, experiment, "0" * 64)


# A loss that is not finite


def test_a_non_finite_loss_names_step_and_rows_and_keeps_the_last_good(experiment, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    optimizer = dataclasses.replace(experiment.optimizer, peak_lr=1e20, warmup_steps=11)
    with pytest.raises(NonFiniteLoss) as e:
        train(dataclasses.replace(experiment, optimizer=optimizer), workdir, accept_changes=False)
    step = int(re.match(r"step (\d+): loss is ", str(e.value)).group(1))
    rows = (workdir / f"nonfinite_step_{step}.txt").read_text().splitlines()
    assert len(rows) == experiment.data.batch_size
    assert re.match(r"row 0: \w+ window \d+, tokens \d+\.\.\d+", rows[0]) and rows[0] in str(
        e.value
    )
    saved = steps(workdir)
    assert all(s < step for s in saved)
    assert all(np.isfinite(loss) for loss in losses(Path(workdir)).values())


# The other verbs


def test_a_damaged_checkpoint_is_one_line_on_the_terminal(straight, tmp_path):
    workdir = shutil.copytree(straight[0], tmp_path / "run")
    truncate(largest_file(workdir / "checkpoints/12/model"))
    done = llama_jax("sample", workdir, "--prompt", "x")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"checkpoint {workdir}/checkpoints/12 is damaged: " in line


def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(straight, tmp_path):
    shutil.copy(straight[0] / "metrics.jsonl", tmp_path)
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command("plot", tmp_path)]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "llama-jax plot: [Errno 27] File too large"
    assert not (tmp_path / "loss.png").exists()


def test_prepare_with_workers_ends(experiment_file, tiny_data, tmp_path):
    done = llama_jax(
        "prepare", experiment_file, "--workers", 2, "--set", f"data.store={tmp_path / 'store'}"
    )
    assert done.returncode == 0, done.stderr
    other = dataclasses.replace(tiny_data, store=str(tmp_path / "store"))
    assert store.digest(other) == store.digest(tiny_data)
    assert "normalizer.cc" not in done.stderr


def test_evaluate_sample_and_plot_a_run(straight):
    workdir = straight[0]
    done = llama_jax("evaluate", workdir)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines() if "│" in line}
    last = [r for r in read_metrics(epath.Path(workdir)) if "validation_loss" in r][-1]
    assert float(rows["mixture"][3]) == pytest.approx(last["validation_loss"], abs=1e-3)
    loss, _, bigram, unigram = (float(rows["mixture"][i]) for i in (3, 5, 7, 9))
    assert bigram < unigram < np.log(512) and unigram - 1.0 < loss

    options = ("--prompt", "import", "--prompt", "I", "--seed", 3)
    as_users_run_it = {k: v for k, v in environment().items() if k != "JAX_PLATFORMS"}
    sample = subprocess.run(
        command("sample", f"{workdir}@9", *options),
        env=as_users_run_it,
        capture_output=True,
        text=True,
    )
    assert sample.returncode == 0 and "TPU" not in sample.stderr, sample.stderr
    assert sample.stdout.startswith("import") and "\n\nI" in sample.stdout

    options = ("--int8", "--format", "jsonl", "--top-k", 5, "--stop", "e")
    sample = llama_jax("sample", workdir, "--prompt", "import", "--prompt", "I", *options)
    assert sample.returncode == 0, sample.stderr
    rows = [json.loads(line) for line in sample.stdout.splitlines() if line.startswith("{")]
    assert [row["prompt"] for row in rows] == ["import", "I"]
    assert all("e" not in row["text"] for row in rows)
    (cost,) = re.findall(r"(?m)^int8: perplexity [\d.]+ -> [\d.]+ \((.*)%\)", sample.stderr)
    assert abs(float(cost)) < 1

    (workdir / "loss.png").unlink()
    done = llama_jax("plot", workdir)
    assert done.returncode == 0 and (workdir / "loss.png").exists()


def fails(capsys, monkeypatch, *args) -> str:
    """What llama-jax prints on stderr when it ends with status 2, as it must: one line."""
    monkeypatch.setattr(sys, "argv", ["llama-jax", *map(str, args)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert len(printed.splitlines()) == 1, printed
    return printed


def test_what_cannot_be_done_is_said_in_a_line(
    experiment_file, straight, tmp_path, capsys, monkeypatch
):
    def refused(*args):
        return fails(capsys, monkeypatch, *args)

    new = ("--workdir", tmp_path / "new")
    devices = ("--set", "execution.mesh.fsdp=8")
    assert "no such field" in refused("train", experiment_file, *new, "--set", "run.steps=3")
    assert "no file" in refused("show", tmp_path / "missing.py")
    (tmp_path / "file").write_text("")
    line = refused("train", experiment_file, *devices, "--workdir", tmp_path / "file/run")
    assert "workdir: cannot write to" in line and "Not a directory" in line
    line = refused("train", experiment_file, *devices, *new, "--set", "data.seq_len=1000000")
    assert "data.seq_len: got 1000000, but source github holds" in line
    line = refused(
        "train",
        experiment_file,
        *new,
        "--set",
        "execution.mesh.replica=3",
        "--set",
        "data.batch_size=6",
    )
    assert "= 3, but there are 8 devices" in line
    line = refused("train", experiment_file, *devices, *new, "--set", "execution.attention=splash")
    assert "execution.attention: 'splash' needs a tpu, but the devices are cpu" in line
    line = refused("train", experiment_file, *devices, *new, "--set", "model.vocab_size=256")
    assert "model.vocab_size: got 256, but the token store's tokenizer has 512 pieces" in line
    line = refused("train", experiment_file, *devices, "--workdir", straight[0])
    assert "was begun with another experiment: execution.mesh.fsdp: 1 -> 8" in line
    assert "no checkpoint in" in refused("evaluate", tmp_path / "nothing")
    damaged = shutil.copytree(straight[0], tmp_path / "damaged")
    shutil.rmtree(damaged / "checkpoints/12/model")
    line = refused("sample", damaged, "--prompt", "x", *devices)
    assert f"checkpoint {damaged}/checkpoints/12 is damaged: " in line
    line = refused("evaluate", straight[0], "--set", "model.num_layers=3", *devices)
    assert "model.num_layers: got 3, but checkpoint" in line and "has 2; expected the same" in line
    line = refused("train", experiment_file, *new, "--set", "data.tokenizer=embedded")
    assert "data.tokenizer: got 'embedded', but source github of the token store" in line
    line = refused("train", experiment_file, *new, "--set", "data.store=gs://BUCKET/store")
    assert "data.store: got 'gs://BUCKET/store', which cannot be read or written" in line
    assert "--multihost: got '1,2'" in refused("train", experiment_file, *new, "--multihost", "1,2")
    assert "metrics.jsonl; it is written by llama-jax train" in refused("plot", tmp_path / "no")
    assert "no checkpoint '7'" in refused("sample", f"{straight[0]}@7", "--prompt", "x")


def test_show_resolves_an_experiment(monkeypatch, capsys):
    path = Path(__file__).parents[1] / "experiments/llama_7b.py"
    monkeypatch.setattr(sys, "argv", ["llama-jax", "show", str(path)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for figure in (
        "6,738,415,616",
        "4,194,304 tokens",
        "238,419",
        "148.4",
        "4.043e+22",
        "3.000e-04",
    ):
        assert figure in printed
    assert json.loads(to_json(load(str(path))))["model"]["num_layers"] == 32


# A pod


@pytest.mark.slow
def test_a_pod_of_two_processes_trains_as_one(straight, experiment_file, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    args = (
        "train",
        experiment_file,
        "--workdir",
        tmp_path / "run",
        "--set",
        "execution.mesh.fsdp=2",
    )
    pod = [
        subprocess.Popen(
            command(*args, "--multihost", f"{address},2,{index}"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    printed = [process.communicate()[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    assert "12/12  loss" in printed[0] and "12/12" not in printed[1]
    np.testing.assert_allclose(
        list(losses(tmp_path / "run").values()), list(losses(straight[0]).values()), rtol=1e-5
    )
    assert steps(epath.Path(tmp_path / "run")) == [6, 9, 12]
