"""The model that is cheapest to train and serve: Sardana et al., arXiv 2401.00448.

Training costs 6 N D and serving 2 N for each of S tokens, whatever the unit: where a FLOP of
inference costs r FLOPs of training, r S stands for S. On the line of models with one loss the best
is where (alpha A / N^alpha) / (beta B / D^beta), the gain of N over that of D, is 1 + S / 3D; the
same holds on the line of models with one total cost. Chinchilla's choice is that of S = 0.
"""

import dataclasses

import numpy as np

from llama_jax.scaling.costs import INFERENCE, TRAINING
from llama_jax.scaling.law import Law, Value


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice of parameters and training tokens; floats, or arrays [S] for as many laws."""

    params: Value
    tokens: Value

    def flops(self, served):
        return self.params * (TRAINING * self.tokens + INFERENCE * served)


def optimal_demand(law: Law, choice: Choice):
    """Return the tokens served for which no other model of the same loss costs fewer FLOPs; below 0
    for one with fewer tokens than Chinchilla's."""
    by_params = law.alpha * law.A * choice.params**-law.alpha
    by_tokens = law.beta * law.B * choice.tokens**-law.beta
    return TRAINING / INFERENCE * choice.tokens * (by_params / by_tokens - 1)


def break_even(small: Choice, large: Choice):
    """Return the tokens served from which on `small` costs fewer FLOPs than `large`, training
    included; infinite if it is not smaller."""
    extra = small.params * small.tokens - large.params * large.tokens
    fewer = np.asarray(large.params - small.params)
    with np.errstate(divide="ignore", invalid="ignore"):
        even = TRAINING / INFERENCE * extra / fewer
    return np.where(fewer > 0, even, np.where(fewer <= 0, np.inf, np.nan))


def chinchilla_of_loss(law: Law, loss) -> Choice:
    """Return the compute-optimal model with this loss."""
    params = law.optimal_params_of_loss(loss)
    return Choice(params, law.optimal_tokens(params))


def best_of_loss(law: Law, loss, served, max_params: float | None) -> Choice:
    """Return the model with the least cost to reach a loss and serve; NaN where no model within
    max_params can."""
    floor = (law.A / (loss - law.E)) ** (1 / law.alpha)  # with infinitely many tokens
    ceiling = law.optimal_params_of_loss(loss)
    params = _where_demand_is(served, law, lambda n: law.tokens_for(n, loss), floor, ceiling)
    if max_params is not None:
        params = np.minimum(params, max_params)
    tokens = law.tokens_for(params, loss)
    reached = np.isfinite(tokens)
    return Choice(np.where(reached, params, np.nan), np.where(reached, tokens, np.nan))


def best_of_total(law: Law, total: float, served, max_params: float | None) -> Choice:
    """Return the model with the least loss of all that cost `total` FLOPs to train and serve; NaN
    if not even one parameter can be served."""
    ceiling = total / (INFERENCE * served + TRAINING)  # with one token of training
    params = _where_demand_is(served, law, lambda n: _left(total, n, served), 1.0, ceiling)
    if max_params is not None:
        params = np.minimum(params, max_params)
    params = np.where(ceiling > 1, params, np.nan)
    return Choice(params, _left(total, params, served))


def chinchilla_of_total(law: Law, total: float, served) -> Choice:
    """Return the compute-optimal model that costs `total` FLOPs to train and serve."""
    ceiling = total / (INFERENCE * served + TRAINING)
    params = _where_demand_is(0.0, law, lambda n: _left(total, n, served), 1.0, ceiling)
    return Choice(params, _left(total, params, served))


def _left(total, params, served):
    """Return the tokens that can be trained on with what serving leaves."""
    return np.maximum(total / params - INFERENCE * served, 0) / TRAINING


def _where_demand_is(served, law: Law, tokens, low, high):
    """Return N between low and high whose optimal_demand with tokens(N) is `served`, by bisection
    in log N: along either line it falls as N grows."""
    low, high = (np.broadcast_to(np.log(x), np.shape(law.E)) for x in (low, high))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for _ in range(80):
            middle = (low + high) / 2
            params = np.exp(middle)
            above = optimal_demand(law, Choice(params, tokens(params))) > served
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.exp((low + high) / 2)
