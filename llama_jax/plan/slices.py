"""Plans of an experiment on the slices that a user names, with what would make it fit there."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_jax.config import Experiment, UserError
from llama_jax.hardware import Slice, parse_slice
from llama_jax.layout import on_devices, override_flags
from llama_jax.loading import read
from llama_jax.plan.analytic import estimate_analytically, host_holds
from llama_jax.plan.compile import CompileResult, compile_step
from llama_jax.plan.placements import MIN_SPARE, ROUGH, placements
from llama_jax.plan.plan import Plan, make_plan

MAX_REMEDIES_COMPILED = 3
COST_OF_CHANGE = 0.1  # a remedy of one more change has to be faster by this share


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
    experiment = on_devices(
        read(path, overrides, target.name),
        target.num_devices,
        f"{target.name} has {target.num_devices} devices",
        target.num_slices,
    )
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


def _compile(name: str, experiment: Experiment, target: Slice) -> CompileResult:
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
