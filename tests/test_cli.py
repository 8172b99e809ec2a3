"""The door: one line for an error, whatever was given and wherever it is printed."""

import io
import sys

import pytest

import llama_jax.cli
from llama_jax.commands import show


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "llama-jax: the following arguments are required: VERB"),
        (("frob",), "llama-jax: argument VERB: invalid choice: 'frob'"),
        (("show",), "llama-jax show: the following arguments are required: EXPERIMENT"),
        (("plan", "x.py", "--price", "-1"), "llama-jax plan: argument --price: got -1, expected 0"),
        (("show", "a\udcff.py"), r"llama-jax show: got 'a\udcff.py', expected arguments in UTF-8"),
        (("show", "a\nb\x1b[31m.py"), r"llama-jax show: experiment: no file 'a\nb\x1b[31m.py'"),
    ],
)
def test_a_command_line_is_refused_in_a_line(cli, args, message):
    done = cli(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_a_fault_of_ours_is_not_called_the_users(cli, monkeypatch, tmp_path):
    def run(_):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(show, "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = cli("show", "x.py")
    (kept,) = tmp_path.iterdir()
    assert done.returncode == 70 and done.stderr.count("\n") == 1
    assert "internal error" in done.stderr and f"traceback in {kept}" in done.stderr
    assert "ZeroDivisionError: first second" in done.stderr
    assert 'raise ZeroDivisionError("first' in kept.read_text()


def test_a_terminal_may_know_fewer_characters(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["llama-jax", "show", "experiments/quickstart.py"])
    with pytest.raises(SystemExit) as end:
        llama_jax.cli.main()
    out.flush()
    assert end.value.code == 0 and "2,557,632" in out.buffer.getvalue().decode("ascii")
