"""The text of plans: one plan in full, one line of it, and a table of several."""

from collections.abc import Sequence

from llama_jax.hardware import GIB, HOST_BANDWIDTH, parse_slice
from llama_jax.plan.analytic import host_holds
from llama_jax.plan.estimate import A_SPREAD, B_SPREAD
from llama_jax.plan.plan import Plan

LISTED_COLLECTIVES = 5
MIB = 2**20


def lines(plan: Plan) -> list[str]:
    """Return the text of a plan, at most 25 lines."""
    mesh = " x ".join(f"{axis} {ways}" for axis, ways in plan.mesh.items())
    ways = f"{plan.devices:,} devices on {plan.chips:,} chips"
    ways += f", rings of {plan.ring}" if plan.ring > 1 else ""
    ways += ", sequence-parallel" if plan.sequence_parallel else ""
    rows = plan.batch_size * plan.seq_len
    out = [
        f"{plan.experiment} on {plan.slice}: {_verdict(plan)}",
        _row("basis", _provenance(plan)),
        _row("mesh", f"{mesh} = {ways}"),
        _row(
            "batch",
            f"{plan.batch_size:,} rows x {plan.seq_len:,} = {rows:,} tokens in "
            f"{plan.micro_batches} micro-batch{'es' if plan.micro_batches > 1 else ''}; "
            f"remat {plan.remat}, attention {plan.attention}",
        ),
        _row("HBM a device" if plan.devices > plan.chips else "HBM a chip", _hbm(plan)),
    ]
    if plan.host_bytes:
        target = parse_slice(plan.slice)
        room = "" if host_holds(plan.host_bytes, target) else ": MORE THAN HALF OF IT"
        moved = plan.host_bytes * plan.micro_batches / HOST_BANDWIDTH
        out.append(
            _row(
                "host memory",
                f"{_gib(plan.host_bytes)} of activations a device{room}; assumed 16 GB/s, "
                f"{moved:.3g} s out and {moved:.3g} s back a step",
            )
        )
    out.append(_row("FLOPs", _flops(plan)))
    if plan.step_seconds:
        out += _time(plan)
    elif plan.fits:
        chip = plan.slice.split(":")[0]
        out.append(_row("step time", f"unknown: libtpu gives no costs for {chip}"))
    if plan.mfu:
        out += _expectation(plan)
    if plan.remedies:
        out.append(_row("fits with", plan.remedies[0]))
    return out


def _row(label: str, text: str) -> str:
    return f"  {label:<13} {text}"


def _verdict(plan: Plan) -> str:
    if plan.fits and plan.spare_share is not None:
        roughly = " by arithmetic" if plan.basis.startswith("by") else ""
        return f"FITS{roughly} with {plan.spare_share:.1%} of HBM to spare"
    if plan.short_bytes is None:
        return "DOES NOT FIT"
    return f"DOES NOT FIT by {_gib(plan.short_bytes)}"


def _provenance(plan: Plan) -> str:
    if plan.compile_seconds is None:
        return plan.basis
    rss = (plan.compile_rss_bytes or 0) / GIB
    return (
        f"{plan.basis} and jax {plan.versions['jax']} in {plan.compile_seconds:.0f} s "
        f"and {rss:.1f} GiB"
    )


def _hbm(plan: Plan) -> str:
    peak = plan.hbm_peak_bytes
    small = peak is not None and peak < GIB  # whose parts might read 0.00
    unit = MIB if small else GIB
    parts = " + ".join(f"{name} {size / unit:.2f}" for name, size in plan.hbm_bytes.items())
    total = "?" if peak is None else f"{peak / unit:.2f}{' MiB' if small else ''}"
    return f"{parts} = {total} of {_gib(plan.hbm_limit_bytes)}"


def _flops(plan: Plan) -> str:
    text = f"{plan.model_flops:.3g} of the model a device and step"
    if not plan.executed_flops:
        return text
    ratio = plan.executed_flops / plan.model_flops
    return f"{text}, {plan.executed_flops:.3g} executed: x {ratio:.3f}"


