"""A sweep: the experiments of a file, each trained once, and the table of their losses.

    WORKDIR/HASH/         the workdir of the experiment with that hash, as of llama-jax train
    WORKDIR/HASH/*.lease  who trains it now, see run/lease.py
    WORKDIR/HASH/finished.json, failed.json, log.txt
    WORKDIR/results.csv   a row for each evaluation of each finished experiment, with a column for
                          each field that is not the same in all experiments

Every process that shares a sweep finds all it has to know in these files.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

from etils import epath

from llama_jax.config import Experiment, UserError
from llama_jax.data import store
from llama_jax.experiment import check_types, identity, validate
from llama_jax.flops import model_flops_per_token, num_params
from llama_jax.loading import called, execute, override, with_vocabulary
from llama_jax.plain_file import plain
from llama_jax.run.curves_figure import varied
from llama_jax.run.lease import held, leases, living
from llama_jax.run.metrics import read_metrics
from llama_jax.run.workdir import failed_file, finished_file, metrics_file, write_whole
from llama_jax.sweeps import worker

POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One experiment of a sweep."""

    name: str
    experiment: Experiment
    directory: epath.Path  # its name is run_digest's beginning

    @property
    def params(self) -> int:
        return num_params(self.experiment.model)

    @property
    def params_without_embeddings(self) -> int:
        model = self.experiment.model
        tables = 1 if model.tie_embeddings else 2
        return self.params - tables * model.vocab_size * model.embed_dim

    @property
    def tokens(self) -> int:
        data = self.experiment.data
        return self.experiment.run.num_steps * data.batch_size * data.seq_len

    @property
    def flops(self) -> int:
        """Return 6ND, with embeddings."""
        return 6 * self.params * self.tokens

    @property
    def full_flops(self) -> int:
        """Return the full count: attention, and of the embeddings only what is multiplied."""
        data = self.experiment.data
        return model_flops_per_token(self.experiment.model, data.seq_len) * self.tokens


@dataclasses.dataclass(frozen=True)
class State:
    """What is known of a run. status: waiting, running, unfinished (nobody works on it), failed or
    finished."""

    status: str
    step: int = 0
    loss: float | None = None  # the newest held-out one, or else the newest of training
    tokens_per_second: float | None = None
    note: str = ""  # who runs it, or why it failed


def load(path: str, overrides: Sequence[str], workdir: epath.Path) -> list[Run]:
    """Return the validated experiments that get_sweep() of the file at `path` returns, by name.

    overrides: "section.field=value" strings, for every one. Raise UserError for what is no sweep.
    """
    module = execute(path)
    if not hasattr(module, "get_sweep"):
        raise UserError(
            f"{path}: no get_sweep(), which returns a dict of Experiments, as in "
            "experiments/sweeps/cpu_isoflop.py; one experiment is for llama-jax train"
        )
    found = called(path, module.get_sweep)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: get_sweep() must return a dict of Experiments")
    runs: dict[str, Run] = {}
    for name, experiment in found.items():
        if not isinstance(experiment, Experiment):
            raise UserError(f"{path}: {name!r} is a {type(experiment).__name__}, not an Experiment")
        if not isinstance(name, str):
            raise UserError(f"{path}: the name of a run is {name!r}, expected a str")
        try:
            check_types(experiment)
            for text in overrides:
                experiment = override(experiment, text)
            experiment = with_vocabulary(experiment)
            validate(experiment)
        except UserError as e:
            raise UserError(f"{path}: {name}: {e}") from e
        digest = run_digest(experiment)[:12]
        if digest in runs:
            raise UserError(f"{path}: {name} and {runs[digest].name} are the same")
        runs[digest] = Run(name, experiment, workdir / digest)
    return list(runs.values())


def run_digest(experiment: Experiment) -> str:
    """Return the SHA-256, in hex, that tells a sweep's runs apart. Corpus and tokenizer count by
    their names: before they are there, there is no digest of them, and a sweep may try several.
    """
    data = experiment.data
    parts = [identity(experiment), data.corpus, data.sources, data.held_out, data.tokenizer]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def finished(run: Run) -> bool:
    return finished_file(run.directory).exists()


def failed(run: Run) -> bool:
    return failed_file(run.directory).exists()


def state(run: Run) -> State:
    """Return what a run's directory says of it."""
    rows, known = [], State("finished")
    try:
        rows = _metrics(run)
    except UserError as e:
        known = State("finished", note=str(e))
    training = [row for row in rows if "loss" in row]
    held_out = [row["validation_loss"] for row in rows if "validation_loss" in row]
    if training:
        known = State(
            "finished",
            step=rows[-1]["step"],
            loss=held_out[-1] if held_out else training[-1]["loss"],
            tokens_per_second=statistics.median(row["tokens_per_second"] for row in training),
        )
    if finished(run):
        return known
    holders = living(leases(run.directory), time.time())
    if holders:
        owner = f"{holders[0].host}_{holders[0].pid}"
        return dataclasses.replace(known, status="running", note=owner)
    if failed(run):
        return dataclasses.replace(known, status="failed", note=_reason(run))
    return dataclasses.replace(known, status="unfinished" if rows else "waiting")


def _metrics(run: Run) -> list[dict]:
    return read_metrics(run.directory) if metrics_file(run.directory).exists() else []


