"""Approach 1: which size has the lowest loss of all training curves, at each number of FLOPs.

Hoffmann et al., arXiv 2203.15556, section 3.1.
"""

import dataclasses

import numpy as np

from llama_jax.scaling.law import PowerLaw, power_law
from llama_jax.scaling.results import Points

NUM_FLOPS = 1500  # values of C, evenly spaced in logarithm, as in the paper


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The lowest loss of all curves at some values of C: arrays [P]. Where the best size is the
    smallest or largest that was trained so far, a size beyond might have a lower loss still: those
    values of C are left out."""

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Grid:
    """K curves at P values of C; NaN beyond a curve's ends."""

    flops: np.ndarray  # [P]
    params: np.ndarray  # [K]
    tokens: np.ndarray  # [K, P]
    log_loss: np.ndarray  # [K, P]

    def is_inner(self, best: np.ndarray) -> np.ndarray:
        """Return whether sizes on both sides of the best curve [..., P] were trained so far."""
        sizes = np.where(np.isnan(self.log_loss), np.nan, self.params[:, None])
        sizes[:, np.isnan(sizes).all(axis=0)] = 0  # of curves that all end before or begin after
        found = self.params[best]
        return (found > np.nanmin(sizes, axis=0)) & (found < np.nanmax(sizes, axis=0))


def curves(points: Points) -> list[Points]:
    """Return loss against FLOPs: the rows of a run; or, of runs with one row, those of the same
    size."""
    rows = np.bincount(points.run)[points.run]
    label = np.where(rows > 1, points.run, -1 - points.size)
    order = np.argsort(points.flops, kind="stable")
    groups = [order[label[order] == one] for one in np.unique(label)]
    return [points.take(group) for group in groups if len(np.unique(points.flops[group])) > 1]


def trace(curves: list[Points]) -> Envelope:
    """Return the lowest loss at each number of FLOPs, and the model that has it."""
    grid = _interpolate(curves)
    best = np.argmin(np.where(np.isnan(grid.log_loss), np.inf, grid.log_loss), axis=0)
    keep = np.flatnonzero(grid.is_inner(best))
    return Envelope(
        grid.flops[keep],
        grid.params[best[keep]],
        grid.tokens[best[keep], keep],
        np.exp(grid.log_loss[best[keep], keep]),
    )


def _interpolate(curves: list[Points]) -> _Grid:
    """Interpolate in logarithms."""
    every = np.concatenate([curve.flops for curve in curves])
    flops = np.geomspace(every.min(), every.max(), NUM_FLOPS)

    def along(curve: Points, values: np.ndarray) -> np.ndarray:
        return np.interp(np.log(flops), np.log(curve.flops), np.log(values), np.nan, np.nan)

    return _Grid(
        flops=flops,
        params=np.array([curve.params[0] for curve in curves]),
        tokens=np.exp(np.stack([along(curve, curve.tokens) for curve in curves])),
        log_loss=np.stack([along(curve, curve.loss) for curve in curves]),
    )


def fit(curves: list[Points]) -> tuple[PowerLaw, PowerLaw]:
    """Return (N_opt, D_opt) of C, by least squares in logarithms; NaN if no C is left. N_opt climbs
    in steps, which flattens its exponent by a part in K^2 for K sizes on the envelope."""
    found = trace(curves)
    return power_law(found.flops, found.params), power_law(found.flops, found.tokens)


def bootstrap(
    curves: list[Points], residuals: np.ndarray, samples: int, rng: np.random.Generator
) -> tuple[PowerLaw, PowerLaw]:
    """Return fit's results with arrays [samples]. Sizes and horizons were chosen, only the losses
    are random: those of a run are scaled together, by exp of one of the residuals [R] of log loss.
    """
    grid = _interpolate(curves)
    runs = 1 + max(curve.run.max() for curve in curves)
    shift = rng.choice(residuals, (samples, runs))  # of log loss
    # One curve at a time: all of them at once would be samples x K x P numbers.
    least = np.full((samples, NUM_FLOPS), np.inf)
    best = np.zeros((samples, NUM_FLOPS), int)
    for k, curve in enumerate(curves):
        here = ~np.isnan(grid.log_loss[k])
        part = slice(here.argmax(), here.argmax() + here.sum())
        loss = grid.log_loss[k, part] + _between(curve, grid.flops[part], shift)
        lower = loss < least[:, part]
        np.copyto(best[:, part], k, where=lower)
        np.copyto(least[:, part], loss, where=lower)
    inner = grid.is_inner(best)
    params = np.where(inner, grid.params[best], np.nan)
    tokens = np.where(inner, grid.tokens[best, np.arange(NUM_FLOPS)], np.nan)
    return power_law(grid.flops, params), power_law(grid.flops, tokens)


def _between(curve: Points, flops: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Interpolate the shift [S, R] of a curve's runs at flops [P]: [S, P], or [S, 1] if it has only
    one run."""
    if (curve.run == curve.run[0]).all():
        return shift[:, curve.run[:1]]
    x, log_flops = np.log(curve.flops), np.log(flops)
    left = np.clip(np.searchsorted(x, log_flops, side="right") - 1, 0, len(x) - 2)
    width = x[left + 1] - x[left]
    share = np.divide(log_flops - x[left], width, out=np.ones_like(width), where=width > 0)
    return shift[:, curve.run[left]] * (1 - share) + shift[:, curve.run[left + 1]] * share
