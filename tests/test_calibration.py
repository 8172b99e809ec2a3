"""Scaled estimates against programs of MaxText, whose MFU is published."""

import json
import lzma
import math
from functools import cache
from pathlib import Path

import pytest

from helpers.programs import V5E
from llama_jax.hardware import parse_slice
from llama_jax.plan.estimate import (
    A_SCALE,
    A_SPREAD,
    B_SCALE,
    B_SPREAD,
    KINDS,
    Estimate,
    estimate,
    expected_mfu,
)


def test_expected_mfu_lies_between_the_cycles_and_the_executed_flops():
    def of(seconds: float, exposed: float) -> Estimate:
        breakdown = dict.fromkeys(KINDS, 0.0) | {"exposed communication": exposed * seconds}
        return Estimate(seconds, breakdown, 1.1e15, 1e14, (), ())

    model = 1e15  # of 1.2e15 executed
    a = model / 10 / V5E.peak_flops
    assert expected_mfu(of(10, 0.08), model, V5E) == pytest.approx((a, 0.75 / 1.2))
    assert expected_mfu(of(10, 0.18), model, V5E) == pytest.approx((a, 0.75 / 1.2 * 0.9))
    low, high = expected_mfu(of(6, 0), model, V5E)
    assert (low, high) == pytest.approx((0.75 / 1.2, a * 10 / 6))


# Programs of MaxText, whose MFU is published

CALIBRATION = Path(__file__).parent / "calibration"

PROGRAMS = json.loads((CALIBRATION / "programs.json").read_text())


@cache
def published_over_estimated(name: str) -> tuple[float, float]:
    """By A, the step's time, and by B, its executed FLOPs; neither scaled."""
    program = PROGRAMS[name]
    where = parse_slice(program["slice"])
    hlo = lzma.decompress((CALIBRATION / f"{name}.hlo.xz").read_bytes()).decode()
    result = estimate(hlo, where.chip, program["mesh"], where.shape)
    assert result.unknown == ()
    seconds_at_peak = program["model_flops"] / where.chip.peak_flops
    a = seconds_at_peak / result.step_seconds
    b = program["model_flops"] / result.executed_flops
    return program["published_mfu"] / a, program["published_mfu"] / b


@pytest.mark.parametrize("name", PROGRAMS)
def test_scaled_estimates_agree_with_published_mfu_within_their_spread(name):
    a, b = published_over_estimated(name)
    assert 1 / A_SPREAD < a / A_SCALE < A_SPREAD
    assert 1 / B_SPREAD < b / B_SCALE < B_SPREAD


@pytest.mark.parametrize(
    ("which", "scale", "spread"), [(0, A_SCALE, A_SPREAD), (1, B_SCALE, B_SPREAD)]
)
def test_scales_and_spreads_are_those_of_a_leave_one_out_fit(which, scale, spread):
    logs = [math.log(published_over_estimated(name)[which]) for name in PROGRAMS]
    n, total = len(logs), sum(logs)
    worst = max(abs(log - (total - log) / (n - 1)) for log in logs)
    assert round(math.exp(total / n), 2) == scale
    assert round(math.exp(worst), 2) == spread
