"""What a fit and a decision say, on the terminal."""

import dataclasses
import json
import math

import numpy as np
from rich.console import Console
from rich.table import Table

from llama_jax.progress import quantity
from llama_jax.scaling.budget import Decision, Figure, option
from llama_jax.scaling.costs import SOURCES, Assumptions, resolve
from llama_jax.scaling.fit import LEVEL, Approach, Fit, interval, ranges
from llama_jax.scaling.law import NAMES

METHODS = {1: "envelope of curves", 2: "IsoFLOP parabolas", 3: "parametric law"}


def print_fit(fit: Fit) -> None:
    """Print the exponents of each approach, the law, and what follows for larger budgets."""
    console = Console(markup=False)
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
        f"Huber objective {fit.objective:.6e}; a fit without the fifth of the runs with most "
        f"FLOPs predicts their loss to {fit.extrapolation_error:.2%}",
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
    """Return, for FLOPs from the table's largest on: N_opt, D_opt and tokens per parameter."""
    table = Table("C", "approach", "N_opt", "interval", "D_opt", "D/N", "beyond the runs")
    fitted = ranges(fit.points)
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
                _beyond({"C": flops, "N": params, "D": tokens}, fitted),
            )
        table.add_section()
    return table


def _leave_out(approach: Approach) -> str:
    exponents = [a for _, a in approach.leave_out if math.isfinite(a)]
    if len(exponents) < MIN_LEFT_OUT:
        return "-"
    return _range(min(exponents), max(exponents), "{:.3f}")


def _beyond(values: dict[str, float], fitted: dict[str, tuple[float, float]]) -> str:
    """Return those of N, D, C and D/N that lie outside the fitted runs, and by what factor."""
    found = []
    for name, value in values.items():
        least, most = fitted[QUANTITIES[name]]
        if value > most * ROUNDING:
            found.append(f"{name} x {quantity(value / most)}")
        elif value * ROUNDING < least:
            found.append(f"{name} / {quantity(least / value)}")
    return ", ".join(found)


def _value(value: float, samples: np.ndarray, form: str) -> str:
    return f"{form.format(value)} ({_range(*interval(samples), form)})"


def _range(low: float, high: float, form: str) -> str:
    return f"{form.format(low)} to {form.format(high)}"


def print_decision(decision: Decision) -> None:
    """Print the choices side by side, where LLaMA stands, and every assumption with its source."""
    console = Console(markup=False)
    kind, value = decision.target
    console.print(
        f"{quantity(decision.served)} tokens to serve, target {option(kind)} {quantity(value)}",
        highlight=False,
    )
    columns = decision.choices
    table = Table("", *(TITLES[name] for name in columns))
    for row in dict.fromkeys(row for figures in columns.values() for row in figures):
        cells = [
            _cell(row, figures[row]) + (f" {UNITS[name]}" if row in OF_A_UNIT else "")
            if row in figures
            else ""
            for name, figures in columns.items()
        ]
        table.add_row(row, *cells)
    console.print(table)
    for unit, missing in decision.omitted.items():
        console.print(f"no column of {TITLES[unit]}: {missing}", highlight=False, soft_wrap=True)
    if beyond := _extrapolation(decision):
        console.print(
            f"warning: beyond the runs that the law was fitted to: {beyond}",
            highlight=False,
            soft_wrap=True,
        )
    ratio = max(figures["tokens per parameter"].value for figures in columns.values())
    most = decision.ranges["tokens per parameter"][1]
    if ratio > most:
        console.print(
            f"warning: {quantity(ratio)} tokens a parameter lie beyond the fitted runs' "
            f"{most:.3g}: laws overestimate their worth there (arXiv 2401.00448)",
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
# What a column's saving and break-even are counted in.
UNITS = {"flops": "by FLOPs", "money": "by dollars", "energy": "by MWh"}
OF_A_UNIT = ("saving", "break-even tokens")
# By the names of Law: quantities that a law is fitted within.
QUANTITIES = {"N": "parameters", "D": "training tokens", "C": "training FLOPs"}
ROUNDING = 1.005  # ranges, and so what lies beyond them, are known to three digits
MIN_LEFT_OUT = 3
WITH_INTERVALS = ("parameters", "training tokens", "loss", "saving", "break-even tokens")
DEFAULTS = dataclasses.asdict(resolve(Assumptions()))


def _extrapolation(decision: Decision) -> str:
    found = []
    for name, figures in decision.choices.items():
        values = {letter: figures[row].value for letter, row in QUANTITIES.items()}
        if beyond := _beyond(values, decision.ranges):
            found.append(f"{TITLES[name]} {beyond}")
    return "; ".join(found)


def _cell(row: str, figure: Figure) -> str:
    if row == "saving":
        form = _percent
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


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{round(share, 3) + 0.0:.1%}"  # -0.0 + 0.0 is 0.0


def as_json(value: dict) -> str:
    """Return JSON in which NaN and infinity, which it cannot say, are null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, allow_nan=False)
