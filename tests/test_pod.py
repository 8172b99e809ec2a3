"""Processes that watch each other: three of them, as threads, on real connections."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from llama_jax.config import UserError
from llama_jax.guards import pod, watchdog
from llama_jax.guards.pod import Pod
from llama_jax.guards.stop import Stopped


@pytest.fixture
def ended(monkeypatch) -> Iterator[Callable[[int], list[int]]]:
    """Of how many processes the end was asked for, once it was of all that should; all within one
    second of silence."""
    statuses, asked = [], threading.Semaphore(0)

    def end(status: int) -> None:
        statuses.append(status)
        asked.release()

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(pod, "SILENCE", 1.0)
    monkeypatch.setattr(pod, "GRACE", 0.5)
    monkeypatch.setattr(pod, "BEAT", 0.1)
    monkeypatch.setattr(pod, "FAREWELL", 0.1)  # as nobody's line is closed by his end

    def wait(count: int) -> list[int]:
        for _ in range(count):
            assert asked.acquire(timeout=30)
        return statuses

    yield wait
    assert not asked.acquire(blocking=False)


@pytest.fixture
def three() -> tuple[Pod, Pod, Pod]:
    """Process 0, which has a line to each of the others, and these."""
    (a, to_a), (b, to_b) = socket.socketpair(), socket.socketpair()
    return (
        Pod(0, {1: ("one", a), 2: ("two", b)}),
        Pod(1, {0: ("zero", to_a)}),
        Pod(2, {0: ("zero", to_b)}),
    )


def test_who_leaves_in_order_ends_nobody(three, ended, capfd):
    with three[0], three[1], contextlib.suppress(Stopped), three[2]:
        raise Stopped("step 7 is saved", 143)
    assert capfd.readouterr().err == ""


def test_a_line_that_breaks_is_named_to_all(three, ended, capfd):
    with three[0], three[1]:
        three[2].lines[0][1].close()  # as of a process that was killed
        assert ended(2) == [1, 1]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("llama-jax train: process 2 on two is gone: it was killed, or its")
        assert line.endswith("; the same command on every host goes on from the newest checkpoint")


def test_silence_is_named_to_all(three, ended, capfd):
    with three[0], three[1]:  # and the other, whose line is open, says nothing
        assert ended(2) == [1, 1]
    expected = "process 2 on two is gone: nothing was heard of it for 1 s: it was stopped or cut"
    assert capfd.readouterr().err.count(expected) == 2


def test_what_one_fails_at_ends_the_others_with_its_words(three, ended, capfd):
    with three[0], three[2]:
        with contextlib.suppress(UserError), three[1]:
            raise UserError("no space left on device")
        assert ended(2) == [1, 1]
    expected = f"process 1 on {socket.gethostname()} ended: no space left on device; the same"
    assert capfd.readouterr().err.count(expected) == 2


def test_what_all_fail_at_each_says_itself(three, ended, capfd):
    for one in three:
        one.__enter__()
    for one in three:
        one.__exit__(UserError, UserError("the hosts differ"), None)
    assert capfd.readouterr().err == ""


def test_a_process_that_all_wait_for_is_named_once(three, ended):
    zero, one, two = three
    with zero, one, two:
        one.report(7, 0.75)
        two.report(7, 0.01)
        said: list[str | None] = []
        while len(zero.pace) < 3:  # its own, and those of two beats
            said.append(zero.report(7, 0.02))
        said += [zero.report(8, 0.02), zero.report(9, 0.02)]
    (remark,) = filter(None, said)
    assert remark.startswith("process 1 on one is slow: it takes 0.75 s of a step for itself")
    assert "0.02 s at the most" in remark


def test_who_hangs_behind_the_others_is_named_to_all(three, ended, capfd):
    zero, one, two = three
    with zero, one, two:
        one.phase = lambda: "input"
        one.report(6, 0.0)
        two.report(7, 0.0)
        while len(zero.pace) < 3:
            zero.report(7, 0.0)
        two.hung("step 7 was the last, 600 s ago: the next one hangs")
        assert ended(3) == [1, 1, 1]
    said = capfd.readouterr().err
    assert said.count("; the others wait for process 1 on one, in input at step 6; the same") == 2
