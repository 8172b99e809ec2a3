"""Sweeps of tiny models: real processes, killed, frozen, and sharing a directory."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from llama_jax import cli
from llama_jax.config import Experiment, UserError
from llama_jax.flops import num_params
from llama_jax.run.checkpoint import read_meta, steps
from llama_jax.run.metrics import read_metrics
from llama_jax.scaling.budget import LLAMA
from llama_jax.scaling.results import Columns, read
from llama_jax.sweeps import board, lease, sweep

ROOT = Path(__file__).parents[1]
SWEEP = """
from llama_jax.config import *

def get_sweep():
    return {{
        f"{{dim}}-{{steps}}": Experiment(
            model=ModelConfig(num_layers=1, embed_dim=dim, num_heads=2, vocab_size=vocab_size,
                              compute_dtype="float32"),
            data={data!r},
            optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
            run=RunConfig(num_steps=steps),
            upkeep=Upkeep(eval_every=steps // 2, eval_rows=2, checkpoint_every=steps // 4),
        )
        for dim, steps, vocab_size in {runs}
    }}
"""
COMMAND = [sys.executable, "-m", "llama_jax", "sweep"]


def environment() -> dict[str, str]:
    """One device, as outside of tests."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def start(*args) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, args), "--expiry", "10"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def make_file(tiny_data, tmp_path) -> Callable[..., Path]:
    """A sweep file of (embed_dim, num_steps, vocab_size); the tokenizer has 512 pieces."""

    def make(*runs: tuple[int, int, int]) -> Path:
        path = tmp_path / "tiny.py"
        path.write_text(SWEEP.format(data=tiny_data, runs=runs))
        return path

    return make


def check(runs: list[sweep.Run], workdir: Path) -> None:
    """Each run is trained to its end, and has each row once."""
    rows = table(workdir)
    expected = [(r.name, r.experiment.run.num_steps // k) for r in runs for k in (2, 1)]
    assert [(row["run"], int(row["step"])) for row in rows] == expected
    for run in runs:
        trained = [row["step"] for row in read_metrics(run.directory) if "loss" in row]
        assert trained == list(range(1, run.experiment.run.num_steps + 1))
        assert read_meta(run.directory, trained[-1]).experiment == run.experiment


# Whole sweeps


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_trains_nothing_twice(make_file, tmp_path):
    file, workdir = make_file((16, 8, 512), (32, 2000, 512), (16, 4, 256)), tmp_path / "sweep"
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
    message = f"failed: {hopeless.name}: llama_jax.config.UserError: model.vocab_size: got 256"
    assert message in printed
    assert os.stat(whole.directory / "metrics.jsonl").st_mtime_ns == written
    (resumed,) = re.findall(r"steps (\d+) to 2000", (victim.directory / "log.txt").read_text())
    assert int(resumed) >= 500
    check(runs[:2], workdir)

    dates, log = [row["date"] for row in table(workdir)], hopeless.directory / "log.txt"
    tried = os.stat(log).st_mtime_ns
    for args, tries_again in (((), False), (("--retry",), True)):
        more = start(file, "--workdir", workdir, *args)
        assert message in more.communicate(timeout=120)[0] and more.returncode == 1
        assert (os.stat(log).st_mtime_ns > tried) == tries_again
    assert [row["date"] for row in table(workdir)] == dates

    points = read(workdir / "results.csv", Columns())
    assert len(points) == 4 and len(points.final()) == 2
    assert list(points.params[::2]) == [num_params(run.experiment.model) for run in runs[:2]]
    assert points.flops == pytest.approx(6 * points.params * points.tokens)
    for row in table(workdir):
        rates = {"github": 0.67, "books": 0.3, "stackexchange": 0.03}
        mean = sum(rate * float(row[f"loss/{source}"]) for source, rate in rates.items())
        assert float(row["loss"]) == pytest.approx(mean)


@pytest.mark.slow
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


def test_shards_begin_with_different_runs(make_file, tmp_path, monkeypatch):
    workdir, order = epath.Path(tmp_path), []
    file = make_file(*((16, 4 + i, 512) for i in range(5)))
    runs = sweep.load(str(file), [], workdir)

    def train(run, *_) -> bool:
        order.append(run.name)
        run.directory.mkdir()
        (run.directory / "finished.json").write_text('{"date": "", "git": ""}')
        return True

    monkeypatch.setattr(sweep, "_train", train)
    sweep.work(runs, workdir, (1, 2), 60, lambda _: None)
    assert order == ["16-5", "16-7", "16-4", "16-6", "16-8"]


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


# Leases


def test_one_at_a_time_holds_a_lease(tmp_path):
    """Eight threads want the same, again and again."""
    holders, most, turns = [], [], []

    def contend(name: int) -> None:
        while len(turns) < 20:
            mine = lease.acquire(epath.Path(tmp_path), 60)
            if mine is not None:
                holders.append(name)
                time.sleep(0.001)
                most.append(len(holders))
                holders.remove(name)
                mine.release()
                turns.append(name)
            time.sleep(random.uniform(0, 0.02))

    threads = [threading.Thread(target=contend, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert not list(tmp_path.iterdir())


def test_a_lease_without_a_sign_of_life_is_taken_over(tmp_path):
    directory = epath.Path(tmp_path)
    dead = lease.acquire(directory, 10)
    assert dead is not None and lease.acquire(directory, 10) is None
    past = time.time() - 9
    os.utime(dead.path, (past, past))
    assert lease.acquire(directory, 1) is None  # its own expiry counts, not ours
    os.utime(dead.path, (past - 3, past - 3))
    mine = lease.acquire(directory, 1)
    assert mine is not None and lease.leases(directory) == [mine]


HOLD = """
import os, sys, time
from etils import epath
from llama_jax.sweeps.lease import acquire, hold
before = time.monotonic()
lease = acquire(epath.Path(sys.argv[1]), 4)
hold(lease, before, int(sys.argv[2]) or os.getppid())
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
        assert process.wait(timeout=60) == lease.LOST
    assert well.poll() is None and os.stat(file("well")).st_mtime_ns > before
    well.kill()


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.py: no get_sweep\(\), .*; one experiment is for llama-jax train"),
        ("def get_sweep(): return {}", "must return a dict of Experiments"),
        ("def get_sweep(): return {'a': 1}", "'a' is a int"),
        ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        sweep.load(str(path), [], epath.Path(tmp_path))


def test_experiments_are_checked_and_differ(make_file, tmp_path):
    file = str(make_file((16, 8, 512), (32, 8, 512)))
    with pytest.raises(UserError, match="16-8: model.num_heads: got 3, expected a divisor"):
        sweep.load(file, ["model.num_heads=3"], epath.Path(tmp_path))
    with pytest.raises(UserError, match="32-8 and 16-8 are the same"):
        sweep.load(file, ["model.embed_dim=16"], epath.Path(tmp_path))
    runs = sweep.load(file, [], epath.Path(tmp_path))
    others = sweep.load(file, ["run.seed=1"], epath.Path(tmp_path))
    assert len({run.directory for run in (*runs, *others)}) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--slice", "v5e:1x1"], "--slice belongs to --dry-run, and --price to --slice"),
        (["--dry-run", "--price", "2"], "--price to --slice"),
        (["--shard", "3/2"], "got '3/2', expected I/N"),
        (["--dry-run", "--shard", "1/2"], "--shard does nothing with --dry-run"),
        (["--dry-run", "--retry"], "--retry does nothing with --dry-run"),
        (["--dry-run", "--expiry", "60"], "--expiry does nothing with --dry-run"),
        (["--slice", "v5e:1x1", "--price", "0"], "--price: got 0, expected a finite number above"),
        (["--workdir", "/proc/none"], "--workdir: cannot write to '/proc/none': No such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(args, message, monkeypatch, capsys):
    file = "experiments/sweeps/cpu_isoflop.py"
    monkeypatch.setattr(sys, "argv", ["llama-jax", "sweep", file, *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and message in capsys.readouterr().err


# The sweeps of the repository


def shipped(name: str) -> dict[str, Experiment]:
    path = ROOT / f"experiments/sweeps/{name}.py"
    return {run.name: run.experiment for run in sweep.load(str(path), [], epath.Path("x"))}


def tokens(experiment: Experiment) -> int:
    data = experiment.data
    return experiment.run.num_steps * data.batch_size * data.seq_len


@pytest.mark.parametrize("name", ["isoflop", "cpu_isoflop"])
def test_runs_of_a_budget_cost_the_same(name):
    budgets: dict[float, list[int]] = {}
    for label, experiment in shipped(name).items():
        params, flops = num_params(experiment.model), float(label.rsplit("-", 1)[0])
        assert 6 * params * tokens(experiment) == pytest.approx(flops, rel=0.01)
        budgets.setdefault(flops, []).append(params)
    assert len(budgets) >= 4
    for sizes in budgets.values():
        assert len(sizes) >= 5 and max(sizes) > 3 * min(sizes)


def test_horizons_and_ratios_are_as_they_say():
    by_size: dict[int, list[int]] = {}
    for experiment in shipped("token_ladder").values():
        by_size.setdefault(num_params(experiment.model), []).append(tokens(experiment))
    for horizons in by_size.values():
        assert len(horizons) == 4 and max(horizons) / min(horizons) == pytest.approx(16, rel=0.01)
    for experiment, (params, trained) in zip(
        shipped("llama_small").values(), LLAMA.values(), strict=True
    ):
        ratio = tokens(experiment) / num_params(experiment.model)
        assert ratio == pytest.approx(trained / params, rel=0.01)
    assert len(shipped("lr_batch")) == 20


@pytest.mark.parametrize("name", ["isoflop", "token_ladder", "lr_batch", "llama_small"])
def test_a_dry_run_says_what_a_sweep_would_take(name, monkeypatch, capsys, tmp_path):
    file = str(ROOT / f"experiments/sweeps/{name}.py")
    command = ["llama-jax", "sweep", file, "--workdir", str(tmp_path / "none"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", [*command, "--slice", "v5p:2x2x4", "--price", "2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr().out
    assert end.value.code == 0 and not (tmp_path / "none").exists()
    runs = shipped(name)
    rows = [row for row in map(str.split, printed.splitlines()) if row and row[0] in runs]
    assert [row[0] for row in rows] == list(runs) and all(row[-1] == "waiting" for row in rows)
    (total,) = [line for line in printed.splitlines() if f"all: {len(runs)} runs" in line]
    costs = [float(row[-2].replace(",", "")) for row in rows]
    cost = float(total.split(f"{len(runs)} waiting")[0].split()[-1].replace(",", ""))
    assert cost == pytest.approx(sum(costs), abs=len(runs)) and min(costs) > 0
    assert "cost, dollars" in printed
    assert re.search(
        rf"one run after another; {len(runs)} by arithmetic at an assumed MFU of \d+%", printed
    )


def test_a_run_that_does_not_fit_the_slice_has_no_price(monkeypatch, capsys, tmp_path):
    file = str(ROOT / "experiments/sweeps/isoflop.py")
    command = ["llama-jax", "sweep", file, "--workdir", str(tmp_path / "none"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", [*command, "--slice", "v5e:2x2", "--price", "1"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [row for row in map(str.split, lines) if row and row[0] in shipped("isoflop")]
    misfits = [row for row in rows if row[-5:] == ["does", "not", "fit", "-", "waiting"]]
    costs = [float(row[-2].replace(",", "")) for row in rows if row not in misfits]
    assert 0 < len(misfits) < len(rows)
    (total,) = [line.split() for line in lines if f"all: {len(rows)} runs" in line]
    assert float(total[-3].replace(",", "")) == pytest.approx(sum(costs), abs=len(costs))
    assert f"; {len(misfits)} left out: does not fit" in " ".join(lines)


def test_what_estimates_rest_on_is_said():
    def predicted(compiled: bool, *mfu: float) -> board.Prediction:
        return board.Prediction((1, 2), None, compiled, mfu)

    several = [predicted(True, 0.4, 0.5), predicted(False, 0.55, 0.55), board.NO_MESH]
    assert board._basis([*several, predicted(True, 0.45, 0.48)]) == (
        "one run after another; 2 by the compiler at an expected MFU of 40% to 50%; "
        "1 by arithmetic at an assumed MFU of 55%; 1 left out: no mesh"
    )


def test_storage_out_of_reach_is_said_in_one_line(monkeypatch, capsys):
    def exists(_) -> bool:
        raise RuntimeError("could not resolve host\nwhen reading metadata")

    monkeypatch.setattr(type(epath.Path("gs://BUCKET/x")), "exists", exists)
    command = ["llama-jax", "sweep", "experiments/sweeps/cpu_isoflop.py", "--dry-run"]
    monkeypatch.setattr(sys, "argv", [*command, "--workdir", "gs://BUCKET/x"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    expected = "llama-jax sweep: --workdir: cannot read 'gs://BUCKET/x': could not resolve host\n"
    assert (end.value.code, capsys.readouterr().err) == (2, expected)


def test_what_is_left_is_neither_finished_nor_failed_and_lacks_what_is_done(
    make_file, tmp_path, monkeypatch, capsys
):
    runs = sweep.load(str(make_file(*((16, 8 + 4 * i, 512) for i in range(4)))), [], tmp_path)
    states = [
        sweep.State("finished", step=8),
        sweep.State("failed", step=3),
        sweep.State("unfinished", step=8),
        sweep.State("waiting"),
    ]
    shares = [board.share_left(run, found) for run, found in zip(runs, states, strict=True)]
    assert shares == [0, 0, 0.5, 1]
    by_run = dict(zip(runs, states, strict=True))
    monkeypatch.setattr(board, "state", by_run.get)
    board.print_plan(runs, None, None)
    (left,) = [line for line in capsys.readouterr().out.splitlines() if "left: 2 runs" in line]
    assert "1 unfinished, 1 waiting" in left
    assert left.split()[left.split().index("1") - 2] == f"{0.5 * 16 + 20:.0f}"  # of 8 to 20 steps
