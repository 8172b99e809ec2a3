"""Plans: libtpu compiles a tiny model for slices that are not there, in processes of its own."""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from llama_jax.config import UserError
from llama_jax.experiment import load
from llama_jax.hardware import GIB, parse_slice
from llama_jax.plan import analytic, figure, slices, sources
from llama_jax.plan import compile as compiler
from llama_jax.plan.analytic import estimate_analytically
from llama_jax.plan.compile import CompiledStep, OutOfMemory
from llama_jax.plan.plan import make_plan
from llama_jax.plan.text import lines

EXPERIMENT = str(Path(__file__).parents[1] / "experiments/llama_7b.py")
SLICE = parse_slice("v5e:2x2")
TINY = [
    "model.num_layers=2",
    "model.embed_dim=128",
    "model.num_heads=1",
    "model.vocab_size=256",
    "execution.attention=splash",
    "execution.remat=qkv",
    "data.seq_len=256",
    "data.batch_size=8",
    "execution.micro_batches=1",
    "execution.compiler_options=()",
    "execution.mesh.replica=1",
    "execution.mesh.fsdp=4",
    "execution.mesh.tensor=1",
    "execution.mesh.sequence_parallel=false",
]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; it needs no TPU",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One for all tests here, and not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(*changes: str, target=SLICE):
    return slices.load(EXPERIMENT, [*TINY, *changes], target)


def plan(*args: str, overrides: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    sets = [word for text in (*TINY, *overrides) for word in ("--set", text)]
    command = [sys.executable, "-m", "llama_jax", "plan", EXPERIMENT, *sets, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


# By arithmetic


def test_gpus_are_planned_by_arithmetic_and_say_so():
    done = plan("--slice", "h100:4", "--price", "2", overrides=("execution.attention=cudnn",))
    assert done.returncode == 0, done.stderr
    assert "by arithmetic, nothing compiled" in done.stdout
    assert "no calibration for h100" in done.stdout
    assert "FITS by arithmetic" in done.stdout and " at 2 a chip and hour" in done.stdout


def test_gpus_that_are_too_small_are_told_what_fits():
    large = ("execution.attention=cudnn", "model.num_layers=32", "model.embed_dim=4096")
    large += ("data.batch_size=512", "data.seq_len=2048")
    done = plan("--slice", "h100:4", overrides=large)
    assert done.returncode == 1 and "DOES NOT FIT by" in done.stdout, done.stderr
    (remedy,) = re.findall(r"(?m)^  fits with +(--set .*) \(.*%", done.stdout)
    changes = tuple(remedy.replace("--set ", "").split())
    fits = plan("--slice", "h100:4", overrides=large + changes)
    assert fits.returncode == 0 and "FITS by arithmetic" in fits.stdout


def test_a_kernel_of_tpus_is_refused_on_gpus():
    message = "splash runs on TPUs, not on h100:4; --set execution.attention=cudnn"
    with pytest.raises(UserError, match=message):
        tiny(target=parse_slice("h100:4"))


def test_arithmetic_counts_parameters_exactly():
    e = load(
        EXPERIMENT,
        ["execution.mesh.fsdp=64", "execution.mesh.replica=1", "execution.mesh.tensor=1"],
    )
    figures = estimate_analytically(e, parse_slice("v5e:8x8"))
    norms = 65 * 4096
    assert figures.weights_bytes == 4 * ((6_738_415_616 - norms) // 64 + norms)
    assert figures.optimizer_bytes == 2 * figures.weights_bytes


def test_moves_to_the_host_take_time_and_room():
    pod = parse_slice("v5e:8x8")
    overrides = [
        "execution.remat=offload",
        "execution.mesh.fsdp=64",
        "execution.mesh.replica=1",
        "execution.mesh.tensor=1",
    ]
    few, many = (
        estimate_analytically(load(EXPERIMENT, [*overrides, f"execution.micro_batches={n}"]), pod)
        for n in (1, 8)
    )
    assert few.offloaded_bytes == 8 * many.offloaded_bytes > 80e9
    assert not analytic.host_holds(few.offloaded_bytes, pod)
    assert analytic.host_holds(many.offloaded_bytes, pod)
    assert analytic.host_seconds(16e9, micro_batches=2, compute_seconds=3) == 1 + 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["execution.mesh.fsdp=2"],
            r"= 1 \* 2 \* 1 = 2, but v5e:2x2 has 4 devices; .* is --set execution.mesh.fsdp=4",
        ),
        (
            ["execution.mesh.fsdp=3"],
            "expected a multiple of execution.mesh.fsdp=3; the nearest that works is --set",
        ),
        (["execution.micro_batches=3"], "nearest that works is --set execution.micro_batches=2"),
        (["execution.attention=cudnn"], "cudnn runs on NVIDIA GPUs, not on v5e:2x2; --set model"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_one_that_can(changes, message):
    with pytest.raises(UserError, match=message) as error:
        tiny(*changes)
    assert "\n" not in str(error.value)


def test_slices_that_are_missing_or_unknown_are_named():
    done = plan("--set", "execution.slice=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "names no slice in execution.slice; give one, e.g. --slice v5e:8x8" in done.stderr
    done = plan("--slice", "v9:2x2")
    assert done.returncode == 2 and "no chip 'v9'" in done.stderr
    assert "Traceback" not in done.stderr


# The compiler's process, in the place of which another one fails


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


def test_a_missing_libtpu_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="is not installed; pip install libtpu=="):
        compiler.compile_step(tiny("data.batch_size=4"), SLICE)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("... required for HLO temporaries (18.59G) exceeds available HBM (15.75G).", 18.59),
        ("Ran out of memory in memory space hbm. Used 16.20G of 15.75G hbm. Exceeded", 16.20),
    ],
)
def test_what_is_too_large_is_read(message, needed):
    found = compiler._out_of_memory(message)
    assert found == OutOfMemory(needed_bytes=needed * GIB, limit_bytes=15.75 * GIB, message=message)
    too_large = make_plan("tiny", tiny(), SLICE, found, None)
    assert not too_large.fits
    assert f"DOES NOT FIT by {needed - 15.75:.2f} GiB" in lines(too_large)[0]


@pytest.mark.parametrize(("peak", "expected"), [(2124, 118 + 738), (800, 800)])
def test_the_peak_is_of_the_device_where_the_host_holds_more(peak, expected):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=118, temp_size_in_bytes=738, peak_memory_in_bytes=peak
    )
    assert compiler._device_peak(memory) == expected


