"""Leases: one holder at a time, and none for ever."""

import os
import random
import socket
import subprocess
import threading
import time

import pytest
from etils import epath

from helpers.paths import EXPERIMENTS
from llama_jax.run import lease

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


def test_a_second_process_on_a_workdir_is_refused(cli, tmp_path):
    """With the first one's host and pid, unless that was killed."""
    with lease.one_at_a_time(epath.Path(tmp_path)):
        done = cli("train", EXPERIMENTS / "quickstart.py", "--workdir", tmp_path)
        assert done.returncode == 2
        who = f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since 20"
        assert f"llama-jax train: workdir: {who}" in done.stderr
    assert not list(tmp_path.iterdir())
    child = subprocess.Popen(["true"])
    child.wait()
    orphan = tmp_path / f"{socket.gethostname()}_{child.pid}_0123abcd_60.lease"
    orphan.write_text("")
    with lease.one_at_a_time(epath.Path(tmp_path)):
        assert not orphan.exists()


@pytest.mark.parametrize(
    ("name", "ahead"),
    [
        ("x.lease", 0),
        (".lease", 0),
        ("host_1_ab_inf.lease", 0),
        ("host_1_ab_nan.lease", 0),
        ("host_1_ab_\udcff.lease", 0),
        ("host_1_0123abcd_10.lease", 3600),
    ],
)
def test_a_file_that_no_holder_renews_is_no_lease(tmp_path, name, ahead):
    file = tmp_path / name
    file.write_bytes(b"\xff")
    when = time.time() + (ahead or -2)
    os.utime(file, (when, when))
    mine = lease.acquire(epath.Path(tmp_path), 10)
    assert mine is not None and lease.leases(epath.Path(tmp_path)) == [mine]
