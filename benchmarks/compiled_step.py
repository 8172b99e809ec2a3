"""The train steps of this code and of MaxText, compiled for slices that need not be there.

    python benchmarks/compiled_step.py [--only 7b-v5e ...] [--python python3.12]

Both are compiled in MaxText's environment, by the same jax and libtpu, each in a process of its
own, and estimated by llama_jax.plan.estimate: no figure is a measurement. Either step is one
micro-batch, with the same number of tokens per chip. Ours takes the slice's mesh, rematerialisation
and compiler options from its experiment, but for what ROWS says, MaxText's the flags that it
recommends and, for 65B, for which it recommends no more, the fastest that were tried by the same
estimate.

The environment, of 2.4 GB, and the programs stay in ~/.cache/llama_jax/maxtext-0.2.5. On two cores
the first run takes about 20 minutes. MaxText needs Python 3.12.
"""

import argparse
import dataclasses
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import STDOUT

from rich.console import Console
from rich.table import Table

from llama_jax import config
from llama_jax.experiment import to_json
from llama_jax.flops import model_flops_per_token
from llama_jax.hardware import GIB, parse_slice
from llama_jax.loading import load
from llama_jax.plan.compile import cache_directory, devices, versions
from llama_jax.plan.estimate import Estimate, estimate, expected_mfu
from llama_jax.plan.sources import import_closure

MAXTEXT = "0.2.5"
REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = cache_directory().parent / f"maxtext-{MAXTEXT}"
BIN = CACHE / "venv" / "bin"

V4_FLAGS = "--xla_enable_async_all_gather=true TPU_MEGACORE=MEGACORE_DENSE"
# Without what MaxText recommends for the SparseCores, which changes nothing here, and
# ..._fuse_all_gather=true, which its libtpu rejects on v5p.
V5P_FLAGS = """
--xla_tpu_megacore_fusion_allow_ags=false --xla_enable_async_collective_permute=true
--xla_tpu_enable_ag_backward_pipelining=true --xla_tpu_enable_data_parallel_all_reduce_opt=true
--xla_tpu_data_parallel_opt_different_sized_ops=true --xla_tpu_enable_async_collective_fusion=true
--xla_tpu_enable_async_collective_fusion_multiple_steps=true
--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true
"""
V5E_FLAGS = """
--xla_tpu_enable_data_parallel_all_reduce_opt=true
--xla_tpu_data_parallel_opt_different_sized_ops=true --xla_tpu_enable_async_collective_fusion=true
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
--xla_tpu_enable_async_collective_fusion_multiple_steps=true
--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true
"""
SETTINGS = """
max_target_length=2048 attention=flash weight_dtype=float32 dtype=bfloat16 opt_type=adamw
enable_checkpointing=false dataset_type=synthetic reuse_example_batch=1 use_iota_embed=true steps=15
"""
LLAMA_7B = "model_name=llama2-7b"
LLAMA_65B = """
model_name=llama2-70b override_model_config=true base_emb_dim=8192 base_num_decoder_layers=80
base_num_query_heads=64 base_num_kv_heads=64 base_mlp_dim=22016 head_dim=128 vocab_size=32000
allow_split_physical_axes=true ici_fsdp_parallelism=64
"""
LEGEND = """\
Estimates of compiled programs. HBM: of one chip, at the most. host: what a chip keeps in the memory
of its host, to and from which transfers are taken to be hidden. executed: FLOPs over model FLOPs.
exposed: share of the step in which a chip only communicates. Attention kernels are taken to reach
the same share of the peak. time, HBM: ours over MaxText's. limit: model FLOPs at the peak."""


@dataclasses.dataclass(frozen=True)
class Row:
    slice: str
    experiment: str
    overrides: tuple[str, ...]  # of the experiment
    tokens_per_chip: int
    topology: str  # the slice, as MaxText calls it
    flags: str
    settings: str  # MaxText's, besides SETTINGS


