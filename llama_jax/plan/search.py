"""Placements of an experiment: those that could be, ranked by arithmetic and then compiled."""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_jax.config import REMAT_POLICIES, Experiment, MeshConfig, UserError
from llama_jax.experiment import UnnamedSlice, changes, override, read, validate
from llama_jax.hardware import CHIPS, GIB, SHAPES_2D, SHAPES_3D, Slice, parse_slice
from llama_jax.plan.analytic import estimate_analytically, host_holds
from llama_jax.plan.compile import CompileResult, compile_step
from llama_jax.plan.report import Plan, brief, lines, make_plan
from llama_jax.progress import Progress

TENSOR_WAYS = (1, 2, 4, 8)
MAX_REMEDIES_COMPILED = 3
ROUGH = 1.15  # arithmetic may be wrong by this factor before it rules a placement out
COST_OF_CHANGE = 0.1  # a remedy of one more change has to be faster by this share
MIN_SPARE = 0.05  # share of HBM that a placement must leave
MAX_DAYS = 90  # that a run may take on a slice that nobody named
SEARCHED_CHIPS = ("v4", "v5e", "v5p", "v6e")
CUBES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16))
SPLASH_HEAD_DIM = 128
COMPILER_BYTES = 3 * GIB  # that one compiler may need: 1.6 GiB for 7B


def plan_all(
    path: str, overrides: Sequence[str], names: Sequence[str], price: float | None
) -> list[Plan]:
    """Return one plan for each named slice, by default for the experiment's own. Raise
    UserError."""
    if not names:
        own = read(path, overrides).execution.slice
        if own is None:
            raise UserError(
                f"--slice: {path} names no slice in execution.slice; give one, e.g. --slice v5e:8x8"
            )
        names = [own]
    wanted = [parse_slice(name) for name in names]
    return [
        _plan(load(path, overrides, target), target, Path(path).stem, price) for target in wanted
    ]


def load(path: str, overrides: Sequence[str], target: Slice) -> Experiment:
    """Return the experiment for a slice. Raise UserError, naming the nearest mesh that works."""
    experiment = read(path, overrides, target.name)
    mesh = experiment.execution.mesh
    ways = (mesh.replica, mesh.fsdp, mesh.tensor)
    try:
        validate(experiment)
        if math.prod(ways) != target.num_devices:
            raise UserError(
                f"execution.mesh: replica * fsdp * tensor = {' * '.join(map(str, ways))} = "
                f"{math.prod(ways)}, but {target.name} has {target.num_devices} devices"
            )
        if mesh.replica % target.num_slices:
            raise UserError(
                f"execution.mesh.replica: got {mesh.replica}, expected a multiple of the "
                f"{target.num_slices} slices"
            )
    except UserError as e:
        near = nearest(experiment, target)
        if near is None:
            raise
        raise UserError(f"{e}; the nearest that works is {override_flags(experiment, near)}") from e
    runs_on = {"splash": "TPUs", "cudnn": "NVIDIA GPUs"}.get(experiment.execution.attention)
    takes, kernel = ("TPUs", "splash") if target.chip.dimensions else ("NVIDIA GPUs", "cudnn")
    if runs_on not in (None, takes):
        raise UserError(
            f"execution.attention: {experiment.execution.attention} runs on {runs_on}, not on "
            f"{target.name}; --set execution.attention={kernel}"
        )
    return experiment


def _plan(experiment: Experiment, target: Slice, name: str, price: float | None) -> Plan:
    plan = _plan_once(experiment, target, name, price)
    if plan.fits:
        return plan
    remedies = []
    for near in _remedies(experiment, target, plan.hbm_peak_bytes)[:MAX_REMEDIES_COMPILED]:
        change = override_flags(experiment, near)
        print(f"does not fit; trying {change}", file=sys.stderr)
        try:
            fitting = _plan_once(near, target, name, price)
        except UserError as e:
            print(e, file=sys.stderr)
            continue
        if fitting.fits and fitting.spare_share is not None:
            remedies.insert(0, f"{change} ({fitting.spare_share:.1%} of HBM to spare)")
            if fitting.spare_share >= MIN_SPARE:
                break
    return dataclasses.replace(plan, remedies=tuple(remedies))


def _plan_once(experiment: Experiment, target: Slice, name: str, price: float | None) -> Plan:
    """Return a plan by the compiler, or by arithmetic for GPUs, whose compiler is not here."""
    result = _compile(name, experiment, target) if target.chip.dimensions else None
    return make_plan(name, experiment, target, result, price)


def _compile(name: str, experiment: Experiment, target: Slice):
    live = sys.stderr.isatty()
    end = "\r" if live else "\n"
    last = -math.inf

    def progress(seconds: float) -> None:
        nonlocal last
        if live or seconds - last >= 15:
            print(f"compiling {name} for {target.name}, {seconds:.0f} s", end=end, file=sys.stderr)
            last = seconds

    result = compile_step(experiment, target, progress)
    if live and last > 0:
        print("\x1b[K", end="", file=sys.stderr)  # clears the line
    return result


# Placements


