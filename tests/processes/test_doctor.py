"""What is wrong with the hosts of a pod is found, and named on all of them."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.processes import environment, llama_jax, start_pod


@pytest.fixture
def stale(tmp_path) -> str:
    """The directory of another revision of the code."""
    code = shutil.copytree(ROOT / "llama_jax", tmp_path / "stale/llama_jax")
    with open(code / "loss.py", "a") as file:
        file.write("\n# changed\n")
    return str(tmp_path / "stale")


def test_an_absent_and_a_stale_host_are_both_named(stale):
    """Of three processes the third does not come, and the second has other code."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, "-m", "llama_jax", "doctor", "--multihost"]
    hosts = [
        subprocess.Popen(
            [*command, f"{address},3,{index}"],
            env=environment(),
            cwd=stale if index else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    printed = [host.communicate(timeout=60)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [2, 2], printed
    for text in printed:
        assert "of 3 processes, 2 did not come within 25 s" in text
        assert f"{socket.gethostname()} (process 1): code is " in text
        assert "llama-jax pod install" in text and "Traceback" not in text


def test_hosts_that_are_well_say_so(experiment_file, tmp_path):
    pod = start_pod("doctor", experiment_file, "--workdir", tmp_path / "run")
    printed = [process.communicate(timeout=60)[0] for process in pod]
    assert [process.returncode for process in pod] == [0, 0], printed
    assert all("nothing is wrong with 2 hosts" in text for text in printed)
    assert "(process 1)" in printed[0] and not (tmp_path / "run").exists()


def test_one_host_says_what_it_lacks(experiment_file, tmp_path):
    (tmp_path / "file").write_text("")
    found = llama_jax(
        *("doctor", experiment_file, "--workdir", tmp_path / "file"),
        *("--set", f"data.store={tmp_path / 'nowhere'}"),
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith("llama-jax doctor: ")]
    assert any(f"workdir: cannot write to {tmp_path}/file" in line for line in lines)
    assert any(f"{tmp_path}/nowhere" in line for line in lines)


def test_chips_that_another_process_has_are_said(tmp_path):
    """libtpu holds a lock on a file; flock is how it does."""
    lock = "/tmp/libtpu_lockfile"
    if os.path.exists(lock):
        pytest.skip(f"there is a {lock}")
    try:
        with subprocess.Popen(["flock", lock, "cat"], stdin=subprocess.PIPE) as holder:
            while not os.path.exists(lock):
                assert holder.poll() is None
            found = llama_jax("doctor")
            assert holder.stdin is not None
            holder.stdin.close()
        assert found.returncode == 2 and "another process has them" in found.stderr
    finally:
        os.remove(lock)
