"""Whether an experiment fits a slice, and what its step would take."""

import dataclasses

from llama_jax.config import Experiment
from llama_jax.flops import model_flops_per_token
from llama_jax.hardware import Slice
from llama_jax.plan.analytic import (
    AnalyticEstimate,
    estimate_analytically,
    host_seconds,
)
from llama_jax.plan.compile import CompiledStep, CompileResult, OutOfMemory
from llama_jax.plan.estimate import Collective, Estimate, estimate, expected_mfu

Interval = tuple[float, float]  # (low, high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan of an experiment on a slice. Bytes, FLOPs and seconds are of one device and step; what
    costs time is an estimate, as an interval (low, high) where there are two."""

    experiment: str
    slice: str
    chips: int
    devices: int
    basis: str  # what the figures are from
    fits: bool
    spare_share: float | None  # of the limit, if it fits
    short_bytes: float | None  # if it does not, and the compiler said so
    mesh: dict[str, int]
    ring: int
    sequence_parallel: bool
    batch_size: int
    seq_len: int
    micro_batches: int
    remat: str
    attention: str
    hbm_bytes: dict[str, int]  # of each part; buffers are the rest of the peak
    hbm_peak_bytes: float | None
    hbm_limit_bytes: float
    host_bytes: int  # activations sent to the host
    model_flops: float
    executed_flops: float | None
    step_seconds: float | None
    breakdown: dict[str, float]
    collectives: tuple[Collective, ...]
    uncounted: tuple[str, ...]  # operations whose cost is not in step_seconds
    calibrated: bool
    mfu: Interval | None
    tokens_per_second: Interval | None
    tokens: int  # of the whole experiment
    days: Interval | None
    chip_hours: Interval | None
    price: float | None  # per chip and hour, as given
    cost: Interval | None
    watts: float | None  # of a chip, from hardware.py
    energy_mwh: Interval | None
    compile_seconds: float | None
    compile_rss_bytes: int | None
    versions: dict[str, str]
    remedies: tuple[str, ...] = ()  # changes, in the words of --set, that were planned and fit


def make_plan(
    name: str,
    experiment: Experiment,
    target: Slice,
    result: CompileResult | None,
    price: float | None,
) -> Plan:
    """Return the plan of an experiment on a slice. result: the compiler's; None: all of it is the
    analytic estimate."""
    rough = estimate_analytically(experiment, target)
    hbm, peak, limit = _memory(rough, result, target)
    fits = peak is not None and peak <= limit and not isinstance(result, OutOfMemory)
    found = _estimate(result, target, experiment.execution.micro_batches)
    step_seconds = breakdown = executed = None
    if result is None:
        step_seconds, breakdown = rough.step_seconds, rough.breakdown
        executed = rough.executed_flops
    elif found:
        executed = found.executed_flops
        if target.chip.has_cycles:
            step_seconds, breakdown = found.step_seconds, found.breakdown

    data = experiment.data
    tokens = data.batch_size * data.seq_len
    flops = model_flops_per_token(experiment.model, data.seq_len)
    model_flops = flops * tokens / target.num_devices
    mfu = rate = days = chip_hours = cost = energy = None
    if step_seconds:
        of_peak = model_flops / step_seconds / target.chip.peak_flops
        mfu = expected_mfu(found, model_flops, target.chip) if found else (of_peak, of_peak)
        low, high = (share * target.chip.peak_flops * target.num_devices / flops for share in mfu)
        rate = low, high
        days, chip_hours = _duration(rate, tokens * experiment.run.num_steps, target)
        cost, energy = _cost_and_energy(chip_hours, price, target.chip.watts)
    compiled = result if isinstance(result, CompiledStep) else None
    mesh = experiment.execution.mesh
    return Plan(
        experiment=name,
        slice=target.name,
        chips=target.num_chips,
        devices=target.num_devices,
        basis=_basis(result),
        fits=fits,
        spare_share=1 - peak / limit if fits and peak is not None else None,
        short_bytes=peak - limit if not fits and peak is not None else None,
        mesh={"replica": mesh.replica, "fsdp": mesh.fsdp, "tensor": mesh.tensor},
        ring=mesh.ring,
        sequence_parallel=mesh.sequence_parallel,
        batch_size=data.batch_size,
        seq_len=data.seq_len,
        micro_batches=experiment.execution.micro_batches,
        remat=experiment.execution.remat,
        attention=experiment.execution.attention,
        hbm_bytes=hbm,
        hbm_peak_bytes=peak,
        hbm_limit_bytes=limit,
        host_bytes=compiled.offloaded_bytes if compiled else rough.offloaded_bytes,
        model_flops=model_flops,
        executed_flops=executed,
        step_seconds=step_seconds,
        breakdown=breakdown or {},
        collectives=found.collectives if found else (),
        uncounted=found.unknown if found else (),
        calibrated=result is not None and target.chip.calibrated,
        mfu=mfu,
        tokens_per_second=rate,
        tokens=tokens * experiment.run.num_steps,
        days=days,
        chip_hours=chip_hours,
        price=price,
        cost=cost,
        watts=target.chip.watts,
        energy_mwh=energy,
        compile_seconds=compiled.compile_seconds if compiled else None,
        compile_rss_bytes=compiled.compile_rss_bytes if compiled else None,
        versions=compiled.versions if compiled else {},
    )


def _duration(rate: Interval, tokens: int, target: Slice) -> tuple[Interval, Interval]:
    """Return the days and the chip-hours that so many tokens take at a rate of tokens/s."""
    low, high = (tokens / r / 3600 for r in reversed(rate))
    return (low / 24, high / 24), (low * target.num_chips, high * target.num_chips)


def _cost_and_energy(
    chip_hours: Interval, price: float | None, watts: float | None
) -> tuple[Interval | None, Interval | None]:
    """Return the cost in the unit of `price`, of one chip-hour, and the energy in MWh."""
    low, high = chip_hours
    cost = (low * price, high * price) if price is not None else None
    return cost, (low * watts / 1e6, high * watts / 1e6) if watts else None


def _basis(result: CompileResult | None) -> str:
    if result is None:
        return "by arithmetic, nothing compiled"
    if isinstance(result, OutOfMemory):
        return "refused by libtpu; the parts by arithmetic"
    return f"compiled by libtpu {result.versions['libtpu']}"


def _memory(
    rough: AnalyticEstimate, result: CompileResult | None, target: Slice
) -> tuple[dict[str, int], float | None, float]:
    """Return (bytes of each part, peak, limit)."""
    parts = result if isinstance(result, CompiledStep) else rough
    hbm = {
        "weights": parts.weights_bytes,
        "optimizer": parts.optimizer_bytes,
        "gradients": parts.gradients_bytes,
        "activations": parts.activations_bytes,
    }
    limit = target.chip.hbm_bytes
    if isinstance(result, OutOfMemory):
        limit, peak = result.limit_bytes or limit, result.needed_bytes
    else:
        peak = parts.peak_bytes
    buffers = rough.buffers_bytes if peak is None else peak - sum(hbm.values())
    return hbm | {"buffers": max(0, round(buffers))}, peak, limit


def _estimate(result: CompileResult | None, target: Slice, micro_batches: int) -> Estimate | None:
    """Return the estimate of the compiled step, plus the moves to the host and back that its
    computation cannot hide, of which the program says nothing."""
    if not isinstance(result, CompiledStep):
        return None
    found = estimate(result.hlo, target.chip, result.mesh_axes, target.shape)
    compute = found.breakdown["matmul"] + found.breakdown["attention"]
    moves = host_seconds(result.offloaded_bytes, micro_batches, compute)
    copies = {"copies": found.breakdown["copies"] + moves}
    return dataclasses.replace(
        found, step_seconds=found.step_seconds + moves, breakdown=found.breakdown | copies
    )
