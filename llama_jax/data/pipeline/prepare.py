"""A source's dumps -> CORPUS/SOURCE: planned from the input alone, run in stages, whole or not."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_jax.config import UserError
from llama_jax.data.pipeline import blocks, comparisons, contamination
from llama_jax.data.pipeline.stage import Stage
from llama_jax.data.sources.source import Comparison, Rule, Source, WithModels
from llama_jax.plain_file import plain


@dataclasses.dataclass(frozen=True)
class Plan:
    """What makes CORPUS/SOURCE, and where it is made before it is there."""

    source: Source
    files: list[tuple[Path, str, int]]  # path, its name in the report, bytes; by name
    left_out: int  # files of the inputs that are of another kind
    steps: list[tuple[str, Rule | Comparison]]  # by the names that the report has for them
    models: dict[str, str]  # file: SHA-256; evaluation sets, too
    against: tuple[Path, ...]  # evaluation sets
    task_bytes: int  # of the files of a task; a larger file is a task of its own
    final: Path

    @property
    def work(self) -> Path:
        return self.final.with_name(f"{self.final.name}.unfinished")

    @property
    def groups(self) -> list[list[tuple[str, str]]]:
        """Return the files of each task."""
        if self.source.keeps_files:
            return [[(str(path), name)] for path, name, _ in self.files]
        groups, room = [], 0
        for path, name, size in self.files:
            if not groups or size > room:
                groups.append([])
                room = self.task_bytes
            groups[-1].append((str(path), name))
            room -= size
        return groups

    def request(self) -> dict[str, Any]:
        """Return what the documents depend on."""
        return {
            "source": self.source.name,
            "files": [[name, size] for _, name, size in self.files],
            "steps": [
                repr(step) if isinstance(step, Comparison) else name for name, step in self.steps
            ],
            "against": [path.name for path in self.against],
            "models": self.models,
            "task_bytes": self.task_bytes,
        }


def plan(
    source: Source,
    inputs: Sequence[Path],
    corpus: Path,
    models: Path | None,
    without: set[str],
    task_bytes: int,
    against: Sequence[Path] = (),
) -> Plan:
    """Return the plan of a source's documents. against: evaluation sets.

    Raises UserError for input that is missing or of another kind, and for a model that is missing.
    """
    files, left_out = _files(source, inputs)
    if source.keeps_files:
        _check_places([path for path, _, _ in files])
    steps, used = _steps(source, models, without)
    sets = tuple(Path(os.path.abspath(path)) for path in against)
    for path in sets:
        if not plain(path).is_file():
            raise UserError(f"--against: {path} is not there, or no file")
    sums = {path.name: _sha256(path) for path in (*used, *sets)}
    final = Path(os.path.abspath(corpus))  # for workers that begin elsewhere
    if not source.keeps_files:
        final /= source.name
    return Plan(source, files, left_out, steps, sums, sets, task_bytes, final)


def _files(source: Source, inputs: Sequence[Path]) -> tuple[list[tuple[Path, str, int]], int]:
    found, left_out = {}, 0
    kinds = ", ".join(source.accepts)
    for given in inputs:
        if not plain(given).exists():
            raise UserError(f"--input: {given} is not there")
        base = Path(os.path.abspath(given))  # a link keeps its name, and so its ending
        for path in sorted(base.rglob("*")) if base.is_dir() else [base]:
            if not path.is_file():
                continue
            if not path.name.endswith(source.accepts):
                if path == base:
                    raise UserError(f"--input: {given} is no file of {source.name}, a {kinds}")
                left_out += 1
                continue
            name = path.relative_to(base.parent).as_posix()
            if found.get(name, path) != path:
                raise UserError(f"--input: {path} and {found[name]} go by the same name; move one")
            found[name] = path
    if not found:
        given = ", ".join(map(str, inputs))
        raise UserError(f"--input: no file of {source.name}, a {kinds}, in {given}")
    return [(path, name, path.stat().st_size) for name, path in sorted(found.items())], left_out


def _place(path: Path) -> str:
    """Return where a file is beneath the corpus, if files are kept: SOURCE/FILE."""
    return f"{path.parent.name}/{path.name}"


def _check_places(paths: list[Path]) -> None:
    places: dict[str, Path] = {}
    for path in paths:
        if (other := places.setdefault(_place(path), path)) != path:
            raise UserError(f"--input: {other} and {path} would be one file; rename one")


def _steps(
    source: Source, models: Path | None, without: set[str]
) -> tuple[list[tuple[str, Rule | Comparison]], list[Path]]:
    """Return the steps that are not left out, and the models that they need."""
    names = [_name(step) for step in source.steps]
    if unknown := sorted(without - {*names}):
        raise UserError(
            f"--without: {source.name} has no rule {unknown[0]!r}; it has {', '.join(names)}"
        )
    steps, used = [], []
    for name, step in zip(names, source.steps, strict=True):
        if name in without:
            continue
        if isinstance(step, WithModels):
            paths = _models(source, step, models)
            step, used = step.rule(*paths), used + paths
        steps.append((name, step))
    return steps, used


def _models(source: Source, step: WithModels, folder: Path | None) -> list[Path]:
    leave_out = f'or leave the rule out with --without "{step.name}"'
    if folder is None:
        raise UserError(
            f"--models: {step.name!r} of {source.name} needs {', '.join(step.files)}; name their "
            f"directory, {leave_out}"
        )
    paths = [folder.resolve() / file for file in step.files]
    for path in paths:
        if not plain(path).is_file():
            raise UserError(
                f"--models: {path} is not there, which {step.name!r} of {source.name} needs; see "
                f"docs/data.md, {leave_out}"
            )
    optional = (folder.resolve() / file for file in step.optional)
    return [*paths, *(path for path in optional if plain(path).is_file())]


def _name(step: Rule | WithModels | Comparison) -> str:
    """Return what the report calls a step: a function by its name."""
    if isinstance(step, WithModels | Comparison):
        return step.name
    return step.__name__.replace("_", " ")  # pyright: ignore[reportFunctionMemberAccess]


def stages(plan: Plan) -> list[Stage]:
    """Return the stages that make the plan's documents, in their order."""
    groups, made = plan.groups, []
    pipeline: list = [blocks.Read(plan.source, groups, plan.work / "tallies/read")]
    for number, (name, step) in enumerate(plan.steps):
        tallies = plan.work / "tallies" / str(number)
        if not isinstance(step, Comparison):
            pipeline.append(blocks.Tallied(blocks.Apply(name, step), tallies))
            continue
        folder = plan.work / f"{number}-{name.replace(' ', '-')}"
        num_bytes = sum(size for _, _, size in plan.files)
        note, compared, leave_out = comparisons.compare(step, folder, num_bytes)
        pipeline += [blocks.Write(plan.source, folder / "documents"), note]
        made += [Stage(f"{folder.name}-note", pipeline, len(groups)), *compared]
        pipeline = [
            blocks.ReadDocuments(folder / "documents"),
            blocks.Tallied(leave_out, tallies),
        ]
    if plan.against:
        leave_out = contamination.LeaveContaminatedOut(plan.against, plan.work / "hits")
        pipeline.append(blocks.Tallied(leave_out, plan.work / "tallies" / str(len(plan.steps))))
    pipeline.append(blocks.Write(plan.source, plan.work / "finished"))
    return [*made, Stage("documents", pipeline, len(groups))]


