"""L(N, D) = E + A / N^alpha + B / D^beta, and what follows from it in closed form.

N are parameters, D training tokens, training costs C = 6 N D FLOPs, and losses are nats a token of
the text and tokenizer that the law was fitted on (Hoffmann et al., arXiv 2203.15556, section 3.3).
"""

import dataclasses
import math
from typing import Any

import numpy as np

NAMES = ("A", "B", "E", "alpha", "beta")

Value = Any  # a float, or an array [S] of one float for each of as many laws


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """L(N, D) with coefficients as floats, or as arrays [S] of as many laws, to which N, D and C
    broadcast."""

    A: Value
    B: Value
    E: Value
    alpha: Value
    beta: Value

    def loss(self, params, tokens):
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def exponents(self):
        """Return (a, b) of N_opt ~ C^a and D_opt ~ C^b."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    def optimal_params(self, flops):
        """Return N of the smallest loss for C FLOPs of training; D is C / 6N (Hoffmann, equation
        4)."""
        with np.errstate(all="ignore"):  # NaN for a bootstrap's law that has no optimum
            g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return g * (flops / 6) ** self.exponents[0]

    def optimal_tokens(self, params):
        """Return D with which N parameters are compute-optimal: where N and D pay equally well."""
        return (self.beta * self.B / (self.alpha * self.A) * params**self.alpha) ** (1 / self.beta)

    def optimal_params_of_loss(self, loss):
        """Return N of the compute-optimal model with this loss."""
        excess = self.A * (1 + self.alpha / self.beta)
        return (excess / (loss - self.E)) ** (1 / self.alpha)

    def tokens_for(self, params, loss):
        """Return D with which N parameters reach a loss; infinite if no D does."""
        left = loss - self.E - self.A / params**self.alpha
        with np.errstate(divide="ignore"):
            return (self.B / np.maximum(left, 0)) ** (1 / self.beta)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = k * C^exponent."""

    k: Value
    exponent: Value

    def __call__(self, flops):
        return self.k * flops**self.exponent

    def inverse(self, y):
        return (y / self.k) ** (1 / self.exponent)


def power_law(flops: np.ndarray, y: np.ndarray, weight: np.ndarray | float = 1.0) -> PowerLaw:
    """Fit by weighted least squares in logarithms, of flops [P] and y [..., P]; only y above 0 and
    finite count. NaN where fewer than two values of flops are left."""
    w = np.where((y > 0) & (y < np.inf), weight, 0)
    log_y = np.log(np.where(w > 0, y, 1))
    log_flops = np.broadcast_to(np.log(flops), y.shape)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        x_mean, y_mean = ((w * v).sum(-1) / w.sum(-1) for v in (log_flops, log_y))
        x = log_flops - x_mean[..., None]
        spread = (w * x**2).sum(-1)
        exponent = np.where(spread > 0, (w * x * log_y).sum(-1) / spread, np.nan)
        k = np.exp(y_mean - exponent * x_mean)
    return PowerLaw(k, exponent)


# By the names that --laws knows them by.
PUBLISHED = {
    # As printed in Hoffmann et al., equation 10.
    "hoffmann": Law(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28),
    # The same fit before rounding, from the notebook of Besiroglu et al.: log A, log B and log E.
    "hoffmann-unrounded": Law(
        A=math.exp(6.0073404),
        B=math.exp(6.0179186),
        E=math.exp(0.5267228),
        alpha=0.33917084,
        beta=0.2849083,
    ),
    # What reproduces the examples that Sardana et al. (arXiv 2401.00448) print.
    "sardana": Law(A=406.4, B=410.7, E=1.69, alpha=0.336, beta=0.283),
    # Besiroglu et al. (arXiv 2404.10102), a refit to the points of Hoffmann's Figure 4.
    "besiroglu": Law(A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658),
}
# The least and the most of Hoffmann's Figure 4, on which all of these rest.
PUBLISHED_RANGES = {
    "parameters": (57.3e6, 16.2e9),
    "training tokens": (245e6, 318e9),
    "training FLOPs": (1.40e18, 1.30e22),
    "tokens per parameter": (0.0361, 341.0),
}
