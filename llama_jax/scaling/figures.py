"""Pictures of a fit, each as PNG and SVG, and of a decision."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from llama_jax.config import UserError
from llama_jax.progress import quantity
from llama_jax.scaling import envelope, parametric
from llama_jax.scaling.budget import COSTS, Decision, best_for_tokens
from llama_jax.scaling.fit import LEVEL, Fit, interval

SUFFIXES = (".png", ".svg")
NAMES = {1: "1 envelope", 2: "2 IsoFLOP", 3: "3 parametric"}


def draw_fit(fit: Fit, directory: Path) -> None:
    """Write isoflop, envelope, optimum and residuals; those for which there are data."""
    if fit.budgets:
        _save(_isoflop(fit), directory / "isoflop")
    if 1 in fit.approaches:
        _save(_envelope(fit), directory / "envelope")
    _save(_optimum(fit), directory / "optimum")
    _save(_residuals(fit), directory / "residuals")


def _write(figure: Figure, path: Path) -> None:
    """Write the file whole, or raise OSError and leave what was there."""
    part = path.with_name(f"unfinished_{path.name}")
    try:
        figure.savefig(part, dpi=150)
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from e


def _save(figure: Figure, stem: Path) -> None:
    for suffix in SUFFIXES:
        _write(figure, stem.with_suffix(suffix))
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
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda params, _: quantity(params))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("IsoFLOP curves and their minima", fontsize=10)
    axes.grid(alpha=0.3)
    axes.plot([], [], "k-", linewidth=1, label="parabola")
    axes.plot([], [], "*", color="w", markersize=11, mec="k", mew=0.5, label="its minimum")
    if not all(budget.inside for budget in fit.budgets):
        axes.plot([], [], "k:", linewidth=1, label="no minimum among the sizes tried")
    axes.legend(fontsize=8)
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
    axes.set_title("Training curves and their envelope", fontsize=10)
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
            low, high = zip(*(interval(samples(c)) for c in flops), strict=True)
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
    axes.set_title("Residuals of the parametric law", fontsize=10)
    axes.grid(alpha=0.3)
    figure.colorbar(dots, ax=axes, label="log10 of tokens per parameter")
    return figure


def draw_budget(decision: Decision, others: list[Decision], path: Path) -> None:
    """Draw cost against demand, in the decision's unit, and the best models of `others`, which are
    at other demands. Raise UserError if the file cannot be written."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--figure: got {str(path)!r}, expected a name in {' or '.join(SUFFIXES)}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    _cost(left, decision, others)
    _best(right, decision, others)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="tokens served over the life of the model")
        axes.set_xlim(others[0].served, others[-1].served)
        axes.axvline(decision.served, color="0.6", linewidth=0.8, linestyle="--")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    try:
        _write(figure, path)
    except OSError as e:
        raise UserError(f"--figure: cannot write {str(path)!r}: {e.strerror or e}") from e
    finally:
        plt.close(figure)


def _cost(axes: Axes, decision: Decision, others: list[Decision]) -> None:
    """Draw the cost of the two choices, kept whatever the demand, and of the best of each
    demand."""
    training, total = COSTS[decision.unit]
    for name, title, colour in (
        ("chinchilla", "Chinchilla's", "C3"),
        (decision.unit, "ours", "C0"),
    ):
        model = {row: number.value for row, number in decision.choices[name].items()}
        per_token = (model[total] - model[training]) / decision.served
        cost = [model[training] + per_token * other.served for other in others]
        label = f"{title}: {_model(model)}, loss {model['loss']:.4f}"
        axes.plot([other.served for other in others], cost, colour, label=label)
        even = model.get("break-even tokens", math.inf)
        if name == decision.unit and math.isfinite(even):
            at = model[training] + per_token * even
            label = f"break-even: {quantity(even)} tokens"
            axes.plot(even, at, "ko", markersize=5, label=label)
    _curve(axes, decision, others, total)
    axes.set_ylabel(f"{total.removeprefix('total ')} of training and serving")


def _best(axes: Axes, decision: Decision, others: list[Decision]) -> None:
    """Draw the best's tokens per parameter at each demand; LLaMA's at the demand for which it is
    the best."""
    _curve(axes, decision, others, "tokens per parameter")
    ours = {row: number.value for row, number in decision.choices[decision.unit].items()}
    axes.plot(decision.served, ours["tokens per parameter"], "C0o", label=f"ours: {_model(ours)}")
    for name, figures in decision.llama.items():
        best_for, ratio = best_for_tokens(decision, name), figures["tokens per parameter"].value
        never = best_for <= 0
        at = others[0].served if never else best_for
        axes.plot(at, ratio, "C1<" if never else "C1s", clip_on=False)
        text = f"{name}: never" if never else name
        axes.annotate(text, (at, ratio), (7, -3), textcoords="offset points", fontsize=8)
    axes.set_ylabel("training tokens per parameter")
    axes.set_title("LLaMA: at the demand for which it is the cheapest of its loss", fontsize=9)


def _curve(axes: Axes, decision: Decision, others: list[Decision], row: str) -> None:
    """Draw a row of the table against demand, with its interval."""
    found = [other.choices[decision.unit][row] for other in others]
    served = [other.served for other in others]
    loss = others[0].choices[decision.unit]["loss"].value
    label = f"best of each demand, loss {loss:.4f}"
    axes.plot(served, [number.value for number in found], "k:", label=label)
    if found[0].interval is not None:
        low, high = zip(*(number.interval for number in found), strict=True)
        label = f"its {LEVEL:.0%} interval"
        axes.fill_between(served, low, high, color="k", alpha=0.12, linewidth=0, label=label)


def _model(row: dict[str, float]) -> str:
    return f"{quantity(row['parameters'])} on {quantity(row['training tokens'])}"
