"""What a fit and a decision say, on the terminal."""

import dataclasses
import json
import math

import numpy as np
from rich.console import Console
from rich.table import Table

from llama_jax.scaling.decision import Decision, Figure
from llama_jax.scaling.fit import LEVEL, Approach, Fit, interval
from llama_jax.scaling.law import NAMES
from llama_jax.scaling.serving import SOURCES, Assumptions, resolve

METHODS = {1: "envelope of curves", 2: "IsoFLOP parabolas", 3: "parametric law"}


def print_fit(fit: Fit) -> None:
    console = Console()
    console.print(
        f"{fit.table}: {len(fit.points)} runs, {len(np.unique(fit.points.size))} sizes of model; "
        f"{LEVEL:.0%} intervals of {len(fit.samples.E)} bootstraps",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("approach", "a: N_opt ~ C^a", "b: D_opt ~ C^b", "a, leaving one out")
    for number, approach in fit.approaches.items():
        table.add_row(
            f"{number} {METHODS[number]}",
            *(
                _value(law.exponent, samples.exponent, "{:.3f}")
                for law, samples in zip(approach.optimum, approach.samples, strict=True)
            ),
            _leave_out(approach),
        )
    console.print(table)
    table = Table("Approach 3", "value", "interval")
    for name in NAMES:
        form = "{:.1f}" if name in "AB" else "{:.4f}"
        low, high = interval(getattr(fit.samples, name))
        table.add_row(name, form.format(getattr(fit.law, name)), _range(low, high, form))
    console.print(table)
    console.print(
        f"Huber objective {fit.objective:.6e}; a fit without the dearest fifth of the runs "
        f"predicts their loss to {fit.dearest_error:.2%}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_optima(fit))
    for warning in fit.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    console.print(
        f"Approach 3 fitted in {fit.seconds[0]:.1f} s, all else in {fit.seconds[1]:.1f} s",
        highlight=False,
    )


def _optima(fit: Fit) -> Table:
    """For FLOPs from the table's largest on: N_opt, D_opt and tokens per parameter."""
    table = Table("C", "approach", "N_opt", "interval", "D_opt", "D/N")
    for flops in fit.points.flops.max() * 10.0 ** np.arange(0, 5, 2):
        for number, approach in fit.approaches.items():
            params, tokens = (law(flops) for law in approach.optimum)
            low, high = interval(approach.samples[0](flops))
            table.add_row(
                f"{flops:.2e}" if number == min(fit.approaches) else "",
                str(number),
                quantity(params),
                f"{quantity(low)} to {quantity(high)}",
                quantity(tokens),
                f"{tokens / params:.3g}",
            )
        table.add_section()
    return table


def _leave_out(approach: Approach) -> str:
    exponents = [a for _, a in approach.leave_out]
    return _range(min(exponents), max(exponents), "{:.3f}")


def _value(value: float, samples: np.ndarray, form: str) -> str:
    return f"{form.format(value)} ({_range(*interval(samples), form)})"


def _range(low: float, high: float, form: str) -> str:
    return f"{form.format(low)} to {form.format(high)}"


def quantity(value: float) -> str:
    """As 6.97B or 1.25T; a demand that never comes is NaN."""
    if math.isnan(value):
        return "never"
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}" if value < 1e15 else f"{value:.2e}"
    return f"{value:.3g}"


def print_decision(decision: Decision) -> None:
    console = Console()
    console.print(
        f"{quantity(decision.served)} tokens to serve, target {decision.target}",
        highlight=False,
    )
    columns = decision.choices
    table = Table("", *(TITLES[name] for name in columns))
    for row in dict.fromkeys(row for figures in columns.values() for row in figures):
        cells = [figures.get(row) for figures in columns.values()]
        table.add_row(row, *("" if cell is None else _cell(row, cell) for cell in cells))
    console.print(table)
    ratio = max(figures["tokens per parameter"].value for figures in columns.values())
    if ratio > decision.max_ratio:
        console.print(
            f"warning: {quantity(ratio)} tokens a parameter lie beyond the fitted runs' "
            f"{decision.max_ratio:.3g}: laws overestimate their worth there (arXiv 2401.00448)",
            highlight=False,
            soft_wrap=True,
        )
    if decision.max_params:
        console.print(
            f"at most {quantity(decision.max_params)} parameters by the limits of serving",
            highlight=False,
        )
    if decision.reached < 1:
        console.print(
            f"warning: under {1 - decision.reached:.1%} of the bootstrap's laws the target is out "
            "of reach; the intervals leave them out",
            highlight=False,
        )
    table = Table("", "D/N", "Chinchilla's equal", "training", "break-even", "best for")
    for name, figures in decision.llama.items():
        params, tokens = (figures[f"Chinchilla's {x}"].value for x in ("parameters", "tokens"))
        table.add_row(
            name,
            f"{figures['tokens per parameter'].value:.0f}",
            f"{quantity(params)} on {quantity(tokens)}",
            f"x {figures['training over that'].value:.3f}",
            _cell("break-even tokens", figures["break-even tokens"]),
            _cell("break-even tokens", figures["best for tokens"]),
        )
    console.print(table)
    console.print(
        "break-even: tokens served from which on it beats the compute-optimal model of its loss; "
        "best for: the\ndemand that makes it the cheapest of its loss, in FLOPs; below 0: it had "
        "fewer tokens than Chinchilla's",
        highlight=False,
        soft_wrap=True,
    )
    assumed = dataclasses.asdict(decision.assumptions)
    for name, value in assumed.items():
        if value is not None:
            source = SOURCES.get(name, "given") if value == DEFAULTS[name] else "given"
            console.print(f"  {name} {value}: {source}", highlight=False, soft_wrap=True)


TITLES = {
    "chinchilla": "Chinchilla's",
    "flops": "fewest FLOPs",
    "money": "least money",
    "energy": "least energy",
}
WITH_INTERVALS = ("parameters", "training tokens", "loss", "saving", "break-even tokens")
DEFAULTS = dataclasses.asdict(resolve(Assumptions()))


def _cell(row: str, figure: Figure) -> str:
    if row == "saving":
        form = "{:.1%}".format
    elif row == "loss":
        form = "{:.4f}".format
    elif "FLOPs" in row:
        form = "{:.2e}".format
    else:
        form = quantity
    text = form(figure.value)
    if figure.interval is None or row not in WITH_INTERVALS:
        return text
    return f"{text} ({form(figure.interval[0])} to {form(figure.interval[1])})"


def as_json(value: dict) -> str:
    """What JSON cannot say, NaN and infinity, as null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, allow_nan=False)
