"""A sweep on pods: each that is free takes the next run, and keeps it going to its end.

Which run a pod has is remembered with the pod: the same command, given again after it was ended,
finds what went on meanwhile.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from etils import epath

from llama_jax.config import UserError
from llama_jax.data import store
from llama_jax.pods import cloud as gcloud
from llama_jax.pods import launcher, record
from llama_jax.pods.cloud import Cloud
from llama_jax.pods.record import Pod
from llama_jax.pods.watch import ATTEMPTS, GaveUp, Watch, alone
from llama_jax.run.lease import acquire, hold
from llama_jax.run.workdir import failed_file, finished_file, write_whole
from llama_jax.sweeps.sweep import POLL_SECONDS, Run, failed, finished, write_results
from llama_jax.sweeps.worker import revision


def work(
    runs: list[Run],
    workdir: epath.Path,
    pods: list[Pod],
    expiry: float,
    seconds: float,
    on_progress: Callable[[Run | None], None],
) -> list[str]:
    """Train all that is neither finished nor failed. Return which pods dropped out and why, a line
    each.

    expiry: of the claims on runs, in seconds. seconds: between two looks at a pod. on_progress:
    called about once a second. Raise UserError for a token store that is missing.
    """
    for run in runs:
        if not store.exists(run.experiment.data):
            raise UserError(f"{run.name}: no token store yet; llama-jax cache makes it")
    dropped: list[str] = []

    def serve(pod: Pod) -> None:
        try:
            with alone(pod):
                _serve(pod, runs, workdir, expiry, seconds)
        except (OSError, UserError) as e:
            dropped.append(f"{pod.name}: {e}")

    threads = [threading.Thread(target=serve, args=(pod,), daemon=True) for pod in pods]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        on_progress(None)
        time.sleep(POLL_SECONDS)
    write_results(runs, workdir)
    return dropped


def _serve(pod: Pod, runs: list[Run], workdir: epath.Path, expiry: float, seconds: float) -> None:
    """Have a pod train runs until all others are finished, failed or with other pods."""
    while True:
        elsewhere = {other.workdir for other in record.known() if other.name != pod.name}
        left = [run for run in runs if not finished(run) and not failed(run)]
        free = [run for run in left if str(run.directory) not in elsewhere]
        if not free:
            return
        for run in sorted(free, key=lambda run: str(run.directory) != pod.workdir):
            with _claimed(workdir / "claims" / run.directory.name, expiry) as is_ours:
                if is_ours and not finished(run) and not failed(run):
                    pod = _train(pod, run, seconds)
                    break
        else:
            time.sleep(seconds)


@contextlib.contextmanager
def _claimed(directory: epath.Path, expiry: float) -> Iterator[bool]:
    """Hold a lease during a block, unless another process does: then give False."""
    start = time.monotonic()
    lease = acquire(directory, expiry)
    if lease is None:
        yield False
        return
    end = threading.Event()

    def keep() -> None:
        if lost := hold(lease, start, end=end):
            print(f"llama-jax sweep: ended: {lost}", file=sys.stderr, flush=True)
            os._exit(1)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        end.set()
        thread.join()
        lease.release()


def _train(pod: Pod, run: Run, seconds: float) -> Pod:
    """Have a pod train a run to its end, or fail, and write which down. Return the pod, which
    remembers the run."""
    cloud, began = Cloud(dry_run=False), time.monotonic()
    file = record.file(pod.name, ".py")
    file.write_text(
        "from llama_jax.config import *\n\n\n"
        f"def get_experiment():\n    return {run.experiment!r}\n"
    )
    goes_on = pod.workdir == str(run.directory)
    pod = dataclasses.replace(pod, experiment=str(file), overrides=(), workdir=str(run.directory))
    record.write(pod)
    if not goes_on and gcloud.state(cloud, pod) == launcher.GRANTED:
        launcher.install(cloud, pod)  # of which that file is a part
    try:
        Watch(cloud, pod, ATTEMPTS).keep_going(seconds)
    except GaveUp as e:
        write_whole(failed_file(run.directory), json.dumps({"reason": str(e)}))
        return pod
    row = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": revision(),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_whole(finished_file(run.directory), json.dumps(row))
    return pod
