"""Children: they run our code only, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.processes import environment

MODULES = ("llama_jax.data.cache", "llama_jax.plan.compile", "llama_jax.sweeps.worker")
PARENT = """
import subprocess, sys, time
from llama_jax.process import child_command
child = subprocess.Popen(child_command(sys.argv[1]), stdin=int(sys.argv[2]))
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("module", MODULES)
def test_a_child_imports_nothing_from_the_current_directory(module, tmp_path):
    mark = tmp_path / "mark"
    for name in ("json", "jax", "sentencepiece", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')")
    code = f"import sys; from llama_jax.process import child_command as c; print(*c({module!r}))"
    env = environment()
    command = subprocess.check_output(
        [sys.executable, "-P", "-c", code], env=env, text=True
    ).split()
    command[-1] = str(os.getpid())
    done = subprocess.run(
        command, input="no request", cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "JSONDecodeError" in done.stderr
    assert not mark.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_child_ends_with_a_parent_that_is_killed():
    """Though it waits for a request that would still come."""
    read, write = os.pipe()
    command = [sys.executable, "-c", PARENT, MODULES[0], str(read)]
    parent = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, pass_fds=[read]
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while alive(child):
        time.sleep(0.05)
    os.close(write)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
