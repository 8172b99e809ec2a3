"""The verbs on a finished run, and what cannot be done, said in a line."""

import importlib.metadata
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.paths import EXPERIMENTS
from llama_jax.commands import show
from llama_jax.experiment import IDENTITY, fields, to_json
from llama_jax.loading import load
from llama_jax.run.metrics import read_metrics


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """A copy of the trained run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def test_evaluate_gives_the_losses_of_training_beside_ngrams(cli, workdir):
    done = cli("evaluate", workdir)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines() if "│" in line}
    last = [r for r in read_metrics(epath.Path(workdir)) if "validation_loss" in r][-1]
    assert float(rows["mixture"][3]) == pytest.approx(last["validation_loss"], abs=1e-3)
    loss, _, bigram, unigram = (float(rows["mixture"][i]) for i in (3, 5, 7, 9))
    assert bigram < unigram < np.log(512) and unigram - 1.0 < loss


def test_sample_in_eight_bits_into_json_lines(cli, workdir):
    options = ("--int8", "--format", "jsonl", "--top-k", 5, "--stop", "e")
    sample = cli("sample", workdir, "--prompt", "import", "--prompt", "I", *options)
    assert sample.returncode == 0, sample.stderr
    rows = [json.loads(line) for line in sample.stdout.splitlines() if line.startswith("{")]
    assert [row["prompt"] for row in rows] == ["import", "I"]
    assert all("e" not in row["text"] for row in rows)
    (cost,) = re.findall(r"(?m)^int8: perplexity [\d.]+ -> [\d.]+ \((.*)%\)", sample.stderr)
    assert abs(float(cost)) < 1


def test_plot_draws_the_figure_again(cli, workdir):
    (workdir / "loss.png").unlink()
    done = cli("plot", workdir)
    assert done.returncode == 0 and (workdir / "loss.png").exists()


def test_plot_draws_several_runs_told_apart_by_what_was_swept(cli, trained, tmp_path, monkeypatch):
    """A sweep's directory, or runs by name; from the lowest of what was swept to the highest."""
    sweep = tmp_path / "sweep"
    for digest, rate, batch in (("a1", 0.01, 8), ("b2", 0.003, 8), ("c3", 0.003, 16)):
        (sweep / digest).mkdir(parents=True)
        shutil.copy(trained / "metrics.jsonl", sweep / digest)
        text = (trained / "config.json").read_text()
        text = text.replace('"peak_lr": 0.003', f'"peak_lr": {rate}')
        text = text.replace('"batch_size": 8', f'"batch_size": {batch}')
        (sweep / digest / "config.json").write_text(text)
    figures = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    monkeypatch.chdir(tmp_path)
    for args, out in (
        ((sweep,), sweep / "loss.png"),
        ((sweep / "a1", sweep / "b2", sweep / "c3"), tmp_path / "loss.png"),
        ((sweep, "--out", "other.png"), tmp_path / "other.png"),
    ):
        done = cli("plot", *args)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes().startswith(b"\x89PNG")
        legend = figures[-1].axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == [
            "batch_size 8, peak_lr 0.003",
            "batch_size 8, peak_lr 0.01",
            "batch_size 16, peak_lr 0.003",
        ]
        assert len({line.get_color() for line in legend.get_lines()}) == 3
    done = cli("plot", sweep, "--out", "x.pdf")
    assert done.returncode == 2 and "expected a name in .png" in done.stderr


@pytest.fixture
def refused(cli) -> Callable[..., str]:
    """What llama-jax prints on stderr when it ends with status 2, as it must: one line."""

    def run(*args) -> str:
        done = cli(*args)
        assert done.returncode == 2
        printed = done.stderr.strip()
        assert len(printed.splitlines()) == 1, printed
        return printed

    return run


MESH_OF_3 = ("--set", "execution.mesh.replica=3", "--set", "data.batch_size=6")


