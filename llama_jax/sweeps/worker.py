"""One run of a sweep, in a process of its own: python -m llama_jax.sweeps.worker PARENT < request.

It renews its parent's lease on the directory, and so ends when it loses that, or its parent.
"""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from etils import epath

from llama_jax.config import Experiment, UserError
from llama_jax.experiment import from_json, to_json
from llama_jax.process import Terminated, child_command, end_with_parent
from llama_jax.run.lease import Lease, hold, parse
from llama_jax.run.workdir import finished_file, log_file, write_whole

SECONDS_BETWEEN = 1.0
LOST = 75  # the exit status of one that lost its lease; sysexits.h: try again later


def run(
    experiment: Experiment,
    lease: Lease,
    leased: float,
    to_prepare: bool,
    wait: Callable[[], None],
) -> str | None:
    """Train in the lease's directory, or write the experiment's token store. Return why that
    failed, empty if it did not, None if the lease was lost. What it printed goes to log.txt there.

    leased: time.monotonic() before the lease was written. wait: called every SECONDS_BETWEEN.
    """
    request = {
        "experiment": to_json(experiment),
        "lease": str(lease.path),
        "leased": leased,
        "to_prepare": to_prepare,
    }
    command = child_command("llama_jax.sweeps.worker")
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        json.dump(request, stdin)
        stdin.seek(0)
        child = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                wait()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(SECONDS_BETWEEN)
        except Terminated as e:
            child.send_signal(e.signal)  # and it saves
            child.wait()
            raise
        finally:
            child.kill()
            child.wait()
            log.seek(0)
            printed = log.read()
            write_whole(log_file(lease.path.parent), printed)
    if child.returncode == LOST:
        return None
    if child.returncode < 0:
        return f"ended by {signal.Signals(-child.returncode).name}"
    lines = printed.strip().splitlines() or [f"exit status {child.returncode}"]
    return lines[-1] if child.returncode else ""


def main() -> None:
    """Do what the request on stdin says, in this process, which ends with its parent."""
    parent = int(sys.argv[1])
    end_with_parent(parent)
    request = json.load(sys.stdin)
    experiment = from_json(request["experiment"])
    lease = parse(epath.Path(request["lease"]))
    assert lease

    def keep() -> None:
        print(hold(lease, request["leased"], parent), file=sys.stderr, flush=True)
        os._exit(LOST)

    threading.Thread(target=keep, daemon=True).start()
    if request["to_prepare"]:
        from llama_jax.data.cache import cache

        cache(experiment.data, num_workers=1)
        return
    from llama_jax.guards.stop import Stopped
    from llama_jax.train import train

    directory = lease.path.parent
    began = time.monotonic()
    load_init = None
    if experiment.init:
        from llama_jax.opened import initial_params as load_init
    try:
        train(experiment, directory, accept_changes=False, load_init=load_init)
    except Stopped as e:
        print(e, file=sys.stderr)
        sys.exit(e.status)
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": revision(),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_whole(finished_file(directory), json.dumps(record))


def revision() -> str:
    """Return the commit of the checkout that this code is from, with + if it was changed since;
    empty if there is none."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as e:
        sys.exit(str(e))  # without the traceback: the last line becomes the reason
