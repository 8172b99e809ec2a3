"""A demand, a target and what follows: Chinchilla's choice, ours, and LLaMA's four, with intervals.

Everything is computed for the law and its bootstrap at once: arrays [1 + S], the law first.
"""

import dataclasses

import numpy as np

from llama_jax.config import LLAMA_7B, LLAMA_13B, LLAMA_33B, LLAMA_65B, UserError
from llama_jax.flops import num_params
from llama_jax.hardware import CHIPS
from llama_jax.scaling import costs, optimum
from llama_jax.scaling.costs import INFERENCE, TRAINING, Assumptions
from llama_jax.scaling.fit import interval
from llama_jax.scaling.law import NAMES, Law
from llama_jax.scaling.optimum import Choice

# Parameters, and tokens of training (paper Table 2).
LLAMA = {
    "LLaMA-7B": (num_params(LLAMA_7B), 1.0e12),
    "LLaMA-13B": (num_params(LLAMA_13B), 1.0e12),
    "LLaMA-33B": (num_params(LLAMA_33B), 1.4e12),
    "LLaMA-65B": (num_params(LLAMA_65B), 1.4e12),
}
NUM_DEMANDS, MARGIN = 60, 30.0  # of a figure; the factor by which it reaches beyond what it shows
# The quantities that a unit's costs are, of training and in all.
COSTS = {
    "flops": ("training FLOPs", "total FLOPs"),
    "money": ("training dollars", "total dollars"),
    "energy": ("training MWh", "total MWh"),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number, and the interval of the bootstrap's numbers if there is a bootstrap."""

    value: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The models to choose from for a demand and a target, with all that the choice rests on."""

    served: float  # tokens, over the life of the model
    target: tuple[str, float]
    unit: str  # of the whole cost, if that is the target; else flops
    assumptions: Assumptions
    max_params: float | None
    reached: float  # the share of the bootstrap's laws under which the target can be reached
    ranges: dict[str, tuple[float, float]]  # of the runs that the law was fitted to, by quantity
    omitted: dict[str, str]  # units without an answer: what is missing
    # "chinchilla", and the best by "flops", "money" and "energy": quantity -> figure.
    choices: dict[str, dict[str, Figure]]
    llama: dict[str, dict[str, Figure]]


def decide(
    law: Law,
    samples: Law | None,
    ranges: dict[str, tuple[float, float]],
    served: float,
    target: tuple[str, float],
    assumptions: Assumptions,
) -> Decision:
    """Return the models that reach a target and serve a demand at the least cost.

    target: ("quality_of", N), ("train_flops", C), ("loss", L), or the whole cost, of training and
    serving: ("total_flops" | "total_money" | "total_energy", X). Raise UserError for one that
    cannot be reached.
    """
    laws = _stack(law, samples)
    kind, value = target
    limit = costs.max_params(assumptions)
    rates = costs.rates(assumptions)
    equal = {
        unit: served * r.served_as_flops(assumptions.prompt_share) for unit, r in rates.items()
    }
    found: dict[str, Choice] = {}
    omitted = {unit: _missing(unit, assumptions) for unit in COSTS if unit not in rates}
    of_total, unit = kind.startswith("total_"), "flops"
    if of_total:
        unit = kind.removeprefix("total_")
        if unit in omitted:
            raise UserError(f"--total-{unit}: {omitted[unit]}")
        omitted, rates = {}, {unit: rates[unit]}
        total = value / rates[unit].train
        found["chinchilla"] = optimum.chinchilla_of_total(laws, total, equal[unit])
        found[unit] = optimum.best_of_total(laws, total, equal[unit], limit)
    else:
        loss = _loss(laws, kind, value)
        found["chinchilla"] = optimum.chinchilla_of_loss(laws, loss)
        for each in rates:
            found[each] = optimum.best_of_loss(laws, loss, equal[each], limit)
    best = found[unit]
    if not np.isfinite(np.asarray(best.params)[0]):
        if of_total:
            raise UserError(
                f"{option(kind)}: got {value:g}, expected more: it does not pay for serving "
                f"{served:g} tokens with one parameter"
            )
        raise UserError(
            f"{option(kind)}: got {value:g}, which no model reaches"
            + (f" with {limit:.3g} parameters or fewer" if limit else "")
            + f"; the law's loss never falls to {law.E:.4g}"
        )
    return Decision(
        served=served,
        target=target,
        unit=unit,
        assumptions=assumptions,
        max_params=limit,
        reached=float(np.isfinite(best.params).mean()),
        ranges=ranges,
        omitted=omitted,
        choices={
            name: _figures(
                laws, name, choice, found["chinchilla"], served, assumptions, equal, of_total
            )
            for name, choice in found.items()
        },
        llama={name: _llama(laws, Choice(*model)) for name, model in LLAMA.items()},
    )


def over_demand(law: Law, samples: Law | None, decision: Decision) -> list[Decision]:
    """Return decisions for demands around the decision's own and LLaMA's: for the same target or,
    if that was a whole cost, the loss that it bought."""
    target = decision.target
    if target[0].startswith("total_"):
        target = "loss", decision.choices[decision.unit]["loss"].value
    best_for = [best_for_tokens(decision, name) for name in decision.llama]
    known = [decision.served, *(tokens for tokens in best_for if tokens > 0)]
    return [
        decide(law, samples, decision.ranges, float(served), target, decision.assumptions)
        for served in np.geomspace(min(known) / MARGIN, max(known) * MARGIN, NUM_DEMANDS)
    ]


def best_for_tokens(decision: Decision, name: str) -> float:
    """Return the demand for which one of LLAMA is the cheapest of its loss, in the decision's unit;
    below 0 if there is none."""
    rate = costs.rates(decision.assumptions)[decision.unit]
    share = rate.served_as_flops(decision.assumptions.prompt_share)
    return decision.llama[name]["best for tokens"].value / share


def _stack(law: Law, samples: Law | None) -> Law:
    def both(name: str) -> np.ndarray:
        more = [] if samples is None else getattr(samples, name)
        return np.array([getattr(law, name), *more])

    return Law(**{name: both(name) for name in NAMES})


def _loss(laws: Law, kind: str, value: float) -> np.ndarray:
    """Return the loss [1 + S] of a target: the quality of a model is what it is under each law."""
    if kind == "quality_of":
        return laws.loss(value, laws.optimal_tokens(value))
    if kind == "train_flops":
        params = laws.optimal_params(value)
        return laws.loss(params, value / (TRAINING * params))
    return np.where(value > laws.E, value, np.nan)


def option(kind: str) -> str:
    """Return the command line's option for a kind of target."""
    return "--" + kind.replace("_", "-")


def _missing(unit: str, a: Assumptions) -> str:
    """Return what is missing for an answer in a unit, as a sentence."""
    uses = {"train": a.train_chip, "serve": a.serve_chip}
    if unit == "money":
        unknown = [use for use in uses if getattr(a, f"{use}_price") is None]
        chips = dict.fromkeys(uses[use] for use in unknown)
        options = " and ".join(f"--{use}-price" for use in unknown)
        return f"no price of {' or '.join(chips)} is known; give {options}"
    chips = [chip for chip in dict.fromkeys(uses.values()) if not CHIPS[chip].watts]
    return f"there is no public figure of the power of {' or '.join(chips)}"


def _figures(
    laws: Law,
    name: str,
    choice: Choice,
    chinchilla: Choice,
    served: float,
    a: Assumptions,
    equal: dict[str, float],
    of_total: bool,
) -> dict[str, Figure]:
    """Return the figures of one choice; its saving and break-even, at the same loss, are by the
    unit it is named for."""
    train, serve = CHIPS[a.train_chip], CHIPS[a.serve_chip]
    train_flops = TRAINING * choice.params * choice.tokens
    served_flops = INFERENCE * choice.params * served
    hours = costs.chip_hours(train_flops, train, a.train_mfu)
    share = a.prompt_share
    serve_hours = costs.chip_hours(served_flops * share, serve, a.prefill_mfu)
    serve_hours += costs.chip_hours(served_flops * (1 - share), serve, a.decode_mfu)
    found = {
        "parameters": choice.params,
        "training tokens": choice.tokens,
        "tokens per parameter": choice.tokens / choice.params,
        "loss": laws.loss(choice.params, choice.tokens),
        "training FLOPs": train_flops,
        "inference FLOPs": served_flops,
        "total FLOPs": train_flops + served_flops,
        "training chip-hours": hours,
        "serving chip-hours": serve_hours,
    }
    if a.train_price and a.serve_price:
        found["training dollars"] = hours * a.train_price
        found["total dollars"] = hours * a.train_price + serve_hours * a.serve_price
    if train.watts and serve.watts:
        spent = costs.energy_mwh(hours, train.watts, a.pue)
        total = spent + costs.energy_mwh(serve_hours, serve.watts, a.pue)
        found["training MWh"] = spent
        found["total MWh"] = total
        found["total tCO2eq"] = costs.carbon_tonnes(total, a.kg_per_kwh)
    found["weights GB"] = choice.params * a.bytes_per_param / 1e9
    found["ms per token, batch of one"] = costs.ms_per_token(choice.params, a)
    if name in equal and not of_total:
        both = [c.flops(equal[name]) for c in (choice, chinchilla)]
        found["saving"] = 1 - both[0] / both[1]
        as_flops = equal[name] / served if served else 1.0
        found["break-even tokens"] = optimum.break_even(choice, chinchilla) / as_flops
    return {key: _figure(values) for key, values in found.items()}


def _llama(laws: Law, model: Choice) -> dict[str, Figure]:
    loss = laws.loss(model.params, model.tokens)
    chinchilla = optimum.chinchilla_of_loss(laws, loss)
    found = {
        "parameters": np.full_like(loss, model.params),
        "training tokens": np.full_like(loss, model.tokens),
        "tokens per parameter": np.full_like(loss, model.tokens / model.params),
        "loss": loss,
        "Chinchilla's parameters": chinchilla.params,
        "Chinchilla's tokens": chinchilla.tokens,
        "training over that": model.flops(0) / chinchilla.flops(0),
        "break-even tokens": optimum.break_even(model, chinchilla),
        "best for tokens": optimum.optimal_demand(laws, model),
    }
    return {key: _figure(values) for key, values in found.items()}


def _figure(values: np.ndarray) -> Figure:
    return Figure(float(values[0]), interval(values[1:]) if len(values) > 1 else None)