@contextlib.contextmanager
def working(plan: Plan) -> Iterator[None]:
    """Hold the plan's work directory. Raises UserError if another process has it, or if what is
    half done there, or done, is of another request."""
    times = [path.stat().st_mtime_ns for path, _, _ in plan.files]
    request = json.dumps(plan.request() | {"modified": times}, indent=1)
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot write to {plan.final.parent}: {e.strerror}") from e
    with open(plan.work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"--output: another `prepare` is writing {plan.final}") from e
        known = plan.work / "request.json"
        if not known.exists():
            part = known.with_suffix(".part")
            part.write_text(request)
            part.replace(known)
        elif known.read_text() != request:
            raise UserError(
                f"--output: {plan.work} was begun from other files, rules or models; delete it, or "
                "name another directory"
            )
        yield


def is_there(plan: Plan) -> bool:
    """Return whether CORPUS/SOURCE is there. Raises UserError if it was made otherwise."""
    if not plan.final.exists():
        return False
    try:
        made = json.loads((plan.final / "report.json").read_text())["request"]
    except (OSError, ValueError, KeyError):
        made = None
    if made != json.loads(json.dumps(plan.request())):
        raise UserError(
            f"--output: {plan.final} is there, made from other files, rules or models; move it "
            "away, or name another directory"
        )
    shutil.rmtree(plan.work, ignore_errors=True)  # left by one that was killed at its very end
    return True


def write_reports(plan: Plan, report: str, page: str) -> None:
    """Put the report beside the finished documents."""
    (plan.work / "finished/report.json").write_text(report + "\n")
    (plan.work / "finished/report.html").write_text(page)
    if plan.against:
        contamination.join(plan.work / "hits", plan.work / "finished/hits.jsonl")


def finish(plan: Plan) -> None:
    """Move the finished documents to where they belong, all at once, and clear the rest away."""
    if plan.source.keeps_files:
        for rank, [(path, _)] in enumerate(plan.groups):
            place = plan.work / "finished" / _place(Path(path))
            place.parent.mkdir(exist_ok=True)
            made = blocks.document_file(plan.work / "finished", rank)
            if made.exists():  # or one that was killed here has moved it
                os.replace(made, place)
    os.replace(plan.work / "finished", plan.final)
    shutil.rmtree(plan.work)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
