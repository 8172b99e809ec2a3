"""A search for placements of an experiment: ranked by arithmetic, the best of them compiled."""

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from llama_jax.config import Experiment, MeshConfig, UserError
from llama_jax.hardware import CHIPS, GIB, SHAPES_2D, SHAPES_3D, Slice, parse_slice
from llama_jax.layout import with_execution
from llama_jax.loading import UnnamedSlice, override, read
from llama_jax.plan.analytic import estimate_analytically, host_holds
from llama_jax.plan.compile import CompileResult, compile_step
from llama_jax.plan.placements import MIN_SPARE, ROUGH, placements
from llama_jax.plan.plan import Plan, make_plan
from llama_jax.plan.text import brief
from llama_jax.progress import Progress

MAX_DAYS = 90  # that a run may take on a slice that nobody named
SEARCHED_CHIPS = ("v4", "v5e", "v5p", "v6e")
CUBES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16))
SPLASH_HEAD_DIM = 128
COMPILER_BYTES = 3 * GIB  # that one compiler may need: 1.6 GiB for 7B


@dataclasses.dataclass
class _Queue:
    """Placements to compile for one slice, and what compiling has taught."""

    target: Slice
    waiting: list[Experiment]  # the fastest by arithmetic first
    left: int  # to compile at the most
    correction: float = 1.0  # peak bytes by the compiler / by arithmetic, in its latest result

    def pop(self) -> Experiment | None:
        limit = (1 - MIN_SPARE) * self.target.chip.hbm_bytes
        while self.left and self.waiting:
            experiment = self.waiting.pop(0)
            peak = estimate_analytically(experiment, self.target).peak_bytes
            if peak * self.correction < limit * ROUGH:
                self.left -= 1
                return experiment
        return None

    def learn(self, experiment: Experiment, plan: Plan) -> None:
        if plan.hbm_peak_bytes:
            rough = estimate_analytically(experiment, self.target)
            self.correction = plan.hbm_peak_bytes / rough.peak_bytes


def search(
    path: str,
    overrides: Sequence[str],
    names: Sequence[str],
    *,
    price: float | None,
    max_compiles: int,
    jobs: int | None,
) -> list[tuple[Plan, Experiment]]:
    """Return the placements that fit with HBM to spare, of these the Pareto front over step time,
    cost and chips; the cheapest first. What --set fixes stays as it is.

    max_compiles: on each slice. Raise UserError if none fits.
    """
    wanted = [parse_slice(text) for text in names] or _default_slices(path, overrides)
    queues = []
    for target in wanted:
        if not target.chip.dimensions:
            raise UserError(f"--search: {target.name}: programs are compiled for TPUs only")
        experiment = _for_tpu(_read_for_any(path, overrides, target))
        queues.append(_Queue(target, _promising(experiment, overrides, target), max_compiles))
    if not any(queue.waiting for queue in queues):
        raise UserError(
            f"--search: by arithmetic nothing fits {', '.join(target.name for target in wanted)} "
            "within what --set fixes; name a larger slice, or fix less"
        )
    found = _compile_all(Path(path).stem, queues, price, jobs or _default_jobs())
    if not found:
        raise UserError(
            f"--search: nothing compiled leaves {MIN_SPARE:.0%} of HBM to spare on "
            f"{', '.join(target.name for target in wanted)}; try a larger slice or more --compiles"
        )
    return _pareto(found)


def _compile_all(
    name: str, queues: list[_Queue], price: float | None, jobs: int
) -> list[tuple[Plan, Experiment]]:
    """Return the plans with HBM to spare of what the queues hold, compiling for each slice in
    turn."""
    total = sum(min(queue.left, len(queue.waiting)) for queue in queues)
    progress = Progress(total, 0)
    progress.note(
        f"compiling at most {total} programs, {jobs} at a time, for "
        f"{', '.join(queue.target.name for queue in queues)}"
    )
    found, running, turns = [], {}, itertools.cycle(queues)
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        for done in itertools.count(1):
            for queue in itertools.islice(turns, len(queues) * jobs):
                if len(running) < jobs and (experiment := queue.pop()):
                    task = pool.submit(_compile_or_refuse, experiment, queue.target)
                    running[task] = queue, experiment
            if not running:
                break
            task = next(concurrent.futures.as_completed(running))
            queue, experiment = running.pop(task)
            result = task.result()
            if isinstance(result, UserError):
                progress.note(str(result))
                continue
            plan = make_plan(name, experiment, queue.target, result, price)
            queue.learn(experiment, plan)
            if plan.spare_share is not None and plan.spare_share >= MIN_SPARE:
                found.append((plan, experiment))
            progress.update(min(done, total), brief(plan))
    finally:
        progress.close()
        pool.shutdown(wait=False, cancel_futures=True)  # a signal ends us before the compiler
    return found


