"""The launcher on a pod of two hosts, from create to delete, behind a fake gcloud."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etils import epath

from helpers.fake_gcloud import Cloud
from helpers.hosts import Host, hosts
from helpers.plans import needs_libtpu
from helpers.processes import environment
from helpers.runs import losses
from llama_jax.run.workdir import steps

DEADLINE = 240.0  # seconds, for whatever is waited for
PORT = 8476
BOOKED = ("--slice", "v4:2x2x2", "--zone", "us-x1-a", "--project", "p", "--name", "pod", "--yes")
ADOPTED = ("--zone", "us-x1-a", "--project", "p")
LONG = ("--set", "run.num_steps=100000", "--set", "upkeep.eval_every=100000")
SELDOM = ("--set", "upkeep.checkpoint_every=10")
# A Python whose llama_jax ends at once, with the status that a file says.
STUB = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "$@" >>{directory}/started
exit "$(cat {directory}/status)"
"""


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[list[Host]]:
    with hosts(2) as found:
        yield found


@pytest.fixture
def cloud(two_hosts, tmp_path) -> Cloud:
    (tmp_path / "cloud").mkdir()
    return Cloud(tmp_path / "cloud", two_hosts)


@pytest.fixture
def popen(cloud, tmp_path, plan_cache) -> Callable[..., subprocess.Popen[str]]:
    """Start llama-jax pod with that gcloud, and a configuration of its own."""

    def start(*args) -> subprocess.Popen[str]:
        path = f"{cloud.path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, "-m", "llama_jax", "pod", *map(str, args)],
            env=environment() | {"PATH": path, "XDG_CONFIG_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def pod(popen) -> Callable[..., str]:
    """Run llama-jax pod, and return what it prints; it has to end with a status."""

    def run(*args, status: int = 0) -> str:
        process = popen(*args)
        printed = process.communicate(timeout=DEADLINE)[0]
        assert process.returncode == status, printed
        return printed

    return run


@pytest.fixture
def adopted(cloud, pod, experiment_file, tmp_path) -> Path:
    """A pod whose Python is a stub; the directory of `status`, which its runs end with."""
    cloud.set(states={"pod": ["READY"]})
    stub = tmp_path / "python"
    stub.write_text(STUB.format(directory=tmp_path))
    stub.chmod(0o755)
    pod("adopt", "pod", experiment_file, *ADOPTED, "--workdir", tmp_path / "run")
    pod("install", "pod", "--python", stub)
    return tmp_path


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def decisions(directory: Path) -> list[str]:
    lines = (directory / "llama_jax/pods/pod.watch.jsonl").read_text().splitlines()
    return [json.loads(line)["decision"] for line in lines]


def book_again(adopted: Path) -> None:
    """Let `watch` book the pod again: as if it had been created."""
    file = adopted / "llama_jax/pods/pod.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"provisioning": "spot"}))


# Each action


@needs_libtpu
def test_from_create_to_delete(cloud, two_hosts, pod, experiment_file, tmp_path):
    workdir = tmp_path / "run"
    printed = pod(
        "create", experiment_file, *BOOKED, "--spot", "--workdir", workdir, *LONG, *SELDOM
    )
    assert "FITS" in printed and "--accelerator-type v4-16" in printed
    assert "known already" in pod(
        *("create", experiment_file, *BOOKED, "--workdir", workdir), status=2
    )
    assert "WAITING_FOR_RESOURCES" in pod("status", "pod")
    printed = pod("install", "pod", "--python", sys.executable, "--poll", "0.1")
    assert "PROVISIONING; waiting for ACTIVE" in printed and "installed on 2 hosts" in printed

    pod("run", "pod", "--coordinator", f"{two_hosts[0].address}:{PORT}")
    until(lambda: steps(epath.Path(workdir)))
    printed = pod("run", "pod", status=1)
    assert "2 of 2 hosts: not ready, nothing was started: pod worker 0: running" in printed
    assert "pod worker 1: running" in pod("status", "pod")
    printed = pod("stop", "pod")
    assert printed.count("ended with status 143") == 2

    (saved,) = steps(epath.Path(workdir))[-1:]
    pod("run", "pod", "--set", f"run.num_steps={saved + 4}", "--accept-changes")
    printed = pod("logs", "pod", "--follow")  # returns when the run has ended
    assert f"step {saved + 4}" in printed
    until(lambda: pod("status", "pod").count("ended with status 0") == 2)
    assert "goodput" in pod("status", "pod")
    assert [*losses(workdir)] == [*range(1, saved + 5)]
    assert len([*(workdir / "logs").glob("*-pod-1.txt")]) == 2
    assert "==> pod worker 1 <==" in pod("logs", "pod")

    pod("delete", "pod", "--yes")
    assert "known: none" in pod("status", "pod", status=2)
    assert "--force" in cloud.calls[-1] and not two_hosts[0].processes()


def test_the_code_that_is_not_committed_is_sent_and_recorded(cloud, pod, adopted):
    code = cloud.home(1) / "llama_jax/code"
    patch = (code / "REVISION.patch").read_bytes()
    assert (code / "llama_jax/pods/host.sh").exists() and (code / "tiny.py").exists()
    (adopted / "status").write_text("0")
    pod("run", "pod")
    until(lambda: pod("status", "pod").count("status 0") == 2)
    revision = (code / "REVISION").read_text()
    recorded = adopted / f"run/code/{revision}.patch"
    assert recorded.read_bytes() == patch
    assert (adopted / "started").read_text().count("--multihost") == 2


def test_a_host_that_does_not_answer_is_named_and_nothing_is_started(cloud, pod, adopted):
    cloud.set(refuse_ssh=[1])
    for action in (("install", "pod", "--python", adopted / "python"), ("run", "pod")):
        printed = pod(*action, status=1)
        assert "1 of 2 hosts" in printed and "pod worker 1: " in printed
        assert "Connection refused" in printed and "pod worker 0:" not in printed
    assert "pod worker 1: unreachable" in pod("status", "pod")
    assert not (adopted / "started").exists()


def test_a_connection_that_is_cut_starts_a_run_once(cloud, pod, adopted):
    (adopted / "status").write_text("0")
    assert "idle" in pod("status", "pod")
    with cloud.change() as state:
        state["cut_start"] = [1]
    pod("run", "pod")
    until(lambda: pod("status", "pod").count("status 0") == 2)
    assert len((adopted / "started").read_text().splitlines()) == 2


# watch


@needs_libtpu
def test_watch_goes_on_after_a_preemption(cloud, two_hosts, pod, popen, experiment_file, tmp_path):
    workdir = tmp_path / "run"
    fields = ("run.num_steps=100", "upkeep.eval_every=100", "upkeep.checkpoint_every=20")
    overrides = [word for field in fields for word in ("--set", field)]
    pod("create", experiment_file, *BOOKED, "--workdir", workdir, *overrides)
    file = tmp_path / "llama_jax/pods/pod.json"
    coordinator = f"{two_hosts[0].address}:{PORT}"
    remembered = json.loads(file.read_text())
    remembered |= {"python": sys.executable, "coordinator": coordinator}
    file.write_text(json.dumps(remembered))

    watch = popen("watch", "pod", "--poll", "1")
    until(lambda: (cloud.home(1) / "llama_jax/run/pid").exists())
    for action in ("watch", "stop", "delete"):
        assert f"is watched by process {watch.pid} on" in pod(action, "pod", status=2)
    watch.kill()  # what it knows it can ask for again
    watch.communicate()
    watch = popen("watch", "pod", "--poll", "1")
    until(lambda: steps(epath.Path(workdir)))
    cloud.take("pod", "PREEMPTED")
    printed = watch.communicate(timeout=DEADLINE)[0]
    assert watch.returncode == 0, printed
    assert [d for d in decisions(tmp_path) if d not in ("wait", "failure")] == [
        *("install", "run"),
        *("delete", "create", "install", "run", "done"),
    ]
    assert [*losses(workdir)] == [*range(1, 101)]


def test_watch_gives_up_when_nothing_gets_better(pod, adopted):
    (adopted / "status").write_text("1")
    printed = pod("watch", "pod", "--poll", "0.01", "--attempts", "3", status=1)
    assert "gave up on pod: 3 failures in a row without a new checkpoint" in printed
    assert [d for d in decisions(adopted) if d != "wait"] == [
        *("run", "failure", "run", "failure", "run", "failure", "give up")
    ]


def test_watch_gives_up_at_once_on_what_needs_mending(pod, adopted):
    (adopted / "status").write_text("2")
    assert "the command needs mending" in pod("watch", "pod", "--poll", "0.01", status=1)
    assert decisions(adopted).count("run") == 1


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_will_not_come_is_booked_again_by_watch_only(cloud, pod, adopted, state):
    book_again(adopted)
    (adopted / "status").write_text("0")
    cloud.take("pod", state)
    printed = pod("install", "pod", "--python", adopted / "python", status=1)
    assert f"pod is {state}; llama-jax pod watch pod would book it again" in printed
    pod("watch", "pod", "--poll", "0.01")
    assert [d for d in decisions(adopted) if d != "wait"] == [
        *("failure", "delete", "create", "install", "run", "done")
    ]


def test_watch_gives_back_what_does_not_answer_for_long(cloud, popen, adopted):
    book_again(adopted)
    (adopted / "status").write_text("0")
    cloud.set(refuse_ssh=[0, 1])
    before = len(cloud.calls)
    watch = popen("watch", "pod", "--poll", "0.01")
    until(lambda: len(cloud.calls) - before > 3 * 12)  # it may be our own network: nothing happens
    assert not any("delete" in call for call in cloud.calls)
    cloud.set(refuse_ssh=[1])
    until(lambda: any("delete" in call for call in cloud.calls))
    cloud.set(refuse_ssh=[])
    printed = watch.communicate(timeout=DEADLINE)[0]
    assert watch.returncode == 0 and "pod worker 1: unreachable: ssh: connect to" in printed


def test_watch_asks_again_where_there_was_no_quota(cloud, popen, adopted):
    book_again(adopted)
    (adopted / "status").write_text("0")
    cloud.set(states={}, refuse_create="RESOURCE_EXHAUSTED: Quota limit has been exceeded")
    watch = popen("watch", "pod", "--poll", "0.1", "--attempts", "100")
    until(lambda: sum("create" in call for call in cloud.calls) > 1)
    cloud.set(refuse_create="")
    printed = watch.communicate(timeout=DEADLINE)[0]
    assert watch.returncode == 0 and "Quota limit has been exceeded" in printed
