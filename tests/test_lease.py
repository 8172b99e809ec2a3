"""Leases: one holder at a time, and none for ever."""

import os
import random
import threading
import time

from etils import epath

from llama_jax.sweeps import lease

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
