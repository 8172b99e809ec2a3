"""The three approaches on one table, their bootstraps, and what the data cannot say."""

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np

from llama_jax.config import UserError
from llama_jax.plain_file import plain
from llama_jax.progress import Progress
from llama_jax.scaling import envelope, isoflop, parametric
from llama_jax.scaling.law import NAMES, PUBLISHED, PUBLISHED_RANGES, Law, PowerLaw
from llama_jax.scaling.results import Points

LEVEL = 0.95  # of the intervals: percentiles of the bootstrap
MIN_RUNS, MIN_SIZES = 6, 3  # without which five coefficients mean nothing
GOOD_SIZES, GOOD_RATIO, GOOD_BUDGETS = 5, 10.0, 3  # below these there is a warning
SAME_FLOPS = 1.03  # a table's FLOPs and 6ND that differ by more are not the same count
HELD_OUT_SHARE = 0.2  # of runs, those with most FLOPs, whose loss a fit to the others predicts


@dataclasses.dataclass(frozen=True)
class Approach:
    """One approach's (N_opt, D_opt) of C; those of `samples` have arrays [S]."""

    optimum: tuple[PowerLaw, PowerLaw]
    samples: tuple[PowerLaw, PowerLaw]
    leave_out: tuple[tuple[str, float], ...]  # (what was left out, exponent of N_opt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    table: str
    points: Points  # one row a run
    curves: list[Points]
    budgets: list[isoflop.Budget]
    approaches: dict[int, Approach]  # 1 and 2 only if the table allows them
    law: Law
    samples: Law
    objective: float
    extrapolation_error: float  # mean of |log loss| errors on the held-out runs
    warnings: tuple[str, ...]
    seconds: tuple[float, float]  # of the fit of Approach 3, of all else


def fit(points: Points, table: str, bootstraps: int, seed: int) -> Fit:
    """Return the laws of a table, by three approaches, and show the progress. Raise UserError for
    points that no law can be fitted to."""
    final, rng = points.final(), np.random.default_rng(seed)
    _check(final, len(points), table)
    progress = Progress(4, 0)
    start = time.monotonic()
    law, objective = parametric.fit(final)
    fitted = time.monotonic()
    try:
        _check_law(law, table)
    except UserError:
        progress.close()
        raise
    progress.update(1, "Approach 3: all starts")
    third, samples, extrapolation_error = _parametric(final, law, bootstraps, rng)
    approaches = {3: third}
    progress.update(2, "Approach 3: bootstraps")

    budgets = isoflop.find_budgets(final)
    if sum(budget.curved for budget in budgets) >= 2:
        approaches[2] = _isoflop(budgets, bootstraps, rng)
    progress.update(3, "Approach 2")
    curves = envelope.curves(points)
    if curves and len(np.unique(envelope.trace(curves).params)) >= 2:
        approaches[1] = _envelope(curves, parametric.residuals(law, final), bootstraps, rng)
    progress.update(4, "Approach 1")
    progress.close()
    return Fit(
        table=table,
        points=final,
        curves=curves,
        budgets=budgets,
        approaches=dict(sorted(approaches.items())),
        law=law,
        samples=samples,
        objective=objective,
        extrapolation_error=extrapolation_error,
        warnings=(
            *_design_warnings(final),
            *_law_warnings(law, samples),
            *_isoflop_warnings(budgets),
            *_envelope_warnings(curves),
        ),
        seconds=(fitted - start, time.monotonic() - fitted),
    )


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Return percentiles of samples [S], of which NaN is left out; NaN if nothing else is there."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return np.nan, np.nan
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(known, ends, method="inverted_cdf")  # takes infinity
    return float(low), float(high)


def _check(points: Points, rows: int, table: str) -> None:
    sizes = len(np.unique(points.size))
    if len(points) < MIN_RUNS or sizes < MIN_SIZES:
        raise UserError(
            f"{table}: {len(points)} runs of {sizes} sizes of model are left; a law of five "
            f"coefficients needs {MIN_RUNS} runs and {MIN_SIZES} sizes at the least"
            + (f"; --run says which of the {rows} rows are one run" if rows > len(points) else "")
        )