def _compile_or_refuse(experiment: Experiment, target: Slice) -> CompileResult | UserError:
    """Return the refusal of a placement that cannot be compiled: it does not end a search."""
    try:
        return compile_step(experiment, target)
    except UserError as e:
        return e


def _for_tpu(experiment: Experiment) -> Experiment:
    """Return the experiment with the attention kernel of TPUs, if its heads are as wide as that
    needs."""
    if experiment.model.head_dim % SPLASH_HEAD_DIM:
        return experiment
    return with_execution(experiment, attention="splash")


def _read_for_any(path: str, overrides: Sequence[str], target: Slice) -> Experiment:
    """Return the experiment for a slice that its file need not name."""
    try:
        return read(path, overrides, target.name)
    except UnnamedSlice:
        return with_execution(read(path, overrides), slice=target.name)


def _promising(experiment: Experiment, overrides: Sequence[str], target: Slice) -> list[Experiment]:
    """Return placements that may fit, the fastest by arithmetic first. Those are left out that take
    more of both time and memory than another on the same mesh."""
    limit = (1 - MIN_SPARE) * target.chip.hbm_bytes
    by_mesh: dict[MeshConfig, list[tuple[float, float, Experiment]]] = {}
    for e in placements(experiment, target):
        figures = estimate_analytically(e, target)
        fixed = all(override(e, text) == e for text in overrides)
        held = host_holds(figures.offloaded_bytes, target)
        if fixed and held and figures.peak_bytes < limit * ROUGH:
            item = figures.step_seconds, figures.peak_bytes, e
            by_mesh.setdefault(e.execution.mesh, []).append(item)
    front = []
    for items in by_mesh.values():
        least = math.inf
        for seconds, peak, e in sorted(items, key=lambda item: item[:2]):
            if peak < least:
                least = peak
                front.append((seconds, e))
    return [e for _, e in sorted(front, key=lambda item: item[0])]


def _default_slices(path: str, overrides: Sequence[str]) -> list[Slice]:
    """Return, for each chip, the smallest slice on which arithmetic expects the run to end in
    time."""
    found = []
    for name in SEARCHED_CHIPS:
        chip = CHIPS[name]
        shapes = SHAPES_2D if chip.dimensions == 2 else (*SHAPES_3D, *CUBES)
        for shape in sorted(shapes, key=math.prod):
            target = Slice(chip, shape)
            best = _promising(_for_tpu(_read_for_any(path, overrides, target)), overrides, target)
            if not best:
                continue
            seconds = estimate_analytically(best[0], target).step_seconds * best[0].run.num_steps
            if seconds < MAX_DAYS * 86_400:
                found.append(target)
                break
    if not found:
        raise UserError(f"--search: no slice ends it in {MAX_DAYS} days; name one with --slice")
    return found


def _default_jobs() -> int:
    """Return how many compilers the cores and the free memory of this machine allow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        free = COMPILER_BYTES
    return max(1, min(cores or 1, free // COMPILER_BYTES))


def _pareto(found: list[tuple[Plan, Experiment]]) -> list[tuple[Plan, Experiment]]:
    """Return the Pareto front over step time, cost and chips."""

    def price(plan: Plan) -> tuple[float, float, int]:
        most = (plan.cost or plan.chip_hours or (0.0, math.inf))[1]
        return most, plan.step_seconds or math.inf, plan.chips

    kept, seen = [], set()
    for plan, experiment in sorted(found, key=lambda item: price(item[0])):
        mine = price(plan)
        dominated = any(all(a <= b for a, b in zip(price(p), mine, strict=True)) for p, _ in kept)
        if not dominated and mine not in seen:
            kept.append((plan, experiment))
            seen.add(mine)
    return kept
