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
    """Arrays [P]. Where the best size is the smallest or largest that was trained so far, a size
    beyond might be better still: those values of C are left out."""

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


def curves(points: Points) -> list[Points]:
    """Loss against FLOPs: the rows of a run; or, of runs with one row, those of the same size."""
    rows = np.bincount(points.run)[points.run]
    label = np.where(rows > 1, points.run, -1 - points.size)
    order = np.argsort(points.flops, kind="stable")
    groups = [order[label[order] == one] for one in np.unique(label)]
    return [points.take(group) for group in groups if len(np.unique(points.flops[group])) > 1]


def trace(curves: list[Points]) -> Envelope:
    every = np.concatenate([curve.flops for curve in curves])
    flops = np.geomspace(every.min(), every.max(), NUM_FLOPS)

    def along(curve: Points, values: np.ndarray) -> np.ndarray:
        """Interpolated in logarithms; NaN beyond the curve's ends."""
        x = np.log(curve.flops)
        return np.exp(np.interp(np.log(flops), x, np.log(values), np.nan, np.nan))

    loss = np.stack([along(curve, curve.loss) for curve in curves])
    tokens = np.stack([along(curve, curve.tokens) for curve in curves])
    params = np.array([curve.params[0] for curve in curves])
    here = ~np.isnan(loss)
    columns = np.arange(NUM_FLOPS)
    best = np.argmin(np.where(here, loss, np.inf), axis=0)
    sizes = np.where(here, params[:, None], np.nan)
    covered = here.any(axis=0)
    sizes[:, ~covered] = 0
    inner = (params[best] > np.nanmin(sizes, axis=0)) & (params[best] < np.nanmax(sizes, axis=0))
    keep = columns[covered & inner]
    return Envelope(
        flops[keep], params[best[keep]], tokens[best[keep], keep], loss[best[keep], keep]
    )


def fit(curves: list[Points]) -> tuple[PowerLaw, PowerLaw]:
    """(N_opt, D_opt) of C, by least squares in logarithms; NaN if no C is left. N_opt climbs in
    steps, which flattens its exponent by a part in K^2 for K sizes on the envelope."""
    found = trace(curves)
    return power_law(found.flops, found.params), power_law(found.flops, found.tokens)


def bootstrap(
    curves: list[Points], residuals: np.ndarray, samples: int, rng: np.random.Generator
) -> tuple[PowerLaw, PowerLaw]:
    """fit's results with arrays [samples]. Sizes and horizons were chosen, only the losses are
    random: those of a run are scaled together, by exp of one of the residuals [R] of log loss."""
    runs = 1 + max(curve.run.max() for curve in curves)
    fits = []
    for _ in range(samples):
        scale = np.exp(rng.choice(residuals, runs))
        drawn = [dataclasses.replace(c, loss=c.loss * scale[c.run]) for c in curves]
        fits.append([(law.k, law.exponent) for law in fit(drawn)])
    params, tokens = np.moveaxis(np.array(fits), 0, -1)
    return PowerLaw(*params), PowerLaw(*tokens)
