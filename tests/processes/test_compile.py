"""Plans of a tiny model that libtpu compiles, in processes of its own."""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from helpers.plans import EXPERIMENT, SLICE, TINY, needs_libtpu, sets, tiny
from llama_jax.config import UserError
from llama_jax.loading import load
from llama_jax.plan import compile as compiler
from llama_jax.plan import figure
from llama_jax.plan.analytic import estimate_analytically
from llama_jax.plan.compile import CompiledStep
from llama_jax.plan.plan import make_plan
from llama_jax.plan.text import lines

# The compiler's process, in the place of which another one fails

pytestmark = pytest.mark.usefixtures("plan_cache")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "the compiler ended on signal 6; change the mesh"),
        ("raise SystemExit('RuntimeError: no luck')", "process failed: RuntimeError: no luck"),
        ("import time; time.sleep(60)", "stopped after 1 s without an answer; try a smaller"),
    ],
)
def test_a_compiler_that_fails_is_one_sentence(code, message, monkeypatch):
    run = subprocess.Popen
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(compiler, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda _, **kwargs: run([sys.executable, "-c", code], **kwargs),
    )
    with pytest.raises(UserError, match=message) as error:
        compiler.compile_step(tiny(), SLICE)
    assert "\n" not in str(error.value)
    assert compiler.cached(tiny(), SLICE) is None


# Compiled


@pytest.fixture(scope="module")
def compiled(plan, plan_cache) -> dict:
    """The tiny model's plan, as JSON."""
    done = plan("--slice", SLICE.name, "--price", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert re.search(r"compiling llama_7b for v5e:2x2, \d+ s", done.stderr)
    (found,) = json.loads(done.stdout)
    return found


@needs_libtpu
def test_a_repeat_is_cached_and_compiles_nothing(compiled):
    sets = [word for text in TINY for word in ("--set", text)]
    command = [sys.executable, "-m", "llama_jax", "plan", EXPERIMENT, "--slice", SLICE.name, *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) < 200
    assert lines[0].startswith("llama_7b on v5e:2x2: FITS with ")
    assert "estimate, not a measurement" in done.stdout


@needs_libtpu
def test_json_has_what_the_text_has(compiled):
    e = tiny()
    answer = compiler.cached(e, SLICE)
    assert isinstance(answer, CompiledStep)
    found = make_plan("llama_7b", e, SLICE, answer, 2.0)
    assert compiled == json.loads(json.dumps(dataclasses.asdict(found)))
    assert sum(compiled["hbm_bytes"].values()) == compiled["hbm_peak_bytes"]
    assert sum(compiled["breakdown"].values()) == pytest.approx(compiled["step_seconds"])
    low, high = compiled["mfu"]
    assert 0 < low <= high < 1
    text = "\n".join(lines(found))
    assert f"FITS with {found.spare_share:.1%}" in text
    assert found.hbm_peak_bytes is not None and found.executed_flops is not None
    assert f"= {found.hbm_peak_bytes / 2**20:.2f} MiB of 15.75 GiB" in text
    assert f"x {found.executed_flops / found.model_flops:.3f}" in text
    # Exactly what arithmetic says, of what it knows exactly.
    rough = estimate_analytically(e, SLICE)
    assert compiled["hbm_bytes"]["weights"] == rough.weights_bytes
    assert compiled["hbm_bytes"]["optimizer"] == pytest.approx(rough.optimizer_bytes, abs=64)
    assert compiled["hbm_bytes"]["activations"] == rough.activations_bytes
    assert compiled["executed_flops"] == pytest.approx(rough.executed_flops, rel=0.2)


@needs_libtpu
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_drawn(compiled, tmp_path, suffix):
    e = tiny()
    found = make_plan("llama_7b", e, SLICE, compiler.cached(e, SLICE), None)
    figure.draw([found, found], tmp_path / f"plan{suffix}")
    assert (tmp_path / f"plan{suffix}").stat().st_size > 5000
    with pytest.raises(UserError, match="expected a name in .png or .svg"):
        figure.check_name(tmp_path / "plan.gif")


@needs_libtpu
def test_what_does_not_fit_comes_with_what_does(plan, cli, tmp_path, monkeypatch):
    large = ("data.batch_size=8192", "data.seq_len=1024", "execution.remat=everything")
    large = (*large, "run.gradient_dtype=bfloat16")
    done = plan("--slice", SLICE.name, overrides=large)
    assert done.returncode == 1, done.stderr
    assert re.match(r"llama_7b on v5e:2x2: DOES NOT FIT by \d+\.\d\d GiB", done.stdout)
    (words,) = re.findall(r"fits with +(--set .*) \(", done.stdout)
    change = tuple(words.replace("--set ", "").split())
    done = plan("--slice", SLICE.name, "--json", overrides=(*large, *change))
    assert done.returncode == 0 and "compiling" not in done.stderr
    (found,) = json.loads(done.stdout)
    # The arithmetic's band: what fills most of the memory is known.
    e = tiny(*large, *change)
    assert found["hbm_peak_bytes"] == pytest.approx(
        estimate_analytically(e, SLICE).peak_bytes, rel=0.35
    )

    # Nor is it booked.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    place = ("--slice", SLICE.name, "--zone", "z", "--project", "p", "--workdir", "gs://b/r")
    done = cli("pod", "create", EXPERIMENT, *sets(*large), *place, "--yes")
    assert done.returncode == 2
    assert f"--slice: llama_7b does not fit v5e:2x2; {words} (" in done.stderr
    assert list(tmp_path.iterdir()) == [] and "gcloud" not in done.stderr


@needs_libtpu
def test_a_search_writes_an_experiment_that_fits(tmp_path):
    out = tmp_path / "best.py"
    args = ("--search", "--slice", SLICE.name, "--compiles", "1", "--jobs", "1", "--out", str(out))
    fixed = [t for t in TINY if not t.startswith(("execution.remat", "execution.mesh"))]
    sets = [word for text in fixed for word in ("--set", text)]
    command = [sys.executable, "-m", "llama_jax", "plan", EXPERIMENT, *sets, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "compiling at most 1 programs, 1 at a time, for v5e:2x2" in done.stderr
    assert done.stdout.splitlines()[1].startswith("v5e:2x2  4 ")
    doc = ast.get_docstring(ast.parse(out.read_text()))
    assert doc and "FITS with" in doc and f"llama-jax train {out}" in doc
    assert load(str(out)).execution.slice == SLICE.name
    command = [sys.executable, "-m", "llama_jax", "plan", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0 and "compiling" not in done.stderr
    assert done.stdout.startswith("best on v5e:2x2: FITS")