def test_what_cannot_be_done_is_said_in_a_line(refused, experiment_file, workdir, tmp_path):
    new = ("--workdir", tmp_path / "new")
    rate = ("--set", "optimizer.peak_lr=1e-3")
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
        *MESH_OF_3,
    )
    assert "= 3, but there are 8 devices (cpu); the nearest that works is --set exec" in line
    line = refused("evaluate", workdir, "--set", "execution.mesh.fsdp=4")
    assert "= 4, but there are 8 devices" in line and "is --set execution.mesh.fsdp=8" in line
    line = refused("train", experiment_file, *devices, *new, "--set", "execution.attention=splash")
    assert "execution.attention: 'splash' needs a tpu, but the devices are cpu" in line
    line = refused("train", experiment_file, *devices, *new, "--set", "model.vocab_size=256")
    assert "model.vocab_size: got 256, but the token store's tokenizer has 512 pieces" in line
    line = refused("train", experiment_file, *devices, "--workdir", workdir, *rate)
    assert "was begun with another experiment: optimizer.peak_lr: 0.003 -> 0.001" in line
    assert "no checkpoint in" in refused("evaluate", tmp_path / "nothing")
    damaged = shutil.copytree(workdir, tmp_path / "damaged")
    shutil.rmtree(damaged / "checkpoints/12/model")
    line = refused("sample", damaged, "--prompt", "x", *devices)
    assert f"checkpoint {damaged}/checkpoints/12 is damaged: " in line
    line = refused("evaluate", workdir, "--set", "model.num_layers=3", *devices)
    assert "model.num_layers: got 3, but checkpoint" in line and "has 2; expected the same" in line
    line = refused("train", experiment_file, *new, "--set", "data.tokenizer=embedded")
    assert "data.tokenizer: got 'embedded', but source github of the token store" in line
    line = refused("train", experiment_file, *new, "--set", "data.store=gs://BUCKET/store")
    assert "data.store: got 'gs://BUCKET/store', expected a local path, or gs://BUCKET/PATH" in line
    for job in ("", "1,2", "a:1,2,x"):
        line = refused("train", experiment_file, *new, "--multihost", job)
        assert f"--multihost: got {job!r}, expected no value on a pod" in line
    line = refused("train", experiment_file, *new, "--multihost", "a:1,2,2")
    assert "--multihost: got process 2 of 2" in line
    assert "JAX knows of no pod here" in refused("train", experiment_file, *new, "--multihost")
    assert "metrics.jsonl; it is written by llama-jax train" in refused("plot", tmp_path / "no")
    assert "no checkpoint '7'" in refused("sample", f"{workdir}@7", "--prompt", "x")


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("table.csv", "fit {path} --out {directory}/fit"),
        ("laws.json", "budget --laws {path} --inference-tokens 1e12 --quality-of 7e9"),
        ("run/metrics.jsonl", "plot {directory}/run"),
        ("run/config.json", "train quickstart --workdir {directory}/run"),
        ("tokenizer.model", "show quickstart --set data.tokenizer={path}"),
        ("books/train.jsonl", "cache quickstart --set data.corpus={directory}"),
    ],
)
def test_nothing_waits_for_the_other_end_of_a_pipe(refused, tmp_path, path, command):
    """Where a file should be. A command that opens it finds it empty, so that the test ends."""
    fifo = tmp_path / path
    fifo.parent.mkdir(exist_ok=True)
    os.mkfifo(fifo)
    threading.Thread(target=lambda: open(fifo, "wb").close(), daemon=True).start()
    mine = ("--set", f"data.store={tmp_path}/store", "--set", "data.mixture=(('books', 1.0),)")
    words = command.format(path=fifo, directory=tmp_path).split()
    line = refused(*words, *mine * ("quickstart" in words))
    assert str(fifo) in line
    assert "is neither a file nor" in line or "is no regular file" in line


def test_a_wrong_mesh_is_refused_before_a_store_is_written(refused, tmp_path):
    store = ("--set", f"data.store={tmp_path}/store", "--workdir", tmp_path / "run")
    assert "there are 8 devices" in refused("train", "quickstart", *store, *MESH_OF_3)
    assert not (tmp_path / "store").exists()


def test_show_says_what_is_not_the_papers(cli):
    printed = " ".join(cli("show", "llama_13b").stdout.split())
    assert "nothing that a result depends on differs from the paper's llama_13b" in printed
    done = cli(
        "show", "llama_13b", "--set", "optimizer.b2=0.99", "--set", "execution.micro_batches=4"
    )
    (row,) = [line for line in done.stdout.splitlines() if "optimizer.b2" in line]
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["optimizer.b2", "0.99", "0.95"]
    assert "micro_batches" not in done.stdout.split("what differs from llama_13b")[1]


def test_show_knows_what_every_field_is():
    """Of those that a result depends on."""
    names = {name for name, _, _ in fields(load("quickstart")) if name.split(".")[0] in IDENTITY}
    assert show.MEANINGS.keys() == names - {"data.store"}


def test_show_resolves_an_experiment(cli):
    path = EXPERIMENTS / "llama_7b.py"
    done = cli("show", path)
    assert done.returncode == 0
    printed = " ".join(done.stdout.split())
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


def test_the_version_is_that_of_the_distribution(cli):
    done = cli("--version")
    assert (done.returncode, done.stdout) == (
        0,
        f"llama-jax {importlib.metadata.version('llama-jax')}\n",
    )


def test_steps_that_wait_for_compilation_have_no_utilisation(trained):
    rows = [row for row in read_metrics(epath.Path(trained)) if "loss" in row]
    assert [row["step"] for row in rows if "mfu" not in row] == [1, 2]
    assert all(row["tokens_per_second"] > 0 for row in rows)
