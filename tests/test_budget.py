"""The cheapest model for a demand, against formulas and published answers."""

import dataclasses

import numpy as np
import pytest

from llama_jax.config import UserError
from llama_jax.hardware import CHIPS
from llama_jax.progress import quantity
from llama_jax.scaling import costs, figures, optimum
from llama_jax.scaling.budget import COSTS, LLAMA, Decision, decide, over_demand
from llama_jax.scaling.costs import Assumptions
from llama_jax.scaling.law import NAMES, PUBLISHED, PUBLISHED_RANGES, Law
from llama_jax.scaling.optimum import Choice

ASSUMED = costs.resolve(Assumptions())
A100 = CHIPS["a100"]


def decided(law="sardana", served=2e12, target=("quality_of", 13e9), **assumed) -> Decision:
    assumptions = dataclasses.replace(ASSUMED, **assumed)
    return decide(PUBLISHED[law], None, PUBLISHED_RANGES, served, target, assumptions)


def values(decision: Decision, choice: str) -> dict[str, float]:
    return {name: figure.value for name, figure in decision.choices[choice].items()}


# Sardana et al., arXiv 2401.00448. The first two rows print what the paper's examples do.


@pytest.mark.parametrize(
    ("law", "quality_of", "served", "params", "tokens", "saving"),
    [
        ("sardana", 13e9, 2e12, 6.97e9, 1.248e12, 0.174),
        ("sardana", 30e9, 1e13, 13.6e9, 4.43e12, 0.280),
        ("hoffmann", 13e9, 2e12, 8.02e9, 1.75e12, 0.101),
        ("hoffmann", 30e9, 1e13, 15.9e9, None, 0.182),
        ("hoffmann-unrounded", 13e9, 2e12, 7.12e9, 1.295e12, 0.163),
        ("hoffmann-unrounded", 30e9, 1e13, 13.9e9, None, 0.266),
        ("besiroglu", 13e9, 2e12, 6.10e9, 0.737e12, 0.290),
        ("besiroglu", 30e9, 1e13, 11.6e9, 2.45e12, 0.427),
    ],
)
def test_sardanas_examples(law, quality_of, served, params, tokens, saving):
    ours = values(decided(law, served, ("quality_of", quality_of)), "flops")
    assert ours["parameters"] == pytest.approx(params, rel=4e-3)
    assert tokens is None or ours["training tokens"] == pytest.approx(tokens, rel=2e-3)
    assert ours["saving"] == pytest.approx(saving, abs=6e-4)


def test_sardanas_first_example_saves_what_it_prints():
    found = decided()
    chinchilla, ours = values(found, "chinchilla"), values(found, "flops")
    assert chinchilla["parameters"] == pytest.approx(13e9)
    assert chinchilla["total FLOPs"] - ours["total FLOPs"] == pytest.approx(1.69e22, rel=3e-3)
    assert ours["training tokens"] / chinchilla["training tokens"] == pytest.approx(2.16, abs=6e-3)
    assert ours["loss"] == pytest.approx(chinchilla["loss"])


# The optimum, against every choice of a fine grid


@pytest.mark.parametrize("unit", ["flops", "money", "energy"])
def test_no_other_model_of_the_loss_is_cheaper(unit):
    assumed = {"serve_chip": "h100", "serve_price": 11.0}
    found = decided("besiroglu", **assumed)
    law, rate = PUBLISHED["besiroglu"], costs.rates(dataclasses.replace(ASSUMED, **assumed))[unit]
    params = np.geomspace(1e9, 1e11, 1_000_001)
    loss = found.choices["chinchilla"]["loss"].value
    prompts, answers = 0.245 * 2e12, 0.755 * 2e12
    train = 6 * params * law.tokens_for(params, loss) * rate.train
    cost = train + 2 * params * (prompts * rate.prefill + answers * rate.decode)
    ours = values(found, unit)
    assert ours["parameters"] == pytest.approx(params[np.argmin(cost)], rel=1e-3)
    name = {"flops": "total FLOPs", "money": "total dollars", "energy": "total MWh"}[unit]
    assert ours[name] == pytest.approx(cost.min(), rel=1e-6)
    theirs = values(found, "chinchilla")[name]
    assert ours["saving"] == pytest.approx(1 - cost.min() / theirs)
    # Where demand is what is printed as break-even, the two cost the same.
    even = values(decided("besiroglu", ours["break-even tokens"], **assumed), "chinchilla")[name]
    served = ours["break-even tokens"] * (0.245 * rate.prefill + 0.755 * rate.decode)
    train = ours["training FLOPs"] * rate.train
    assert even == pytest.approx(train + 2 * ours["parameters"] * served)