def test_the_cache_knows_what_a_program_is_made_of():
    path = compiler._path(tiny(), SLICE)
    assert path == compiler._path(tiny("optimizer.peak_lr=1", "data.seed=3"), SLICE)
    assert path != compiler._path(tiny("execution.remat=nothing"), SLICE)
    assert path != compiler._path(tiny(), parse_slice("v6e:2x2"))


@pytest.mark.parametrize(
    ("file", "part_of_the_step"),
    [
        *((f"{name}.py", True) for name in ("step", "loss", "attention", "sharding", "config")),
        *((f"{name}.py", False) for name in ("train", "plan/search", "data/store")),
    ],
)
def test_a_change_of_what_the_step_imports_changes_its_name_in_the_cache(
    file, part_of_the_step, monkeypatch, tmp_path
):
    package = tmp_path / "llama_jax"
    shutil.copytree(sources.PACKAGE, package, ignore=shutil.ignore_patterns("corpus"))
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(compiler, "_code", compiler._code.__wrapped__)  # which remembers nothing
    before = compiler._path(tiny(), SLICE)
    with (package / file).open("a") as source:
        source.write("# a change\n")
    assert (compiler._path(tiny(), SLICE) != before) == part_of_the_step


# Compiled


@pytest.fixture(scope="module")
def compiled(cache) -> dict:
    """The tiny model's plan, as JSON."""
    done = plan("--slice", SLICE.name, "--price", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert re.search(r"compiling llama_7b for v5e:2x2, \d+ s", done.stderr)
    (found,) = json.loads(done.stdout)
    return found


@needs_libtpu
@pytest.mark.slow
def test_a_repeat_is_cached_and_loads_no_jax(compiled):
    code = (
        "import sys; from llama_jax import cli; sys.argv[0] = 'llama-jax'\n"
        "try: cli.main()\n"
        "finally: print('jax' in sys.modules, file=sys.stderr)"
    )
    sets = [word for text in TINY for word in ("--set", text)]
    command = [sys.executable, "-c", code, "plan", EXPERIMENT, "--slice", SLICE.name, *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "False\n")
    lines = done.stdout.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) < 200
    assert lines[0].startswith("llama_7b on v5e:2x2: FITS with ")
    assert "estimate, not a measurement" in done.stdout


@needs_libtpu
@pytest.mark.slow
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
    assert f"= {found.hbm_peak_bytes / GIB:.2f} of 15.75 GiB" in text
    assert f"x {found.executed_flops / found.model_flops:.3f}" in text
    # Exactly what arithmetic says, of what it knows exactly.
    rough = estimate_analytically(e, SLICE)
    assert compiled["hbm_bytes"]["weights"] == rough.weights_bytes
    assert compiled["hbm_bytes"]["optimizer"] == pytest.approx(rough.optimizer_bytes, abs=64)
    assert compiled["hbm_bytes"]["activations"] == rough.activations_bytes
    assert compiled["executed_flops"] == pytest.approx(rough.executed_flops, rel=0.2)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_is_drawn(compiled, tmp_path, suffix):
    e = tiny()
    found = make_plan("llama_7b", e, SLICE, compiler.cached(e, SLICE), None)
    figure.draw([found, found], tmp_path / f"plan{suffix}")
    assert (tmp_path / f"plan{suffix}").stat().st_size > 5000
    with pytest.raises(UserError, match="expected a name in .png or .svg"):
        figure.check_name(tmp_path / "plan.gif")


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_comes_with_what_does():
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


@needs_libtpu
@pytest.mark.slow
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=os.environ)
    assert done.returncode == 0 and "compiling" not in done.stderr
    assert done.stdout.startswith("best on v5e:2x2: FITS")
