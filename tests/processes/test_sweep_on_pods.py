"""A sweep on two pods of one host each: every run is trained once, whatever is killed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from etils import epath

from helpers.fake_gcloud import Cloud
from helpers.hosts import Host, hosts
from helpers.processes import environment
from llama_jax.run.metrics import read_metrics
from llama_jax.sweeps import sweep

DEADLINE = 240.0
PLACE = ("--zone", "us-x1-a", "--project", "p")
SIZES = (16, 24, 32)


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[list[Host]]:
    with hosts(2) as found:
        yield found


@pytest.fixture
def llama_jax(two_hosts, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Start llama-jax where gcloud knows the pods `a` and `b`."""
    (tmp_path / "cloud").mkdir()
    cloud = Cloud(tmp_path / "cloud", two_hosts)
    cloud.set(nodes={"a": [0], "b": [1]}, states={"a": ["READY"], "b": ["READY"]})
    path = f"{cloud.path}{os.pathsep}{os.environ['PATH']}"

    def start(*args) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "llama_jax", *map(str, args)],
            env=environment() | {"PATH": path, "XDG_CONFIG_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_each_pod_takes_the_next_run(llama_jax, make_file, experiment_file, tmp_path):
    def done(*args, status: int = 0) -> str:
        process = llama_jax(*args)
        printed = process.communicate(timeout=DEADLINE)[0]
        assert process.returncode == status, printed
        return printed

    for name in ("a", "b"):
        done("pod", "adopt", name, experiment_file, *PLACE, "--workdir", tmp_path / "none")
        done("pod", "install", name, "--python", sys.executable)
    file, workdir = make_file(*((size, 8, 512) for size in SIZES)), tmp_path / "sweep"
    runs = sweep.load(str(file), [], epath.Path(workdir))
    command = ("sweep", file, "--workdir", workdir, "--pods", "a,b", "--poll", "1")

    first = llama_jax(*command)
    while sum(run.directory.exists() for run in runs) < 2:  # each pod has one
        assert first.poll() is None
    assert "is watched by process" in done("pod", "stop", "a", status=2)
    first.kill()
    first.communicate()
    printed = done(*command)
    assert "wrote" in printed and sweep.unreadable(runs) == []
    for run in runs:
        assert sweep.finished(run)
        steps = [row["step"] for row in read_metrics(run.directory) if "loss" in row]
        assert steps == list(range(1, 9))