def _reason(run: Run) -> str:
    try:
        return str(_record(failed_file(run.directory), ("reason",))["reason"])
    except UserError as e:
        return str(e)


def _record(path: epath.Path, names: Sequence[str]) -> dict:
    """Read finished.json or failed.json. Raise UserError if it does not hold what `names` say."""
    try:
        record = json.loads(plain(path).read_bytes())
        if isinstance(record, dict) and record.keys() >= set(names):
            return record
        problem = f"expected a JSON object with {', '.join(names)}"
    except (OSError, ValueError, RecursionError) as e:
        problem = str(e)
    raise UserError(f"{path} is damaged: {problem}")


# The work


def work(
    runs: list[Run],
    workdir: epath.Path,
    shard: tuple[int, int],
    expiry: float,
    on_progress: Callable[[Run | None], None],
) -> None:
    """Train all that is neither finished nor failed, one at a time; wait for what others train.

    shard: (i, n) begins with every nth run from the ith, so that machines rarely want the same.
    expiry: of leases, in seconds. on_progress: called about once a second with the run in hand, if
    any.
    """
    _prepare(runs, workdir, expiry, on_progress)
    write_results(runs, workdir)
    i, n = shard
    order = runs[i::n] + [run for k, run in enumerate(runs) if k % n != i]
    while left := [run for run in order if not finished(run) and not failed(run)]:
        if not any(_train(run, runs, workdir, expiry, on_progress) for run in left):
            _wait(on_progress)


def retry(runs: list[Run]) -> None:
    """Forget what failed."""
    for run in runs:
        failed_file(run.directory).unlink(missing_ok=True)


def _prepare(runs: list[Run], workdir: epath.Path, expiry: float, on_progress) -> None:
    """Make the token stores that are missing. Raise UserError if one cannot be made."""
    for run in runs:
        while not store.exists(run.experiment.data):
            leased = time.monotonic()
            with held(workdir / "cache", expiry) as lease:
                if lease is not None and not store.exists(run.experiment.data):
                    wait = functools.partial(on_progress, None)
                    reason = worker.run(run.experiment, lease, leased, True, wait)
                    if reason:
                        raise UserError(f"{run.name}: no token store: {reason}")
            _wait(on_progress)


def _train(run: Run, runs: list[Run], workdir: epath.Path, expiry: float, on_progress) -> bool:
    """Train a run unless another process does; return whether it was ours to do and came to an
    end."""
    leased = time.monotonic()
    with held(run.directory, expiry) as lease:
        if lease is None or finished(run) or failed(run):
            return False
        wait = functools.partial(on_progress, run)
        reason = worker.run(run.experiment, lease, leased, False, wait)
        if reason is None:
            return False
        if reason:
            write_whole(failed_file(run.directory), json.dumps({"reason": reason}))
    write_results(runs, workdir)
    return True


def _wait(on_progress) -> None:
    """Wait for others, but not in step with them."""
    on_progress(None)
    time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))


# What came of it


def rows(run: Run) -> list[dict]:
    """Return a row for each evaluation of a finished run, by column.

    Raise UserError if its files do not hold them.
    """
    record = _record(finished_file(run.directory), ("date", "git"))
    names = [f"validation_loss/{source}" for source, _ in run.experiment.data.mixture]
    found, rates = [], []
    share = 1 / run.experiment.run.num_steps
    for row in _metrics(run):
        if "tokens_per_second" in row:
            rates.append(row["tokens_per_second"])
        if "validation_loss" not in row:
            continue
        if not rates or not row.keys() >= set(names):
            raise UserError(f"{metrics_file(run.directory)}: an evaluation lacks figures")
        by_source = {name.removeprefix("validation_"): row[name] for name in names}
        done = row["step"] * share
        found.append(
            {
                "run": run.name,
                "config": run.directory.name,
                "step": row["step"],
                "N": run.params,
                "N_without_embeddings": run.params_without_embeddings,
                "D": row["tokens"],
                "C": round(run.flops * done),
                "C_full": round(run.full_flops * done),
                "loss": row["validation_loss"],
                **by_source,
                "tokens_per_second": round(statistics.median(rates), 1),
                "date": record["date"],
                "git": record["git"],
            }
        )
    if not found or found[-1]["step"] != run.experiment.run.num_steps:
        raise UserError(f"{metrics_file(run.directory)}: has no evaluation at the end of the run")
    return found


def unreadable(runs: list[Run]) -> list[str]:
    """Return which finished runs results.csv lacks, and why: a line for each."""
    found = []
    for run in filter(finished, runs):
        try:
            rows(run)
        except UserError as e:
            found.append(f"{run.name}: {e}; delete {run.directory} and it is trained again")
    return found


def write_results(runs: list[Run], workdir: epath.Path) -> None:
    """Write results.csv, of all that is finished but for what `unreadable` names."""
    written = None
    swept = dict(zip(runs, varied([run.experiment for run in runs]), strict=True))
    # Another process may finish a run, and write, between our reading and our writing.
    while written != (done := [run for run in runs if finished(run)]):
        table = []
        for run in done:
            with contextlib.suppress(UserError):
                table += [row | swept[run] for row in rows(run)]
        columns = list(dict.fromkeys(name for row in table for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_whole(workdir / "results.csv", text.getvalue())
        written = done
