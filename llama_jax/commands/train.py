"""train: an experiment, from the start or from where it was."""

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llama_jax.commands import options
from llama_jax.config import UserError
from llama_jax.loading import load

if TYPE_CHECKING:
    from llama_jax.guards.pod import Pod


def arguments(parser: argparse.ArgumentParser) -> None:
    options.experiment(parser)
    parser.add_argument(
        "--workdir",
        help="where everything of the run lies (default: runs/NAME of the experiment file)",
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on in a workdir begun with other values"
    )
    parser.add_argument(
        "--slice",
        metavar="SLICE",
        help="take the experiment's mesh, remat and flags for a slice, e.g. v5p:4x4x4 or v5p-128",
    )
    parser.add_argument(
        "--profile",
        type=options.number(int, 1),
        default=0,
        metavar="STEPS",
        help="trace this many early steps into WORKDIR/profile, for TensorBoard",
    )
    options.multihost(parser)


def run(args: argparse.Namespace) -> int:
    began = time.time()
    experiment = load(args.experiment, args.overrides, args.slice)
    workdir = args.workdir or f"runs/{Path(args.experiment).stem}"
    from llama_jax.data.cache import ensure
    from llama_jax.guards.roll_call import Incomplete
    from llama_jax.guards.spikes import Diverged
    from llama_jax.guards.stop import Stopped
    from llama_jax.place import place
    from llama_jax.run.lease import one_at_a_time
    from llama_jax.run.workdir import steps
    from llama_jax.train import check
    from llama_jax.train import train as run_training

    load_init = None
    if experiment.init:
        from llama_jax.opened import initial_params as load_init
    directory, claim = place(workdir, "workdir"), one_at_a_time
    try:
        with _joined(args.multihost) as pod:
            if pod and pod.index > 0:
                claim = contextlib.nullcontext  # the first process claims it for all
            with claim(directory):
                if pod is None:  # what can be refused is, before minutes of tokenizing
                    check(experiment, directory, args.accept_changes)
                    if status := ensure(experiment.data):
                        return status
                run_training(
                    *(experiment, directory, args.accept_changes, args.profile),
                    load_init=load_init,
                    pod=pod,
                    began=began,
                )
    except (Diverged, Incomplete, Stopped) as e:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            print(f"llama-jax train: {e}", file=sys.stderr)
        return e.status
    except OSError as e:  # a disk that is full, a workdir that is gone
        newest = f"the newest whole checkpoint: {(['none'] + steps(directory))[-1]}"
        if e.errno is None:
            raise OSError(f"{e}; {newest}") from e
        raise OSError(e.errno, f"{e.strerror or e}; {newest}", e.filename) from e
    return 0


def _joined(job: str | None) -> contextlib.AbstractContextManager["Pod | None"]:
    """Join the other processes of a job, if there are any, once all are there."""
    if job is None:
        return contextlib.nullcontext()
    import jax

    from llama_jax.guards import job as jobs
    from llama_jax.guards.pod import Pod
    from llama_jax.guards.roll_call import roll_call

    found = jobs.find(job)
    lines = roll_call(found.address, found.processes, found.index)
    try:
        jax.distributed.initialize(*dataclasses.astuple(found))
    except (ValueError, RuntimeError) as e:
        raise UserError(f"--multihost: JAX could not join {job!r}: {e}") from e
    return Pod(found.index, lines)