@pytest.mark.parametrize("unit", ["flops", "money", "energy"])
def test_no_other_model_of_the_total_is_better(unit):
    total = {"flops": 1e23, "money": 5e6, "energy": 800}[unit]
    found = decided("besiroglu", 2e12, (f"total_{unit}", total))
    law, rate = PUBLISHED["besiroglu"], costs.rates(ASSUMED)[unit]
    params = np.geomspace(1e8, 1e11, 1_000_001)
    served = 2e12 * (0.245 * rate.prefill + 0.755 * rate.decode)
    tokens = (total / params - 2 * served) / 6 / rate.train
    loss = np.where(tokens > 0, law.loss(params, np.maximum(tokens, 1)), np.inf)
    ours, theirs = values(found, unit), values(found, "chinchilla")
    assert ours["loss"] == pytest.approx(loss.min(), abs=1e-9)
    assert ours["parameters"] == pytest.approx(params[np.argmin(loss)], rel=1e-3)
    name = {"flops": "total FLOPs", "money": "total dollars", "energy": "total MWh"}[unit]
    assert ours[name] == pytest.approx(total) and theirs[name] == pytest.approx(total)
    assert theirs["training tokens"] == pytest.approx(law.optimal_tokens(theirs["parameters"]))
    assert ours["loss"] < theirs["loss"]
    # Turned about: the cheapest of that loss costs that total.
    back = values(decided("besiroglu", 2e12, ("loss", ours["loss"])), unit)
    assert back[name] == pytest.approx(total, rel=1e-6)


def test_no_demand_means_chinchillas_choice():
    found = decided(served=1.0, target=("train_flops", 1e22))
    for choice in ("chinchilla", "flops"):
        assert values(found, choice)["training FLOPs"] == pytest.approx(1e22)


def test_the_demand_of_an_optimum_is_the_demand_it_was_made_for():
    law = PUBLISHED["sardana"]
    choice = optimum.best_of_loss(law, 2.0, 3e12, None)
    assert optimum.optimal_demand(law, choice) == pytest.approx(3e12, rel=1e-6)
    chinchilla = optimum.chinchilla_of_loss(law, 2.0)
    assert optimum.optimal_demand(law, chinchilla) == pytest.approx(0, abs=1)
    assert optimum.break_even(chinchilla, choice) == np.inf
    assert np.isnan(optimum.break_even(Choice(np.nan, np.nan), choice))


# Limits of serving


def test_a_limit_gives_the_best_of_what_it_allows():
    free = values(decided(), "flops")
    by_time = decided(max_ms_per_token=5.0)
    assert by_time.max_params == pytest.approx(5e-3 * 2.039e12 / 2)
    ours = values(by_time, "flops")
    assert ours["parameters"] == pytest.approx(by_time.max_params)
    assert ours["ms per token, batch of one"] == pytest.approx(5.0)
    assert ours["loss"] == pytest.approx(free["loss"]) and ours["saving"] < free["saving"]
    assert values(decided(max_weights_gb=80), "flops") == free
    total = ("total_flops", free["total FLOPs"])
    limited = values(decided(target=total, max_weights_gb=10), "flops")
    assert limited["weights GB"] == pytest.approx(10) and limited["loss"] > free["loss"]


def test_what_cannot_be_reached_is_said():
    with pytest.raises(UserError, match=r"--loss: got 1\.6, which no model reaches; .* to 1\.69"):
        decided(target=("loss", 1.6))
    with pytest.raises(UserError, match="which no model reaches with 5e\\+08 parameters or fewer"):
        decided(max_weights_gb=1)
    with pytest.raises(UserError, match="--total-energy: there is no public figure of the power"):
        decided(target=("total_energy", 1e3), serve_chip="v5e")
    with pytest.raises(UserError, match="--serve-chip: no chip 'b300'; there are v4, v5e"):
        costs.resolve(Assumptions(serve_chip="b300"))
    with pytest.raises(UserError, match="--total-flops: got 100, expected more: .* one parameter"):
        decided(target=("total_flops", 100))
    found = decided(train_chip="v5p", serve_chip="v5e", train_price=4.2, serve_price=None)
    assert set(found.choices) == {"chinchilla", "flops"}
    assert found.omitted == {
        "money": "no price of v5e is known; give --serve-price",
        "energy": "there is no public figure of the power of v5p or v5e",
    }
    assert costs.resolve(Assumptions(train_price=0)).train_price == 0


