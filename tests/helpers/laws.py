"""Tables of runs made from a known law."""

import csv
from pathlib import Path

import numpy as np

from llama_jax.scaling.law import PUBLISHED
from llama_jax.scaling.results import Columns, Points

COLUMNS = Columns(params="Model Size", flops="Training FLOP")

TRUE = PUBLISHED["besiroglu"]

A_TRUE = TRUE.exponents[0]


def isoflop_table(noise: float, seed: int, budgets: int = 5, sizes: int = 7) -> Points:
    """Of TRUE: budgets from 1e18 to 1e21 FLOPs, sizes up to a factor of 4 about the optimum."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    params = TRUE.optimal_params(flops) * np.tile(np.geomspace(1 / 4, 4, sizes), budgets)
    tokens = flops / (6 * params)
    error = noise * np.random.default_rng(seed).standard_normal(len(flops))
    loss = TRUE.loss(params, tokens) * np.exp(error)
    return Points(params, tokens, flops, loss, np.arange(len(flops)))


def ladder(noise: float, seed: int, sizes: int = 12, horizons: int = 4) -> Points:
    """Of TRUE: training curves of 20 points, of which the noise is one factor a run."""
    rng, rows = np.random.default_rng(seed), []
    for params in np.geomspace(5e7, 1e10, sizes):
        for horizon in TRUE.optimal_tokens(params) * np.geomspace(1 / 4, 4, horizons):
            tokens = horizon * np.linspace(0.05, 1, 20)
            loss = TRUE.loss(params, tokens) * np.exp(noise * rng.standard_normal())
            run = len(rows)
            rows.append(
                [(params, d, 6 * params * d, y, run) for d, y in zip(tokens, loss, strict=True)]
            )
    return Points(*(np.array(column) for column in zip(*sum(rows, []), strict=True)))


def write(path: Path, table: Points, names=("N", "D", "C", "loss", "run")) -> Path:
    columns = dict(zip(("N", "D", "C", "loss", "run"), vars(table).values(), strict=True))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(columns[name].tolist() for name in names), strict=True))
    return path