# 7B with the remat policy that takes no more memory than MaxText: that of the experiment is faster.
ROWS = {
    "7b-v5e": Row(
        *("v5e:8x8", "llama_7b", ("execution.remat=offload",), 8192, "v5e-64", V5E_FLAGS),
        f"{LLAMA_7B} per_device_batch_size=4 remat_policy=save_qkv_proj",
    ),
    "7b-v4": Row(
        *("v4:4x4x4", "llama_7b", ("execution.remat=qkv_offload",), 16384, "v4-128", V4_FLAGS),
        f"{LLAMA_7B} per_device_batch_size=8 remat_policy=save_qkv_proj",
    ),
    "7b-v5p": Row(
        *("v5p:4x4x4", "llama_7b", (), 16384, "v5p-128", V5P_FLAGS),
        f"{LLAMA_7B} per_device_batch_size=8 remat_policy=minimal",
    ),
    # The fastest of (data, fsdp, tensor) = (8, 64, 4), (32, 64, 1), (16, 64, 2), (1, 2048, 1) with
    # remat_policy full and, for the fastest of these, of save_dot_except_mlpwi.
    "65b-v4": Row(
        *("v4:8x16x16", "llama_65b", (), 2048, "v4-4096", V4_FLAGS),
        f"{LLAMA_65B} per_device_batch_size=1 remat_policy=save_dot_except_mlpwi "
        "ici_data_parallelism=16 ici_tensor_parallelism=2",
    ),
    # Of (4, 64, 4), (16, 64, 1), (4, 256, 1), (8, 64, 2), (1, 1024, 1) with save_qkv_proj and, for
    # the first and the fastest, of save_dot_except_mlpwi and minimal.
    "65b-v5p": Row(
        *("v5p:8x8x16", "llama_65b", (), 4096, "v5p-2048", V5P_FLAGS),
        f"{LLAMA_65B} per_device_batch_size=2 remat_policy=minimal "
        "ici_data_parallelism=8 ici_tensor_parallelism=2",
    ),
}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--python", default="python3.12", help="for MaxText's environment")
    args = parser.parse_args()
    make_environment(args.python)
    table = Table(title="One train step, compiled: estimates, not measurements")
    columns = "run|program|HBM GiB|host GiB|step s|executed|exposed|expected MFU|time|HBM"
    for column in columns.split("|"):
        table.add_column(column, justify="left" if column in ("run", "program") else "right")
    failed = []
    for name in args.only:
        row = ROWS[name]
        try:
            add_rows(table, row, compile_ours(name, row), compile_maxtext(name, row))
        except subprocess.CalledProcessError as e:
            failed.append(f"{name}: exit status {e.returncode}")
    Console(width=120).print(table)
    print(LEGEND)
    if failed:
        sys.exit("\n".join(failed))


def make_environment(python: str) -> None:
    stamp = CACHE / "ready"
    if stamp.exists():
        return
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--clear", "--python", python, str(BIN.parent))
    maxtext = f"maxtext[tpu]=={MAXTEXT}"
    run(*uv, "pip", "install", "--python", str(BIN / "python"), maxtext, "--resolution=lowest")
    stamp.touch()


def run(*command: str) -> None:
    """Print the command, run it, and print what it says if it fails."""
    print(f"$ {shlex.join(command)}", flush=True)
    try:
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=STDOUT)
    except subprocess.CalledProcessError as e:
        print(e.stdout[-3000:], file=sys.stderr)
        raise


# The two programs: NAME.json and NAME.hlo in CACHE


def compile_maxtext(name: str, row: Row) -> Path:
    settings = f"{row.settings} {SETTINGS}".split()
    flags = f"--flags={' '.join(row.flags.split())}"
    script = str(REPOSITORY / "benchmarks" / "maxtext_compile.py")
    prefix = CACHE / f"{name}-maxtext-{digest(flags, *settings)}"
    if not prefix.with_suffix(".json").exists():
        run(str(BIN / "python"), script, row.topology, str(prefix), flags, *settings)
    return prefix