# LLaMA


def test_where_llama_stands():
    found = decided("besiroglu").llama
    ratios = [round(figures["tokens per parameter"].value) for figures in found.values()]
    assert ratios == [148, 77, 43, 21]
    demands = [figures["best for tokens"].value for figures in found.values()]
    assert demands == sorted(demands, reverse=True) and demands[-1] < 0.1 * demands[0]
    # 65B is about Chinchilla-optimal, the others are over-trained: paper.md 5.4.
    trained = [figures["training over that"].value for figures in found.values()]
    assert trained[0] > 1.4 and trained[1] > 1.15 and trained[3] < 1.01


@pytest.mark.parametrize(
    ("law", "tokens"),
    [("hoffmann", 2.72e11), ("hoffmann-unrounded", 2.84e11), ("besiroglu", 3.16e11)],
)
def test_seven_billion_reach_ten_billions_loss(law, tokens):
    """The LLaMA paper's example in section 1: 10B on 200B tokens, or a 7B for longer."""
    published, params = PUBLISHED[law], LLAMA["LLaMA-7B"][0]
    loss = published.loss(10e9, 200e9)
    assert published.tokens_for(params, loss) == pytest.approx(tokens, rel=3e-3)
    if law == "besiroglu":
        small, large = Choice(params, tokens), Choice(10e9, 200e9)
        assert small.flops(0) / large.flops(0) == pytest.approx(1.06, abs=6e-3)
        assert 1 - params / 10e9 == pytest.approx(0.33, abs=6e-3)


# Table 15 and section 2.4 of the LLaMA paper; tokens/s a GPU and MFU follow from its GPU-hours.
TABLE_15 = {
    "LLaMA-7B": (82_432, 36, 14, 3370, 0.437),
    "LLaMA-13B": (135_168, 59, 23, 2055, 0.514),
    "LLaMA-33B": (530_432, 233, 90, 733, 0.459),
    "LLaMA-65B": (1_022_362, 449, 173, 380, 0.478),
}


@pytest.mark.parametrize("name", TABLE_15)
def test_llamas_hours_energy_and_carbon(name):
    hours, mwh, tonnes, rate, mfu = TABLE_15[name]
    params, tokens = LLAMA[name]
    assert tokens / (hours * 3600) == pytest.approx(rate, abs=1)
    assert costs.chip_hours(6 * params * tokens, A100, mfu) == pytest.approx(hours, rel=2e-3)
    assert A100.watts is not None
    energy = costs.energy_mwh(hours, A100.watts, ASSUMED.pue)
    assert energy == pytest.approx(mwh, abs=0.9)
    assert costs.carbon_tonnes(energy, ASSUMED.kg_per_kwh) == pytest.approx(tonnes, abs=0.6)
    assert np.mean([row[-1] for row in TABLE_15.values()]) == pytest.approx(0.47, abs=5e-3)


# Intervals


def test_intervals_are_those_of_the_bootstraps_decisions():
    several = [PUBLISHED[name] for name in ("hoffmann", "sardana", "besiroglu")]
    samples = Law(**{n: np.array([getattr(law, n) for law in several]) for n in NAMES})
    rest = (PUBLISHED_RANGES, 2e12)
    found = decide(PUBLISHED["sardana"], samples, *rest, ("quality_of", 13e9), ASSUMED)
    assert values(found, "flops") == pytest.approx(values(decided(), "flops"))
    one_by_one = [
        values(decided(name), "flops")["parameters"]
        for name in ("hoffmann", "sardana", "besiroglu")
    ]
    expected = min(one_by_one), max(one_by_one)
    assert found.choices["flops"]["parameters"].interval == pytest.approx(expected)
    # Under one of the laws LLaMA-33B is not smaller than Chinchilla's: it never breaks even.
    break_even = found.llama["LLaMA-33B"]["break-even tokens"].interval
    assert break_even is not None and break_even[1] == np.inf
    assert found.reached == 1
    curve = over_demand(PUBLISHED["sardana"], samples, found)
    total = curve[0].choices["flops"]["total FLOPs"]
    assert total.interval is not None
    assert total.interval[0] < total.value < total.interval[1]
    low = decide(PUBLISHED["sardana"], samples, *rest, ("loss", 1.75), ASSUMED)
    assert low.reached == 0.75  # besiroglu's E is above


