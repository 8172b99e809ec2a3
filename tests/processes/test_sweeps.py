"""Sweeps of tiny models: real processes, killed, frozen, and sharing a directory."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from helpers.paths import ROOT
from helpers.processes import environment
from llama_jax.flops import num_params
from llama_jax.loading import override
from llama_jax.run.checkpoint import read_meta, steps
from llama_jax.run.metrics import read_metrics
from llama_jax.scaling.results import Columns, read
from llama_jax.sweeps import sweep, worker

COMMAND = [sys.executable, "-m", "llama_jax", "sweep"]


def start(*args) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, args), "--expiry", "10"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check(runs: list[sweep.Run], workdir: Path) -> None:
    """Each run is trained to its end, and has each row once."""
    rows = table(workdir)
    expected = [(r.name, r.experiment.run.num_steps // k) for r in runs for k in (2, 1)]
    assert [(row["run"], int(row["step"])) for row in rows] == expected
    for run in runs:
        trained = [row["step"] for row in read_metrics(run.directory) if "loss" in row]
        assert trained == list(range(1, run.experiment.run.num_steps + 1))
        own = override(run.experiment, f"data.tokenizer={run.directory / 'tokenizer.model'}")
        assert read_meta(run.directory, trained[-1]).experiment == own


# Whole sweeps


def test_a_killed_sweep_goes_on_and_trains_nothing_twice(make_file, tmp_path):
    file, workdir = make_file((16, 8, 512), (32, 800, 512), (16, 4, 256)), tmp_path / "sweep"
    runs = sweep.load(str(file), [], epath.Path(workdir))
    whole, victim, hopeless = runs
    first = start(file, "--workdir", workdir)
    wait_until(lambda: steps(victim.directory), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert sweep.finished(whole) and not sweep.finished(victim)
    assert {row["run"] for row in table(workdir)} == {whole.name}
    written = os.stat(whole.directory / "metrics.jsonl").st_mtime_ns

    again = start(file, "--workdir", workdir)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 1  # of what cannot be trained
    message = f"failed: {hopeless.name}: model.vocab_size: got 256"
    assert message in printed
    assert os.stat(whole.directory / "metrics.jsonl").st_mtime_ns == written
    (resumed,) = re.findall(r"steps (\d+) to 800", (victim.directory / "log.txt").read_text())
    assert int(resumed) >= 200
    check(runs[:2], workdir)

    dates, log = [row["date"] for row in table(workdir)], hopeless.directory / "log.txt"
    tried = os.stat(log).st_mtime_ns
    for args, tries_again in (((), False), (("--retry",), True)):
        more = start(file, "--workdir", workdir, *args)
        assert message in more.communicate(timeout=120)[0] and more.returncode == 1
        assert (os.stat(log).st_mtime_ns > tried) == tries_again
    assert [row["date"] for row in table(workdir)] == dates

    for row, run in zip(table(workdir)[::2], runs, strict=False):
        assert row["model.embed_dim"] == str(run.experiment.model.embed_dim)
    points = read(workdir / "results.csv", Columns())
    assert len(points) == 4 and len(points.final()) == 2
    assert list(points.params[::2]) == [num_params(run.experiment.model) for run in runs[:2]]
    assert points.flops == pytest.approx(6 * points.params * points.tokens)
    for row in table(workdir):
        rates = {"github": 0.67, "books": 0.3, "stackexchange": 0.03}
        mean = sum(rate * float(row[f"loss/{source}"]) for source, rate in rates.items())
        assert float(row["loss"]) == pytest.approx(mean)


def test_a_sweep_that_is_asked_to_end_saves_first(make_file, tmp_path):
    file, workdir = make_file((16, 100_000, 512)), tmp_path / "sweep"
    (run,) = sweep.load(str(file), [], epath.Path(workdir))
    process = start(file, "--workdir", workdir)
    wait_until((run.directory / "metrics.jsonl").exists, process)
    wait_until(lambda: read_metrics(run.directory), process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "llama-jax sweep: ended by SIGTERM" in printed
    assert steps(run.directory) == [read_metrics(run.directory)[-1]["step"]]
    assert sweep.state(run).status == "unfinished"


def test_two_processes_share_a_sweep(make_file, tmp_path):
    """Both want the first run first, and the token store before that."""
    file, workdir = make_file((16, 8, 512), (16, 12, 512)), tmp_path / "sweep"
    new_store = f"data.store={tmp_path / 'store'}"
    runs = sweep.load(str(file), [new_store], epath.Path(workdir))
    both = [start(file, "--workdir", workdir, "--set", new_store) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    check(runs, workdir)
    for run in runs:  # no second process began it, or its directory would have two event files
        assert len(list((run.directory / "tensorboard").iterdir())) == 1
    owners = re.findall(r": running .*_(\d+)$", "".join(printed), re.MULTILINE)
    assert set(owners) == {str(process.pid) for process in both}


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


HOLD = """
import os, sys, time
from etils import epath
from llama_jax.run.lease import acquire, hold
before = time.monotonic()
lease = acquire(epath.Path(sys.argv[1]), 4)
hold(lease, before, int(sys.argv[2]) or os.getppid())
sys.exit(75)
"""


def test_a_holder_ends_when_it_loses_its_lease_its_time_or_its_parent(tmp_path):
    def holder(name: str, parent: int = 0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / name), str(parent)]
        return subprocess.Popen(command, cwd=ROOT)

    def file(name: str) -> Path:
        while not (found := [p for p in (tmp_path / name).glob("*.lease") if p.stat().st_size]):
            time.sleep(0.01)
        return found[0]

    robbed, frozen, orphan, well = (holder(n) for n in ("robbed", "frozen", "x", "well"))
    orphan.kill()
    orphan = holder("orphan", parent=1)
    for process in (robbed, frozen, well):
        assert process.poll() is None
    path = file("robbed")
    file("frozen")
    frozen.send_signal(signal.SIGSTOP)
    before = os.stat(file("well")).st_mtime_ns
    time.sleep(4.5)  # past the expiry, so that a renewal begun before the stop is too late, too
    frozen.send_signal(signal.SIGCONT)
    while robbed.poll() is None:  # once may be just before it renews
        path.unlink(missing_ok=True)
        time.sleep(0.1)
    for process in (robbed, frozen, orphan):
        assert process.wait(timeout=60) == worker.LOST
    assert well.poll() is None and os.stat(file("well")).st_mtime_ns > before
    well.kill()
