"""A sweep's table: what it would take, what is left, and what that rests on."""

import re

import pytest

from helpers.paths import EXPERIMENTS
from helpers.sweeps import shipped
from llama_jax.sweeps import board, sweep


@pytest.mark.parametrize("name", ["isoflop", "token_ladder", "lr_batch", "llama_small"])
def test_a_dry_run_says_what_a_sweep_would_take(name, cli, tmp_path):
    dry_run = ("sweep", EXPERIMENTS / f"sweeps/{name}.py", "--dry-run")
    place = ("--workdir", tmp_path / "none", "--slice", "v5p:2x2x4", "--price", "2")
    done = cli(*dry_run, *place)
    printed = done.stdout
    assert done.returncode == 0 and not (tmp_path / "none").exists()
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


def test_a_run_that_does_not_fit_the_slice_has_no_price(cli, tmp_path):
    dry_run = ("sweep", EXPERIMENTS / "sweeps/isoflop.py", "--dry-run")
    place = ("--workdir", tmp_path / "none", "--slice", "v5e:2x2", "--price", "1")
    lines = cli(*dry_run, *place).stdout.splitlines()
    rows = [row for row in map(str.split, lines) if row and row[0] in shipped("isoflop")]
    misfits = [row for row in rows if row[-5:] == ["does", "not", "fit", "-", "waiting"]]
    costs = [float(row[-2].replace(",", "")) for row in rows if row not in misfits]
    assert 0 < len(misfits) < len(rows)
    (total,) = [line.split() for line in lines if f"all: {len(rows)} runs" in line]
    assert float(total[-3].replace(",", "")) == pytest.approx(sum(costs), abs=len(costs))
    assert f"; {len(misfits)} left out: does not fit" in " ".join(lines)


def test_what_estimates_rest_on_is_said():
    def predicted(compiled: bool, low: float, high: float) -> board.Prediction:
        return board.Prediction((1, 2), None, compiled, (low, high))

    several = [predicted(True, 0.4, 0.5), predicted(False, 0.55, 0.55), board.NO_MESH]
    assert board._basis([*several, predicted(True, 0.45, 0.48)]) == (
        "one run after another; 2 by the compiler at an expected MFU of 40% to 50%; "
        "1 by arithmetic at an assumed MFU of 55%; 1 left out: no mesh"
    )


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