# The figure


@pytest.mark.parametrize(
    ("target", "assumed"),
    [
        (("quality_of", 13e9), {"max_weights_gb": 10}),
        (("total_money", 5e6), {}),
        (("total_energy", 800), {"max_weights_gb": 5}),
    ],
)
def test_the_figure_shows_what_the_table_does(target, assumed, tmp_path, monkeypatch):
    found = decided(target=target, **assumed)
    drawn, subplots = [], figures.plt.subplots
    monkeypatch.setattr(
        figures.plt, "subplots", lambda *a, **k: drawn.append(subplots(*a, **k)) or drawn[-1]
    )
    figures.draw_budget(found, over_demand(PUBLISHED["sardana"], None, found), tmp_path / "x.png")
    ((_, (left, right)),) = drawn
    ours = values(found, found.unit)
    model = f"ours: {quantity(ours['parameters'])} on {quantity(ours['training tokens'])}"
    lines = {line.get_label(): line.get_xydata() for line in left.get_lines()}
    training, total = COSTS[found.unit]
    for choice, name in (("chinchilla", "Chinchilla's"), (found.unit, model)):
        ((label, line),) = [item for item in lines.items() if item[0].startswith(name)]
        cost = np.interp(found.served, *line.T)  # a straight line
        assert cost == pytest.approx(values(found, choice)[total], rel=1e-9)
    # The best of each demand is never dearer, and at this demand it is ours.
    (best,) = [line for label, line in lines.items() if label.startswith("best of each demand")]
    line = next(line for label, line in lines.items() if label.startswith(model))
    assert (best[:, 1] <= line[:, 1] * (1 + 1e-9)).all()
    assert np.min(line[:, 1] / best[:, 1]) == pytest.approx(1, abs=2e-3)
    assert [text.get_text() for text in right.texts] == [
        *("LLaMA-7B", "LLaMA-13B", "LLaMA-33B: never", "LLaMA-65B: never")
    ]
    assert model in [line.get_label() for line in right.get_lines()]


# The command


def test_the_table_shows_the_choice_and_all_it_rests_on(cli, tmp_path):
    figure = tmp_path / "budget.svg"
    done = cli(
        "budget",
        *("--laws", "sardana", "--inference-tokens", "2e12", "--quality-of", "13e9"),
        *("--decode-mfu", "0.02", "--figure", str(figure)),
    )
    assert done.returncode == 0, done.stderr
    for text in (
        *("13B", "6.97B", "1.25T", "17.4% by FLOPs", "LLaMA-65B", "decode_mfu 0.02: given"),
        "target --quality-of 13B",
        "that the law was fitted to: Chinchilla's D x 1.81, C x 3.46; fewest FLOPs D x 3.92,",
    ):
        assert text in done.stdout
    for name, value in dataclasses.asdict(ASSUMED).items():
        assert value is None or name in done.stdout
    assert figure.read_text().count("<path") > 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--loss", "2"], "the demand: give --inference-tokens, or --requests-per-day with"),
        (["--loss", "2", "--inference-tokens", "1e12", "--months", "3"], "the demand: give"),
        (["--inference-tokens", "1e12"], "one of the arguments --quality-of"),
        (["--laws", "x.json", "--loss", "2", "--inference-tokens", "1"], "cannot read 'x.json'"),
        *(
            (
                [*args, number],
                f"argument {args[-1]}: got {number}, expected a finite number above 0",
            )
            for args, number in (
                (["--inference-tokens", "1e12", "--loss"], "inf"),
                (["--inference-tokens", "1e12", "--loss"], "0"),
                (["--inference-tokens", "1e12", "--total-flops"], "0"),
                (["--loss", "2", "--inference-tokens"], "inf"),
                (["--decode-mfu"], "0"),
                (["--train-price"], "0"),
                (["--max-weights-gb"], "0"),
            )
        ),
    ],
)
def test_a_demand_or_law_that_will_not_do_is_refused(args, message, cli):
    done = cli("budget", "--laws", "hoffmann", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
