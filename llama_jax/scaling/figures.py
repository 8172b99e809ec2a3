"""Pictures of a fit, each as PNG and SVG, and of a decision."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from llama_jax.config import UserError
from llama_jax.scaling import envelope, optimum, parametric
from llama_jax.scaling.decision import LLAMA, Decision
from llama_jax.scaling.fit import LEVEL, Fit
from llama_jax.scaling.law import Law

SUFFIXES = (".png", ".svg")
TAIL = 50 * (1 - LEVEL)  # percent beyond each end of an interval
NAMES = {1: "1 envelope", 2: "2 IsoFLOP", 3: "3 parametric"}


def draw_fit(fit: Fit, directory: Path) -> None:
    """Writes isoflop, envelope, optimum and residuals; those for which there are data."""
    if fit.budgets:
        _save(_isoflop(fit), directory / "isoflop")
    if 1 in fit.approaches:
        _save(_envelope(fit), directory / "envelope")
    _save(_optimum(fit), directory / "optimum")
    _save(_residuals(fit), directory / "residuals")


def _save(figure: Figure, stem: Path) -> None:
    for suffix in SUFFIXES:
        figure.savefig(stem.with_suffix(suffix), dpi=150)
    plt.close(figure)


def _isoflop(fit: Fit) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    norm = LogNorm(fit.budgets[0].flops, fit.budgets[-1].flops)
    for budget in fit.budgets:
        colour = plt.get_cmap("viridis")(norm(budget.flops))
        params = budget.points.params
        axes.plot(params, budget.points.loss, "o", color=colour, markersize=3.5)
        x = np.geomspace(params.min(), params.max(), 100)
        style = "-" if budget.inside else ":"
        axes.plot(x, np.polyval(budget.parabola, np.log(x)), style, color=colour, linewidth=1)
        if budget.inside:
            bottom = np.polyval(budget.parabola, np.log(budget.params))
            axes.plot(budget.params, bottom, "*", color=colour, markersize=11, mec="k", mew=0.5)
    axes.set(xscale="log", xlabel="parameters N", ylabel="loss (nats per token)")
    axes.set_title("IsoFLOP curves and their minima", fontsize=10)
    axes.grid(alpha=0.3)
    figure.colorbar(plt.cm.ScalarMappable(norm, "viridis"), ax=axes, label="training FLOPs C")
    return figure


def _envelope(fit: Fit) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    every = fit.points.params
    norm = LogNorm(every.min(), every.max())
    for curve in fit.curves:
        colour = plt.get_cmap("viridis")(norm(curve.params.mean()))
        axes.plot(curve.flops, curve.loss, ".-", color=colour, linewidth=0.8, markersize=3)
    best = envelope.trace(fit.curves)
    axes.plot(best.flops, best.loss, "k.", markersize=2, label="lowest of all sizes")
    axes.set(xscale="log", xlabel="training FLOPs C", ylabel="loss (nats per token)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.colorbar(plt.cm.ScalarMappable(norm, "viridis"), ax=axes, label="parameters N")
    return figure


def _optimum(fit: Fit) -> Figure:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    every = fit.points.flops
    flops = np.geomspace(every.min(), 100 * every.max(), 100)
    for i, (axes, name) in enumerate(zip(panels, ("params", "tokens"), strict=True)):
        for number, approach in fit.approaches.items():
            law, samples = approach.optimum[i], approach.samples[i]
            colour = f"C{number - 1}"
            drawn = np.array([samples(c) for c in flops])
            low, high = np.nanpercentile(drawn, [TAIL, 100 - TAIL], axis=1)
            label = f"{NAMES[number]}: C^{law.exponent:.3f}"
            axes.plot(flops, law(flops), color=colour, linewidth=1.2, label=label)
            axes.fill_between(flops, low, high, color=colour, alpha=0.15, linewidth=0)
        inside = [b for b in fit.budgets if b.inside]
        axes.plot(
            [b.flops for b in inside],
            [getattr(b, name) for b in inside],
            "C1*",
            markersize=8,
            label="minima of IsoFLOP curves",
        )
        axes.axvline(every.max(), color="0.6", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="training FLOPs C (dashed: the data's end)")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("N_opt, parameters")
    panels[1].set_ylabel("D_opt, tokens")
    return figure


def _residuals(fit: Fit) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    residuals = 100 * parametric.residuals(fit.law, fit.points)
    ratio = np.log10(fit.points.tokens / fit.points.params)
    dots = axes.scatter(fit.points.flops, residuals, c=ratio, s=14, cmap="viridis")
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(xscale="log", xlabel="training FLOPs C", ylabel="loss above the law's, percent")
    axes.grid(alpha=0.3)
    figure.colorbar(dots, ax=axes, label="log10 of tokens per parameter")
    return figure


def draw_budget(law: Law, decision: Decision, path: Path) -> None:
    """FLOPs of training and serving against demand, and the best model of each demand, for the
    loss that was decided on. Raises UserError if the file cannot be written."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--figure: got {str(path)!r}, expected a name in {' or '.join(SUFFIXES)}")
    loss, served = list(decision.choices.values())[-1]["loss"].value, decision.served
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    demand = np.geomspace(min(served, 1e11) / 10, max(served, 1e12) * 100, 200)
    chinchilla = optimum.chinchilla_of_loss(law, loss)
    best = [optimum.best_of_loss(law, loss, s, None) for s in demand]
    params, tokens = np.array([(c.params, c.tokens) for c in best], float).T
    here = optimum.best_of_loss(law, loss, served, None)
    left.plot(demand, chinchilla.flops(demand), "C3", label="Chinchilla's choice")
    fixed = f"ours for {served:.3g} tokens: N {float(here.params):.3g}, D {float(here.tokens):.3g}"
    left.plot(demand, here.flops(demand), "C0", label=fixed)
    left.plot(
        demand, optimum.Choice(params, tokens).flops(demand), "k:", label="best of each demand"
    )
    even = optimum.break_even(here, chinchilla)
    left.plot(even, here.flops(even), "ko", markersize=5, label=f"break-even: {even:.3g} tokens")
    left.set(xscale="log", yscale="log", ylabel="FLOPs of training and serving")
    left.legend(fontsize=8)
    right.plot(demand, tokens / params, "k:", label="best of this loss")
    right.plot(served, float(here.tokens / here.params), "C0o", label="ours")
    for name, (n, d) in LLAMA.items():
        best_for = optimum.optimal_demand(law, optimum.Choice(n, d))
        if best_for > 0:
            right.plot(best_for, d / n, "C1s")
            right.annotate(f" {name}", (best_for, d / n), fontsize=8)
    right.set(xscale="log", yscale="log", ylabel="training tokens per parameter")
    right.legend(fontsize=8)
    right.set_title("LLaMA: at the demand for which it is the best of its loss", fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("tokens served over the life of the model")
        axes.axvline(served, color="0.6", linewidth=0.8, linestyle="--")
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except OSError as e:
        raise UserError(f"--figure: cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        plt.close(figure)