def compile_ours(name: str, row: Row) -> Path:
    experiment = experiment_of(row)
    sources = [file.read_text() for file in import_closure("llama_jax.plan.compile")]
    prefix = CACHE / f"{name}-ours-{digest(to_json(experiment), *sources)}"
    if not prefix.with_suffix(".json").exists():
        path = f"PYTHONPATH={REPOSITORY}:{REPOSITORY / 'benchmarks'}"
        code = f"import compiled_step; compiled_step.write_ours({name!r}, {str(prefix)!r})"
        run("env", path, "JAX_PLATFORMS=cpu", str(BIN / "python"), "-c", code)
    return prefix


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def experiment_of(row: Row) -> config.Experiment:
    """Return the experiment on the row's slice, with one micro-batch."""
    rows = row.tokens_per_chip * parse_slice(row.slice).num_chips // 2048
    overrides = [*row.overrides, "execution.micro_batches=1", f"data.batch_size={rows}"]
    return load(str(REPOSITORY / "experiments" / f"{row.experiment}.py"), overrides, row.slice)


def write_ours(name: str, prefix: str) -> None:
    """Compile our step and write it; in a process of MaxText's environment."""
    import jax
    import jax.numpy as jnp

    from llama_jax.sharding import abstract, batch_sharding, make_mesh
    from llama_jax.step import init_state, make_train_step, next_token_loss

    row = ROWS[name]
    experiment = experiment_of(row)
    mesh = make_mesh(experiment.execution.mesh, devices(parse_slice(row.slice)))
    with jax.set_mesh(mesh):
        x_ABT = jax.ShapeDtypeStruct(
            (1, experiment.data.batch_size, experiment.data.seq_len),
            jnp.int32,
            sharding=batch_sharding(mesh, experiment.execution.mesh, "ABT"),
        )
        batch = dict.fromkeys(config.BATCH_KEYS, x_ABT)
        state = abstract(lambda: init_state(experiment))
        compiled = (
            make_train_step(experiment, next_token_loss(experiment.execution))
            .lower(state, batch)
            .compile()
        )
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    assert memory and hlo
    record = {
        "experiment": dataclasses.asdict(experiment),
        "versions": versions(),
        "mesh_axes": dict(mesh.shape),
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "host_temp_bytes": memory.host_temp_size_in_bytes,
    }
    Path(f"{prefix}.hlo").write_text(hlo)
    Path(f"{prefix}.json").write_text(json.dumps(record, indent=1) + "\n")


# The table


def add_rows(table: Table, row: Row, ours: Path, maxtext: Path) -> None:
    chip = parse_slice(row.slice).chip
    experiment = experiment_of(row)
    flops = row.tokens_per_chip * model_flops_per_token(experiment.model, experiment.data.seq_len)
    found = [read(row, prefix) for prefix in (ours, maxtext)]
    (mine, my_hbm, _), (its, its_hbm, _) = found
    ratios = f"{mine.step_seconds / its.step_seconds:.2f}", f"{my_hbm / its_hbm:.2f}"
    names = (f"{row.experiment} {row.slice}", "llama_jax"), ("", f"MaxText {MAXTEXT}")
    for name, (result, hbm, host) in zip(names, found, strict=True):
        low, high = expected_mfu(result, flops, chip)
        table.add_row(
            *name,
            f"{hbm / GIB:.1f}",
            f"{host / GIB:.1f}",
            f"{result.step_seconds:.2f}",
            f"{result.executed_flops / flops:.2f}",
            f"{result.exposed_share:.0%}",
            f"{low:.0%} to {high:.0%}",
            *(ratios if result is mine else ()),
        )
    limit = f"{flops / chip.peak_flops:.2f}"
    table.add_row(
        f"{row.tokens_per_chip:,} tokens/chip", "limit", "", "", limit, "1.00", "", "100%"
    )
    table.add_section()


def read(row: Row, prefix: Path) -> tuple[Estimate, int, int]:
    """Return a program's estimate, and its bytes of HBM and of the host's memory."""
    record = json.loads(prefix.with_suffix(".json").read_text())
    hlo = prefix.with_suffix(".hlo").read_text()
    where = parse_slice(row.slice)
    result = estimate(hlo, where.chip, record["mesh_axes"], where.shape)
    # libtpu's peak is that of HBM or of the host's memory, whichever is more.
    hbm = min(record["peak_bytes"], record["argument_bytes"] + record["temp_bytes"])
    return result, hbm, record["host_temp_bytes"]


if __name__ == "__main__":
    main()