def _time(plan: Plan) -> list[str]:
    assert plan.step_seconds
    spent = sorted(plan.breakdown.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {s / plan.step_seconds:.1%}" for kind, s in spent if s)
    source = "libtpu's cycles" if plan.collectives else "arithmetic"
    out = [_row("step time", f"{plan.step_seconds:.3g} s, estimated by {source}: {shares}")]
    for collective in plan.collectives[:LISTED_COLLECTIVES]:
        out.append(
            _row(
                "",
                f"{collective.kind} over {_axis(collective.axis)}: "
                f"{_gib(collective.bytes)} in {collective.count:,}, "
                f"{collective.seconds:.3g} s on the links, exposed "
                f"{collective.exposed_seconds / plan.step_seconds:.1%} of the step",
            )
        )
    rest = plan.collectives[LISTED_COLLECTIVES:]
    if rest:
        seconds, exposed = (
            sum(getattr(c, f) for c in rest) for f in ("seconds", "exposed_seconds")
        )
        out.append(
            _row(
                "",
                f"{len(rest)} other kinds: {seconds:.3g} s on the links, exposed "
                f"{exposed / plan.step_seconds:.1%}",
            )
        )
    if plan.uncounted:
        out.append(_row("not counted", ", ".join(plan.uncounted)[:80]))
    return out


def _expectation(plan: Plan) -> list[str]:
    assert plan.mfu and plan.tokens_per_second and plan.days and plan.chip_hours
    per_chip = tuple(rate / plan.chips for rate in plan.tokens_per_second)
    if plan.calibrated:
        band = (
            f"the two estimators miss published runs by up to x {B_SPREAD:.2f} and x {A_SPREAD:.2f}"
        )
    else:
        band = f"no calibration for {plan.slice.split(':')[0]}: no published run was compared"
    out = [
        _row("expected MFU", f"{_interval(plan.mfu)} (estimate, not a measurement; {band})"),
        _row(
            "tokens/s",
            f"{_interval(plan.tokens_per_second)}, {_interval(per_chip)} a chip "
            "(estimate, by that MFU, as what follows)",
        ),
        _row(
            "whole run",
            f"{_interval(plan.days)} days for {plan.tokens:,} tokens, "
            f"{_interval(plan.chip_hours)} chip-hours",
        ),
    ]
    if plan.cost:
        out.append(
            _row(
                "cost",
                f"{_interval(plan.cost)} at {plan.price:g} a chip and hour, as given",
            )
        )
    if plan.energy_mwh:
        out.append(
            _row(
                "energy",
                f"{_interval(plan.energy_mwh)} MWh, if a chip draws {plan.watts:g} W; "
                "hosts and cooling left out",
            )
        )
    else:
        out.append(_row("energy", "unknown: no public figure of the chip's power"))
    return out


def brief(plan: Plan) -> str:
    """Return one line, for the progress of a search."""
    mesh = " x ".join(map(str, plan.mesh.values()))
    mesh += f" in rings of {plan.ring}" if plan.ring > 1 else ""
    time = f", {plan.step_seconds:.3g} s a step" if plan.step_seconds else ""
    return (
        f"{plan.slice} {mesh}, {plan.micro_batches} micro-batches, remat {plan.remat}: "
        f"{_verdict(plan)}{time}"
    )


def table(plans: Sequence[Plan]) -> list[str]:
    """Return what a search found, a line each."""
    priced = plans[0].cost is not None
    head = ("slice", "chips", "replica x fsdp x tensor", "ring", "micro-batches", "remat")
    rows: list[tuple[str, ...]] = [
        (*head, "HBM spare", "step s", "days", "cost" if priced else "chip-hours", "MFU")
    ]
    for p in plans:
        spent = p.cost if priced else p.chip_hours
        rows.append(
            (
                p.slice,
                f"{p.chips:,}",
                " x ".join(map(str, p.mesh.values())),
                str(p.ring),
                str(p.micro_batches),
                p.remat,
                f"{p.spare_share or 0:.1%}",
                f"{p.step_seconds:.3g}" if p.step_seconds else "?",
                _interval(p.days) if p.days else "?",
                _interval(spent) if spent else "?",
                _interval(p.mfu) if p.mfu else "?",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / MIB:.2f} MiB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _interval(values: tuple[float, ...]) -> str:
    low, high = map(_number, values)
    return low if low == high else f"{low} to {high}"


def _axis(axis: str) -> str:
    """Return a mesh axis as an experiment names it: fsdp is three axes of the mesh, see
    sharding.make_mesh."""
    for whole in ("ring+plane+line", "ring+plane", "plane+line"):
        axis = axis.replace(whole, "fsdp")
    for part in ("ring", "plane", "line"):
        axis = axis.replace(part, f"fsdp's {part}s")
    return axis
