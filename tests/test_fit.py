"""A fit's warnings, tables and figures, and the way from fit to budget."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.laws import TRUE, isoflop_table, ladder, write
from llama_jax.progress import quantity
from llama_jax.scaling import envelope, figures, isoflop, tables
from llama_jax.scaling.fit import (
    _design_warnings,
    _isoflop,
    _isoflop_warnings,
    fit,
    interval,
    read_law,
)
from llama_jax.scaling.results import Points

# What the data cannot say


def test_what_the_data_cannot_say_is_a_warning():
    """Three sizes, all near 20 tokens a parameter."""
    params = np.repeat(np.geomspace(1e8, 1e9, 3), 4)
    tokens = params * np.tile([15, 18, 21, 25], 3)
    loss = TRUE.loss(params, tokens) * (1 + 0.01 * np.random.default_rng(0).standard_normal(12))
    table = Points(params, tokens, 6 * params * tokens, loss, np.arange(12))
    found = fit(table, "narrow.csv", bootstraps=20, seed=0)
    assert list(found.approaches) == [3]
    text = "\n".join(found.warnings)
    assert "only 3 sizes of model" in text
    assert "tokens per parameter span 15 to 25 only" in text
    assert "alpha is not identified" in text or "beta is not identified" in text
    assert "Approach 2: 0 budgets with 4 sizes or more" in text
    assert "Approach 1: 1 sizes on the envelope" in text or "Approach 1: 0 sizes" in text


def test_flops_that_are_not_6nd_are_a_warning():
    table = isoflop_table(0, 0)
    assert not [text for text in _design_warnings(table) if "6ND" in text]
    without_embeddings = dataclasses.replace(table, params=0.8 * table.params)
    (text,) = _design_warnings(without_embeddings)
    assert "the table's FLOPs are 1.25 of 6ND (the median): Approaches 1 and 2 go by" in text


def test_never_is_a_part_of_an_interval_and_what_failed_is_not():
    assert interval(np.array([1.0, 2.0, np.inf, np.nan])) == (1.0, np.inf)
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_a_row_beyond_the_runs_says_how_far():
    fitted = {"parameters": (1e6, 1e9), "training tokens": (1e9, 1e11), "training FLOPs": (1, 2)}
    values = {"N": 3e9, "D": 1e8, "C": 2.0}
    assert tables._beyond(values, fitted) == "N x 3, D / 10"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (6.97e9, "6.97B"),
        (9.999e11, "1T"),
        (999.9, "1K"),
        (-2.5e9, "-2.5B"),
        (2e15, "2.00e+15"),
        (np.inf, "never"),
        (np.nan, "-"),
    ],
)
def test_a_quantity_has_three_digits_and_the_letter_that_fits_them(value, text):
    assert quantity(value) == text


def test_a_saving_of_nothing_has_no_sign():
    assert (tables._percent(-1e-9), tables._percent(0.1744), tables._percent(np.nan)) == (
        *("0.0%", "17.4%", "-"),
    )


def test_figures_say_what_their_lines_are(tmp_path, monkeypatch):
    table = isoflop_table(0, 0, budgets=3, sizes=9)
    small = (table.params < 0.8 * TRUE.optimal_params(table.flops)) & (table.flops < 2e18)
    found = fit(table.take(small | (table.flops > 2e18)), "t.csv", bootstraps=2, seed=0)
    assert [budget.inside for budget in found.budgets] == [False, True, True]
    drawn = {}
    monkeypatch.setattr(figures, "_save", lambda figure, stem: drawn.update({stem.name: figure}))
    figures.draw_fit(found, tmp_path)
    with_curves = dataclasses.replace(found, curves=envelope.curves(ladder(0, 0)))
    for figure in (drawn["isoflop"], drawn["residuals"], figures._envelope(with_curves)):
        assert figure.axes[0].get_title()
    labels = [text.get_text() for text in drawn["isoflop"].axes[0].get_legend().get_texts()]
    assert labels == ["parabola", "its minimum", "no minimum among the sizes tried"]


def test_too_few_to_leave_one_out_is_said():
    budgets = isoflop.find_budgets(isoflop_table(0.003, 0, budgets=2))
    approach = _isoflop(budgets, 10, np.random.default_rng(0))
    assert tables._leave_out(approach) == "-"


def test_an_optimum_at_the_edge_of_a_parabola_is_a_warning():
    table = isoflop_table(0, 0, budgets=3)
    small = table.take(table.params < 0.9 * TRUE.optimal_params(table.flops))
    budgets = isoflop.find_budgets(small.take(small.flops < 2e20))
    assert len(budgets) == 0  # three sizes each
    few = [isoflop._budget(small.take(small.flops == c)) for c in np.unique(small.flops)]
    assert not any(budget.inside for budget in few)
    assert all(budget.inside for budget in isoflop.find_budgets(table))
    first, *rest = _isoflop_warnings(few[:2])
    assert "2 budgets with 4 sizes" in first and len(rest) == 2
    assert "lies beyond the sizes that were tried" in rest[0]
    falling = few[0].points
    falling = dataclasses.replace(falling, loss=5 - falling.params / 1e9)
    assert not isoflop._budget(falling).curved


# The command


@pytest.fixture(scope="module")
def command(cli, tmp_path_factory) -> tuple[SimpleNamespace, Path]:
    directory = tmp_path_factory.mktemp("fit")
    table = write(directory / "sweep.csv", ladder(0.003, 0, sizes=8, horizons=2))
    done = cli("fit", str(table), "--bootstraps", "20", "--out", str(directory / "out"))
    return done, directory / "out"


def test_fit_writes_laws_and_figures(command):
    done, out = command
    assert done.returncode == 0, done.stderr
    assert "16 runs, 8 sizes of model; 95% intervals of 20 bootstraps" in done.stdout
    written = {path.name for path in out.iterdir()}
    figures = {
        f"{name}.{kind}" for name in ("envelope", "optimum", "residuals") for kind in ("png", "svg")
    }
    assert written == figures | {"laws.json"}  # two horizons a size make no budget
    found = json.loads((out / "laws.json").read_text())
    a = found["approach_1"]["N_opt"]
    assert a["exponent_interval"][0] <= a["exponent"] <= a["exponent_interval"][1]
    law, samples, fitted = read_law(str(out / "laws.json"))
    assert fitted["parameters"] == pytest.approx((5e7, 1e10))
    assert "C x 100, N x" in done.stdout.replace("\n", " ")
    assert samples is not None
    assert vars(law) == found["approach_3"]["law"] and len(samples.E) == 20
    assert law.loss(1e9, 1e11) == pytest.approx(TRUE.loss(1e9, 1e11), rel=0.01)


def test_laws_go_from_fit_to_budget(cli, command):
    laws = str(command[1] / "laws.json")
    demand = ("--requests-per-day", "1e8", "--tokens-per-request", "300", "--months", "24")
    done = cli("budget", "--laws", laws, *demand, "--train-flops", "1e22", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["served"] == pytest.approx(1e8 * 300 * 2 * 365.25)
    saving = found["choices"]["flops"]["saving"]
    assert 0 < saving["interval"][0] < saving["value"] < saving["interval"][1] < 1
    assert found["choices"]["chinchilla"]["training FLOPs"]["value"] == pytest.approx(1e22)


@pytest.mark.parametrize(("name", "value"), [("A", 0), ("beta", -0.3), ("E", math.nan)])
def test_a_law_that_is_none_is_refused(cli, command, tmp_path, name, value):
    laws = json.loads((command[1] / "laws.json").read_text())
    laws["approach_3"]["law"][name] = value
    (tmp_path / "laws.json").write_text(json.dumps(laws))
    demand = ("--inference-tokens", "1e12", "--train-flops", "1e22")
    done = cli("budget", "--laws", tmp_path / "laws.json", *demand)
    assert done.returncode == 2 and f"no law of losses: {name} = " in done.stderr
