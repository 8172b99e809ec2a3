"""Approach 2: at each of several budgets of FLOPs, the bottom of a parabola through the losses.

Hoffmann et al., arXiv 2203.15556, section 3.2.
"""

import dataclasses

import numpy as np

from llama_jax.scaling.law import PowerLaw, power_law
from llama_jax.scaling.results import Points

SAME_BUDGET = 1.1  # runs whose FLOPs lie within this factor share a budget
MIN_SIZES = 4  # at a budget: a parabola has three coefficients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The runs of a budget, the parabola of their loss in log N, and its bottom."""

    points: Points
    flops: float  # the geometric mean
    parabola: np.ndarray  # [3], of powers 2, 1, 0 of log N
    params: float
    tokens: float

    @property
    def curved(self) -> bool:
        return bool(self.parabola[0] > 0)

    @property
    def inside(self) -> bool:
        """Return whether the bottom lies among the sizes that were tried."""
        tried = self.points.params
        return self.curved and bool(tried.min() < self.params < tried.max())


def find_budgets(points: Points) -> list[Budget]:
    """Return the budgets with MIN_SIZES sizes, the cheapest first: repeatedly the window of FLOPs
    that holds the most sizes, without the runs of windows before. points: one row a run."""
    size, budgets = points.size, []
    left = np.argsort(points.flops)
    while len(left):
        flops = points.flops[left]
        ends = np.searchsorted(flops, flops * SAME_BUDGET, side="right")
        sizes = [len(set(size[left[i:end]])) for i, end in enumerate(ends)]
        first = int(np.argmax(sizes))
        if sizes[first] < MIN_SIZES:
            break
        budgets.append(_budget(points.take(left[first : ends[first]])))
        left = np.delete(left, slice(first, ends[first]))
    return sorted(budgets, key=lambda budget: budget.flops)


def _budget(points: Points) -> Budget:
    parabola = np.polyfit(np.log(points.params), points.loss, 2)
    return Budget(
        points=points,
        flops=float(np.exp(np.log(points.flops).mean())),
        parabola=parabola,
        params=float(_bottom(np.log(points.params), points.loss)),
        tokens=float(_bottom(np.log(points.tokens), points.loss)),
    )


def _bottom(x: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return exp of where the parabola of loss [P, ...] in x [P] is least; NaN if nowhere."""
    p2, p1, _ = np.polyfit(x, loss, 2)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(p2 > 0, np.exp(-p1 / (2 * p2)), np.nan)


def fit(budgets: list[Budget]) -> tuple[PowerLaw, PowerLaw]:
    """Return (N_opt, D_opt) of C, by least squares in logarithms over the budgets whose parabola is
    curved, each with the weight that its bottom's uncertainty leaves it."""
    curved = [budget for budget in budgets if budget.curved]
    flops = np.array([budget.flops for budget in curved])
    weight = np.array([1 / _variance(budget) for budget in curved])
    return (
        power_law(flops, np.array([budget.params for budget in curved]), weight),
        power_law(flops, np.array([budget.tokens for budget in curved]), weight),
    )


def _variance(budget: Budget) -> float:
    """Return the variance of log N at the bottom, -p1 / (2 p2), over the variance of a loss: to
    first order."""
    p2, p1, _ = budget.parabola
    slope = np.array([p1 / (2 * p2**2), -1 / (2 * p2), 0])
    powers = np.vander(np.log(budget.points.params), 3)
    return float(slope @ np.linalg.inv(powers.T @ powers) @ slope)


def bootstrap(
    budgets: list[Budget], samples: int, rng: np.random.Generator
) -> tuple[PowerLaw, PowerLaw]:
    """Return fit's results with arrays [samples], of the parabolas' own losses plus residuals drawn
    from those of all budgets: sizes and budgets were chosen, only the losses are random."""
    curved = [budget for budget in budgets if budget.curved]
    fitted = [np.polyval(b.parabola, np.log(b.points.params)) for b in curved]
    # Three coefficients take up a part of the noise of so many points.
    pool = np.concatenate(
        [
            (b.points.loss - y) * np.sqrt(len(y) / (len(y) - 3))
            for b, y in zip(curved, fitted, strict=True)
        ]
    )
    params, tokens = np.empty((2, samples, len(curved)))
    for i, (b, y) in enumerate(zip(curved, fitted, strict=True)):
        loss = y[:, None] + rng.choice(pool, (len(y), samples))
        params[:, i] = _bottom(np.log(b.points.params), loss)
        tokens[:, i] = _bottom(np.log(b.points.tokens), loss)
    flops = np.array([b.flops for b in curved])
    weight = np.array([1 / _variance(b) for b in curved])
    return power_law(flops, params, weight), power_law(flops, tokens, weight)
