"""Where the wall time of a run went, attempt by attempt."""

import json
import time
from pathlib import Path

import pytest
from etils import epath

from llama_jax.config import UserError
from llama_jax.run.attempt import PHASES, Attempt
from llama_jax.run.goodput import SHARES, goodput, plot_goodput, read_attempts

BEGAN = 1_000_000.0


def write(workdir: Path, number: int, began: float, lost: float = 0.0, **seconds: float) -> None:
    """Write a record by hand, as of an attempt that was killed after its last one."""
    record = {
        "began": BEGAN + began,
        "written": BEGAN + began + sum(seconds.values()),
        "first_step": 0,
        "step": 10,
        "lost_steps": 2 if lost else 0,
        "lost_seconds": lost,
        "seconds": dict.fromkeys(PHASES, 0.0) | seconds,
        "events": [],
    }
    (workdir / "attempts").mkdir(exist_ok=True)
    (workdir / f"attempts/{number:04}.json").write_text(json.dumps(record))


def test_shares_add_up_to_the_time_from_first_to_last(tmp_path):
    write(tmp_path, 1, 0, start=10, compile=20, step=60, save=5, evaluate=4, input=1)
    write(tmp_path, 2, 150, lost=15, start=10, compile=20, step=20)
    got = goodput(read_attempts(epath.Path(tmp_path)))
    assert got == {
        **{"step": 65.0, "lost": 15.0, "start": 20.0, "compile": 40.0, "input": 1.0},
        **{"evaluate": 4.0, "save": 5.0, "down": 50.0},
    }
    assert sum(got.values()) == 200 and list(got) == list(SHARES)
    figure = plot_goodput(epath.Path(tmp_path))
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_an_attempt_counts_each_second_once(tmp_path):
    attempt = Attempt(epath.Path(tmp_path), began=time.time() - 5)
    attempt.begin(3)
    for phase in ("compile", "step", "evaluate", "save", "step"):
        attempt.enter(phase)
        time.sleep(0.01)
    attempt.lose(2, 0.001)
    attempt.event("save", "no space")
    attempt.end()
    attempt.event("late", "what comes after the end is not written")
    (record,) = read_attempts(epath.Path(tmp_path))
    assert sum(record.seconds.values()) == pytest.approx(record.written - record.began, abs=1e-5)
    assert record.seconds["start"] >= 5 and all(record.seconds[p] > 0 for p in PHASES[:3])
    assert [event["event"] for event in record.events] == ["save"]
    assert (record.first_step, record.lost_steps) == (3, 2)


def test_attempts_have_numbers_of_their_own(tmp_path):
    for _ in range(3):
        Attempt(epath.Path(tmp_path), time.time()).begin(0)
    assert len(read_attempts(epath.Path(tmp_path))) == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"began": 1}', "nan"])
def test_a_damaged_record_is_named(tmp_path, content):
    write(tmp_path, 1, 0, step=1)
    (tmp_path / "attempts/0001.json").write_text(content)
    with pytest.raises(UserError, match=r"attempts/0001.json: .*; delete it"):
        read_attempts(epath.Path(tmp_path))


def test_a_run_shows_where_it_is_and_what_its_time_went_into(trained, cli):
    shown = cli("show", trained)
    assert shown.returncode == 0, shown.stderr
    assert "12 of 12" in shown.stdout and "6, 9, 12" in shown.stdout
    assert "in 1 attempt, goodput" in shown.stdout and "goodput.png" in shown.stdout
    got = goodput(read_attempts(epath.Path(trained)))
    assert got["step"] > 0 and got["compile"] > 0 and got["lost"] == got["down"] == 0


def test_what_is_no_run_is_said(tmp_path, cli):
    shown = cli("show", tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.strip().endswith(f"{tmp_path} is not a run of llama-jax train")