def _check_law(law: Law, where: str) -> None:
    for name in NAMES:
        if not 0 < getattr(law, name) < math.inf:
            raise UserError(
                f"{where}: no law of losses: {name} = {getattr(law, name):.3g}, expected a number "
                "above 0, by which losses fall as models and tokens grow"
            )


def _powers(law: Law) -> tuple[PowerLaw, PowerLaw]:
    """Return N_opt and D_opt of a law."""
    a, b = law.exponents
    k = law.optimal_params(6.0)  # where C / 6 is 1
    return PowerLaw(k / 6**a, a), PowerLaw(1 / k / 6**b, b)


def _parametric(points: Points, law: Law, bootstraps: int, rng: np.random.Generator):
    """Return (Approach, the bootstrap's laws, extrapolation_error). A bootstrap draws runs with
    replacement."""
    runs = len(points)
    drawn = rng.multinomial(runs, np.full(runs, 1 / runs), bootstraps)
    held_out = points.flops >= np.quantile(points.flops, 1 - HELD_OUT_SHARE)
    weights = np.concatenate([drawn, 1 - np.eye(runs), ~held_out[None]])
    refits = parametric.refit(points, law, weights)
    samples, without, cheap = (
        Law(**{name: value[part] for name, value in vars(refits).items()})
        for part in (slice(bootstraps), slice(bootstraps, -1), -1)
    )
    names = [f"N {n:.3g}, D {d:.3g}" for n, d in zip(points.params, points.tokens, strict=True)]
    leave_out = tuple(zip(names, map(float, without.exponents[0]), strict=True))
    approach = Approach(_powers(law), _powers(samples), leave_out)
    error = np.abs(parametric.residuals(cheap, points.take(held_out))).mean()
    return approach, samples, float(error)


def _isoflop(budgets: list[isoflop.Budget], bootstraps: int, rng) -> Approach:
    def without(left: isoflop.Budget) -> float:
        return float(isoflop.fit([b for b in budgets if b is not left])[0].exponent)

    return Approach(
        isoflop.fit(budgets),
        isoflop.bootstrap(budgets, bootstraps, rng),
        tuple((f"C {budget.flops:.3g}", without(budget)) for budget in budgets),
    )


def _envelope(curves: list[Points], residuals: np.ndarray, bootstraps: int, rng) -> Approach:
    def without(params: float) -> float:
        return float(envelope.fit([c for c in curves if c.params[0] != params])[0].exponent)

    return Approach(
        envelope.fit(curves),
        envelope.bootstrap(curves, residuals, bootstraps, rng),
        tuple((f"N {n:.3g}", without(n)) for n in np.unique(envelope.trace(curves).params)),
    )


def _design_warnings(points: Points):
    sizes = len(np.unique(points.size))
    if sizes < GOOD_SIZES:
        yield f"only {sizes} sizes of model: alpha and A rest on them alone"
    ratio = points.tokens / points.params
    if ratio.max() / ratio.min() < GOOD_RATIO:
        yield (
            f"tokens per parameter span {ratio.min():.3g} to {ratio.max():.3g} only: "
            "N and D grow together, and alpha cannot be told from beta"
        )

    counted = float(np.median(points.flops / (6 * points.params * points.tokens)))
    if not 1 / SAME_FLOPS < counted < SAME_FLOPS:
        yield (
            f"the table's FLOPs are {counted:.3g} of 6ND (the median): Approaches 1 and 2 go by "
            "the table's, Approach 3's N_opt and D_opt by 6ND; --n, --d, --flops name other columns"
        )


def _law_warnings(law: Law, samples: Law):
    for name in ("E", "alpha", "beta"):
        low, high = interval(getattr(samples, name))
        if not high - low < getattr(law, name):
            yield f"{name} is not identified: its interval is {low:.3g} to {high:.3g}"


