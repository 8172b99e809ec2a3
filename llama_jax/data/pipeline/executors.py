"""Stages run by datatrove's executors: on this machine, by Slurm or by Ray.

A task that is done has an empty file in completions/, and is not done again.
"""

# pyright: reportMissingImports=false

import concurrent.futures
import functools
import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dill
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from llama_jax.config import UserError
from llama_jax.data.pipeline.stage import Stage
from llama_jax.process import Terminated, end_with_parent
from llama_jax.progress import Progress


def run_locally(stages: Sequence[Stage], work: Path, num_workers: int) -> None:
    """Run each stage's tasks, so many at a time, in the processes of a pool. Raises what a task
    raises, and UserError if a process was killed."""
    logger.remove()  # each task has a log file
    progress = Progress(sum(stage.num_tasks for stage in stages), 0)
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    done = 0
    try:
        for stage in stages:
            folder = work / "stages" / stage.name
            executor = LocalPipelineExecutor(
                stage.blocks, tasks=stage.num_tasks, logging_dir=str(folder)
            )
            ranks = executor.get_incomplete_ranks()
            done += stage.num_tasks - len(ranks)
            if ranks:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "executor.pik").write_bytes(dill.dumps(executor))
            tasks = [pool.submit(_run, folder / "executor.pik", rank) for rank in ranks]
            for future in concurrent.futures.as_completed(tasks):
                future.result()
                done += 1
                progress.update(done, f"tasks  {stage.name}")
    except concurrent.futures.BrokenExecutor as e:
        raise UserError(
            f"prepare: one of the {num_workers} workers was killed, perhaps for lack of memory; "
            "finished tasks are kept: run it again with fewer workers"
        ) from e
    except (KeyboardInterrupt, Terminated):
        for worker in multiprocessing.active_children():  # or the end would wait for their tasks
            worker.kill()
        raise
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    end_with_parent(parent)
    # What datatrove says is in the log files, too; KenLM and fastText tell of each load.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _run(executor: Path, rank: int) -> None:
    dill.loads(_content(executor))._run_for_rank(rank)  # its blocks count: each task has its own


@functools.lru_cache(1)
def _content(path: Path) -> bytes:
    return path.read_bytes()


def submit_to_slurm(
    stages: Sequence[Stage], work: Path, num_workers: int, options: dict[str, str]
) -> list[str]:
    """Submit an array of jobs for each stage that is not done; return their ids.

    options: of sbatch, "partition" and "time" among them. Raises UserError if jobs that were
    submitted before still run, and where there is no Slurm.
    """
    logger.remove()
    if shutil.which("sbatch") is None:
        raise UserError(
            "--executor: Slurm's sbatch is not on the PATH; run it where jobs are submitted"
        )
    submitted = work / "slurm.json"
    if submitted.exists() and (running := _still_there(json.loads(submitted.read_text()))):
        raise UserError(
            f"--executor: jobs {' '.join(running)} of Slurm are still at it; wait for them, or end "
            "them with scancel"
        )
    before, ids = None, []
    for stage in stages:
        executor = SlurmPipelineExecutor(
            stage.blocks,
            tasks=stage.num_tasks,
            workers=num_workers,
            job_name=f"prepare-{stage.name}",
            partition=options["partition"],
            time=options["time"],
            qos=options.get("qos", ""),
            sbatch_args={k: v for k, v in options.items() if k not in ("partition", "time", "qos")},
            env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            logging_dir=str(work / "stages" / stage.name),
            depends=before,
        )
        executor.run()
        if executor.job_id != -1:  # not done already
            before = executor
            ids.append(str(executor.job_id))
            submitted.write_text(json.dumps(ids))
    return ids


def _still_there(ids: list[str]) -> list[str]:
    """Return those of the jobs that Slurm still has."""
    command = ["squeue", "--noheader", "--format=%A", f"--jobs={','.join(ids)}"]
    known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [job for job in ids if job in known]


def run_with_ray(stages: Sequence[Stage], work: Path, num_workers: int) -> None:
    """Run the stages on the cluster that RAY_ADDRESS names, or on this machine without one.

    Raises UserError if Ray is not there, and for a stage that Ray gave up.
    """
    try:
        import ray
        from datatrove.executor import RayPipelineExecutor
    except ImportError as e:
        raise UserError(f'--executor: Ray is not installed ({e}); run `pip install "ray"`') from e
    logger.remove()
    ray.init(log_to_driver=False)
    for stage in stages:
        folder = work / "stages" / stage.name
        executor = RayPipelineExecutor(
            stage.blocks, tasks=stage.num_tasks, workers=num_workers, logging_dir=str(folder)
        )
        executor.run()
        if ranks := executor.get_incomplete_ranks():
            raise UserError(
                f"--executor: {len(ranks)} of {stage.num_tasks} tasks of {stage.name} failed; see "
                f"{folder}/logs, and give the same command again to go on"
            )
