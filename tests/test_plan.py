"""Plans as far as nothing is compiled: arithmetic, refusals, and the cache's names."""

import importlib.util
import json
import lzma
import math
import re
import shutil
import types

import pytest

from helpers.paths import EXPERIMENTS
from helpers.plans import EXPERIMENT, SLICE, tiny
from llama_jax.config import MeshConfig, UserError
from llama_jax.hardware import GIB, parse_slice
from llama_jax.loading import load
from llama_jax.plan import analytic, slices, sources
from llama_jax.plan import compile as compiler
from llama_jax.plan.analytic import estimate_analytically
from llama_jax.plan.compile import OutOfMemory
from llama_jax.plan.plan import make_plan
from llama_jax.plan.text import lines

QUICKSTART = str(EXPERIMENTS / "quickstart.py")

# By arithmetic

pytestmark = pytest.mark.usefixtures("plan_cache")


def test_gpus_are_planned_by_arithmetic_and_say_so(plan):
    done = plan("--slice", "h100:4", "--price", "2", overrides=("execution.attention=cudnn",))
    assert done.returncode == 0, done.stderr
    assert "by arithmetic, nothing compiled" in done.stdout
    assert "no calibration for h100" in done.stdout
    assert "FITS by arithmetic" in done.stdout and " at 2 a chip and hour" in done.stdout


def test_the_memory_of_a_small_model_is_in_mib(cli):
    """Of a laptop's, no part is 0.00."""
    printed = cli("plan", "quickstart", "--slice", "h100:1").stdout
    (hbm,) = re.findall(r"HBM a chip +(.*) MiB of 74.51 GiB", printed)
    *parts, total = map(float, re.findall(r"\d+\.\d+", hbm))
    assert sum(parts) == pytest.approx(total, abs=0.03) and min(parts) > 1


def test_gpus_that_are_too_small_are_told_what_fits(plan):
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
            r"= 1 \* 3 \* 1 = 3, but v5e:2x2 has 4 devices; the nearest that works is --set",
        ),
        (["execution.micro_batches=3"], "nearest that works is --set execution.micro_batches=2"),
        (["execution.attention=cudnn"], "cudnn runs on NVIDIA GPUs, not on v5e:2x2; --set exec"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_one_that_can(changes, message):
    with pytest.raises(UserError, match=message) as error:
        tiny(*changes)
    assert "\n" not in str(error.value)


def test_a_mesh_that_is_not_set_takes_the_slice():
    for name, fsdp in (("v5e:1x1", 1), ("v5e:2x4", 8), ("h100:4", 4)):
        laid_out = slices.load(QUICKSTART, [], parse_slice(name))
        assert laid_out.execution.mesh == MeshConfig(fsdp=fsdp)
    laid_out = slices.load(QUICKSTART, ["execution.mesh.tensor=2"], parse_slice("v5e:2x4"))
    assert laid_out.execution.mesh == MeshConfig(fsdp=4, tensor=2)


def test_slices_that_are_missing_or_unknown_are_named(plan):
    done = plan("--set", "execution.slice=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "names no slice in execution.slice; give one, e.g. --slice v5e:8x8" in done.stderr
    done = plan("--slice", "v9:2x2")
    assert done.returncode == 2 and "no chip 'v9'" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_a_cache_file_of_another_form_is_as_none(monkeypatch):
    monkeypatch.setattr(compiler, "MAX_CACHED_BYTES", 1_000)
    answer = {"needed_bytes": 2.0, "limit_bytes": None, "message": "too large"}
    path = compiler._path(tiny(), SLICE)
    path.parent.mkdir(parents=True, exist_ok=True)

    def found(content: bytes):
        path.write_bytes(content)
        return compiler.cached(tiny(), SLICE)

    def kept(value) -> bytes:
        return lzma.compress(json.dumps(value).encode())

    assert found(kept(answer)) == OutOfMemory(**answer)
    for other in (
        {**answer, "needed_bytes": "2"},
        {**answer, "needed_bytes": math.inf},
        {**answer, "message": None},
        {**answer, "more": 1},
        {"hlo": "x"},
        [answer],
        None,
    ):
        assert found(kept(other)) is None, other
    assert found(kept({**answer, "message": "x" * 1_000})) is None
    assert found(kept(answer)[:-9]) is None and found(b"garbage") is None
    assert found(lzma.compress(b"[" * 900)) is None
    path.unlink()


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
