"""Approach 3: the coefficients of a Law, by a robust fit to the logarithm of the loss.

Minimises the sum over runs of Huber(log L(N, D) - log loss), with delta 1e-3, by L-BFGS from the
grid of Hoffmann et al. (arXiv 2203.15556, section 3.3 and appendix D.3). Sum and tolerance matter:
the average over runs let theirs stop short of the minimum (Besiroglu et al., arXiv 2404.10102).
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llama_jax.scaling.law import Law
from llama_jax.scaling.results import Points

HUBER_DELTA = 1e-3
# log A, log B, log E, alpha and beta of the 4500 starts.
GRID = (
    np.arange(0.0, 30, 5),
    np.arange(0.0, 30, 5),
    np.arange(-1, 1.5, 0.5),
    np.arange(0, 2.5, 0.5),
    np.arange(0, 2.5, 0.5),
)
# After a few steps from every start the LANES with the smallest objective go on to the minimum.
FIRST_STEPS, MAX_STEPS = 10, 200
GRADIENT_TOLERANCE = 1e-9  # of the objective over HUBER_DELTA
STEP_SIZES = 2 * 4.0 ** -np.arange(16)
LANES = 150  # fits side by side, in one program: their arrays stay in the CPU's cache


def fit(points: Points) -> tuple[Law, float]:
    """Return (law, objective). points: one row a run."""
    starts = np.array(list(itertools.product(*GRID)))
    theta, objective = _minimise(points, starts, np.ones((len(starts), len(points))), FIRST_STEPS)
    best = np.argsort(np.where(np.isnan(objective), np.inf, objective))[:LANES]
    theta, objective = _minimise(points, theta[best], np.ones((LANES, len(points))), MAX_STEPS)
    winner = np.argmin(np.where(np.isnan(objective), np.inf, objective))
    law = Law(**{name: float(value) for name, value in vars(_law(theta[winner])).items()})
    return law, float(objective[winner])


def refit(points: Points, start: Law, weights: np.ndarray) -> Law:
    """Return the laws, with arrays [S], of points that count weights[S, P] times; from one
    start."""
    logs = [math.log(x) for x in (start.A, start.B, start.E)]
    theta = np.array([*logs, start.alpha, start.beta])
    theta, _ = _minimise(points, np.tile(theta, (len(weights), 1)), weights, MAX_STEPS)
    return _law(theta)


def residuals(law: Law, points: Points) -> np.ndarray:
    """Return log loss minus log of the law's; [P]."""
    return np.log(points.loss) - np.log(law.loss(points.params, points.tokens))


def _law(theta: np.ndarray) -> Law:
    a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)
    return Law(A=np.exp(a), B=np.exp(b), E=np.exp(e), alpha=alpha, beta=beta)


def _minimise(
    points: Points, theta: np.ndarray, weights: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (theta [S, 5], objective [S]) after at most so many steps from theta [S, 5]."""
    count = len(theta)
    padding = ((0, -count % LANES), (0, 0))  # with weights of 0, which are at their minimum
    theta, weights = np.pad(theta, padding), np.pad(weights.astype(float), padding)
    data = tuple(np.log(x) for x in (points.params, points.tokens, points.loss))
    with jax.enable_x64(True):
        parts = [
            _solve(theta[i : i + LANES], weights[i : i + LANES], data, steps)
            for i in range(0, len(theta), LANES)
        ]
    theta, objective = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return theta, objective * HUBER_DELTA


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None, None))
def _solve(theta, weights_P, data, steps):
    """Minimise from one start. Each step takes the best of STEP_SIZES along L-BFGS's direction. If
    none lowers the objective it forgets the gradients before, and it ends when the bare gradient
    lowers nothing, too."""
    solver = optax.scale_by_lbfgs()

    def value(theta):
        return _objective(theta, weights_P, data)

    def step(carry):
        theta, state, _, fresh, i = carry
        loss, gradient = jax.value_and_grad(value)(theta)
        direction, state = solver.update(gradient, state, theta)
        tried = jax.vmap(lambda size: theta - size * direction)(STEP_SIZES)
        losses = jax.vmap(value)(tried)
        best = jnp.nanargmin(losses)
        better = losses[best] < loss
        theta = jnp.where(better, tried[best], theta)
        state = jax.tree.map(partial(jnp.where, better), state, solver.init(theta))
        slope = jnp.where(better | ~fresh, jnp.abs(gradient).max(), 0)
        return theta, state, slope, ~better, i + 1

    def unfinished(carry):
        *_, slope, _, i = carry
        return (i < steps) & (slope > GRADIENT_TOLERANCE)

    start = (theta, solver.init(theta), jnp.inf, True, 0)
    theta, *_ = jax.lax.while_loop(unfinished, step, start)
    return theta, value(theta)


def _objective(theta, weights_P, data):
    """Return the weighted sum of Huber's function over HUBER_DELTA, which makes it of order 1."""
    a, b, e, alpha, beta = theta
    log_params_P, log_tokens_P, log_loss_P = data
    # Not logsumexp, which takes five times as long: nothing on the way from GRID leaves fp64.
    loss_P = jnp.exp(a - alpha * log_params_P) + jnp.exp(b - beta * log_tokens_P) + jnp.exp(e)
    error_P = jnp.log(loss_P) - log_loss_P
    return jnp.sum(weights_P * optax.huber_loss(error_P, delta=HUBER_DELTA)) / HUBER_DELTA