def _isoflop_warnings(budgets: list[isoflop.Budget]):
    if len(budgets) < GOOD_BUDGETS:
        yield (
            f"Approach 2: {len(budgets)} budgets with {isoflop.MIN_SIZES} sizes or more within "
            f"a factor of {isoflop.SAME_BUDGET} of FLOPs"
        )
    for budget in budgets:
        if not budget.inside:
            side = "the parabola has no bottom"
            if budget.curved:
                side = f"its bottom, N {budget.params:.3g}, lies beyond the sizes that were tried"
            yield f"Approach 2: budget {budget.flops:.3g}: {side}"


def _envelope_warnings(curves: list[Points]):
    sizes = len(np.unique(envelope.trace(curves).params)) if curves else 0
    if sizes < GOOD_SIZES:
        yield f"Approach 1: {sizes} sizes on the envelope that have a smaller and a larger beside"


def ranges(points: Points) -> dict[str, tuple[float, float]]:
    """Return (least, most) of each quantity."""
    values = {
        "parameters": points.params,
        "training tokens": points.tokens,
        "training FLOPs": points.flops,
        "tokens per parameter": points.tokens / points.params,
    }
    return {name: (float(x.min()), float(x.max())) for name, x in values.items()}


def to_json(fit: Fit) -> dict:
    """Return what laws.json holds; intervals as [low, high]."""

    approaches = {}
    for number, approach in fit.approaches.items():
        least, greatest = (f(approach.leave_out, key=lambda item: item[1]) for f in (min, max))
        powers = {
            name: {
                "k": float(law.k),
                "exponent": float(law.exponent),
                "exponent_interval": interval(samples.exponent),
            }
            for name, law, samples in zip(
                ("N_opt", "D_opt"), approach.optimum, approach.samples, strict=True
            )
        }
        leaving = {"least": least, "greatest": greatest}
        approaches[f"approach_{number}"] = powers | {"N_exponent_leaving_one_out": leaving}
    approaches["approach_3"] |= {
        "law": dataclasses.asdict(fit.law),
        "intervals": {name: interval(getattr(fit.samples, name)) for name in NAMES},
        "objective": fit.objective,
        "error_on_held_out_runs": fit.extrapolation_error,
        "samples": {name: getattr(fit.samples, name).tolist() for name in NAMES},
    }
    return {
        "table": fit.table,
        "runs": len(fit.points),
        "ranges": ranges(fit.points),
        "interval_level": LEVEL,
        "warnings": list(fit.warnings),
        "seconds": {"fit": round(fit.seconds[0], 1), "rest": round(fit.seconds[1], 1)},
        **approaches,
    }


def read_law(name: str) -> tuple[Law, Law | None, dict[str, tuple[float, float]]]:
    """Return (law, the bootstrap's laws, ranges of the runs) of a laws.json, or of one of
    PUBLISHED, which have no bootstrap. Raise UserError for what is neither."""
    if name in PUBLISHED:
        return PUBLISHED[name], None, PUBLISHED_RANGES
    path = plain(Path(name))
    try:
        laws = json.loads(path.read_text())
        third = laws["approach_3"]
        law = Law(**{key: float(third["law"][key]) for key in NAMES})
        samples = Law(**{key: np.array(third["samples"][key], np.float64) for key in NAMES})
        fitted = {}
        for quantity in PUBLISHED_RANGES:
            least, most = laws["ranges"][quantity]
            fitted[quantity] = float(least), float(most)
    except OSError as e:
        raise UserError(
            f"--laws: cannot read {name!r}: {e.strerror}; give the laws.json that llama-jax fit "
            f"wrote, or one of {', '.join(PUBLISHED)}"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"--laws: {name} is not a laws.json of llama-jax fit: {type(e).__name__}: {e}"
        ) from e
    _check_law(law, f"--laws: {name}")
    return law, samples, fitted