def meshes(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh over the slice's devices that divides its model."""
    n = target.num_devices
    for tensor in TENSOR_WAYS:
        for replica in (
            r for r in range(target.num_slices, n + 1, target.num_slices) if n % r == 0
        ):
            fsdp, rest = divmod(n, replica * tensor)
            if rest or (replica & (replica - 1) and replica != target.num_slices):
                continue
            for ring in (1, *rings(target, fsdp)):
                mesh = dataclasses.replace(
                    experiment.execution.mesh,
                    replica=replica,
                    fsdp=fsdp,
                    ring=ring,
                    tensor=tensor,
                    sequence_parallel=tensor > 1,
                )
                yield with_execution(experiment, mesh=mesh)


def with_execution(experiment: Experiment, **fields: object) -> Experiment:
    """Return the experiment with some fields of its execution replaced."""
    return dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, **fields)
    )


def rings(target: Slice, fsdp: int) -> list[int]:
    """Return the side of the torus for fsdp's ring, or none: of 8 or more, because a short ring
    leaves much to its planes, and the shortest, because the matmuls of a long one are too small."""
    return sorted(side for side in target.shape if side >= 8 and fsdp % side == 0)[:1]


def _valid(experiment: Experiment) -> bool:
    try:
        validate(experiment)
    except UserError:
        return False
    return True


def nearest(experiment: Experiment, target: Slice) -> Experiment | None:
    """Return the valid placement whose mesh and micro-batches differ least from the
    experiment's."""

    def distance(other: Experiment) -> float:
        pairs = [
            (getattr(experiment.execution.mesh, a), getattr(other.execution.mesh, a))
            for a in ("replica", "fsdp", "ring", "tensor")
        ]
        pairs.append((experiment.execution.micro_batches, other.execution.micro_batches))
        return sum(abs(math.log(a / b)) for a, b in pairs)

    candidates = (
        with_execution(e, micro_batches=micro_batches)
        for e in meshes(experiment, target)
        for micro_batches in _divisors(experiment.data.batch_size)
    )
    return min(filter(_valid, candidates), key=distance, default=None)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def placements(experiment: Experiment, target: Slice) -> Iterator[Experiment]:
    """Yield the experiment on every mesh, in every number of micro-batches, under every remat
    policy."""
    for e, micro_batches, remat in itertools.product(
        meshes(experiment, target), _divisors(experiment.data.batch_size), REMAT_POLICIES
    ):
        candidate = with_execution(e, remat=remat, micro_batches=micro_batches)
        if _valid(candidate):
            yield candidate


def override_flags(old: Experiment, new: Experiment) -> str:
    """Return the --set options that make one of the other."""
    return " ".join(f"--set {name}={value}" for name, (_, value) in changes(old, new).items())


def _remedies(experiment: Experiment, target: Slice, needed: float | None) -> list[Experiment]:
    """Return placements one or two changes away, the fastest that should fit first.

    needed: bytes, if the compiler said so. By it, or by not fitting, the experiment itself tells
    how far the arithmetic is off.
    """
    limit = target.chip.hbm_bytes
    correction = (needed or ROUGH * limit) / estimate_analytically(experiment, target).peak_bytes
    near = []
    for e in placements(experiment, target):
        a, b = e.execution, experiment.execution
        num_changes = (
            (a.mesh != b.mesh) + (a.micro_batches != b.micro_batches) + (a.remat != b.remat)
        )
        figures = estimate_analytically(e, target)
        held = host_holds(figures.offloaded_bytes, target)
        if not 0 < num_changes <= 2 or not held:
            continue
        if figures.peak_bytes * correction < (1 - MIN_SPARE) * limit:
            near.append((figures.step_seconds * (1 + COST_OF_CHANGE * num_changes), e))
    return [e for _, e in sorted(near, key=lambda item: item[0])]


# The search


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
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
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
            pool.shutdown(cancel_futures=True)
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


# The experiment file


def write_experiment(path: Path, plan: Plan, experiment: Experiment) -> None:
    """Write an experiment file of the placement; its docstring says by which figures it was
    chosen."""
    experiment = with_execution(experiment, slice=plan.slice)
    sections = [getattr(experiment, f.name) for f in dataclasses.fields(Experiment)]
    used = (*sections, experiment, experiment.execution.mesh)
    classes = sorted(type(section).__name__ for section in used)
    text = "\n".join(
        [
            f'"""{lines(plan)[0]}.',
            "",
            "Chosen by llama-jax plan --search; estimates, nothing of it was measured:",
            "",
            *lines(plan)[1:],
            "",
            f"llama-jax train {path}",
            '"""',
            "",
            "from llama_jax.config import (",
            *(f"    {name}," for name in classes),
            ")",
            "",
            "",
            "def get_experiment() -> Experiment:",
            "    return Experiment(",
            *(
                line
                for field, section in zip(dataclasses.fields(Experiment), sections, strict=True)
                for line in _section(field.name, section)
            ),
            "    )",
            "",
        ]
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"--out: cannot write {str(path)!r}: {e.strerror or e}") from e


def _section(name: str, section: object) -> list[str]:
    """Return the source of one section, without the fields that have their default."""
    fields = [
        f"            {f.name}={_source(getattr(section, f.name))},"
        for f in dataclasses.fields(section)
        if getattr(section, f.name) != f.default
    ]
    return [f"        {name}={type(section).__name__}(", *fields, "        ),"]


def _source(value: object) -> str:
    """Return a value as ruff formats it, but for the breaks of long lines."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_source, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, MeshConfig):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        named = (f"{k}={v!r}" for k, v in given.items() if v != getattr(MeshConfig(), k))
        return f"MeshConfig({', '.join(named)})"
    return repr(value)
