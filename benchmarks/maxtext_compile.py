"""Compile MaxText's train step for TPUs that need not be there, and keep the scheduled program.

    python benchmarks/maxtext_compile.py v5e-64 out/7b model_name=llama2-7b per_device_batch_size=4

runs MaxText's own train_compile.main, with its configuration, mesh, shardings and compiler options,
and writes out/7b.hlo, compiled.as_text(), and out/7b.json: memory, mesh, MaxText's count of FLOPs,
the versions and the command. The first argument is MaxText's name of the hardware: v5e-64, v4-128
or v5p-128, where v4 and v5p count cores, two to a chip. Flags that a recipe exports as
LIBTPU_INIT_ARGS go into --flags.

Runs in MaxText's environment, which compiled_step.py makes.
"""

import argparse
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

PACKAGES = ("maxtext", "jax", "jaxlib", "libtpu", "flax")


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topology", help="MaxText's compile_topology")
    parser.add_argument("prefix", type=Path, help="of the two files")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of MaxText's base.yml")
    parser.add_argument("--flags", default="", help="LIBTPU_INIT_ARGS")
    args = parser.parse_intermixed_args()
    os.environ |= {
        "LIBTPU_INIT_ARGS": args.flags,
        "JAX_PLATFORMS": "cpu",  # libtpu is asked for by name
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "HF_HUB_OFFLINE": "1",
    }
    compiled, config, mesh, seconds = compile_step(args.topology, args.overrides)
    memory = compiled.memory_analysis()
    record = {
        "topology": args.topology,
        "overrides": args.overrides,
        "flags": args.flags,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "mesh_axes": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "tokens_per_device": config.per_device_batch_size * config.max_target_length,
        "model_flops": model_flops(config),
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "host_temp_bytes": memory.host_temp_size_in_bytes,
        "compile_seconds": seconds,
    }
    args.prefix.parent.mkdir(parents=True, exist_ok=True)
    args.prefix.with_suffix(".hlo").write_text(compiled.as_text())
    args.prefix.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def compile_step(topology: str, overrides: list[str]) -> tuple[Any, Any, Any, float]:
    """Return (compiled, MaxText's configuration, mesh, seconds), as they pass jit_and_compile."""
    import maxtext  # reads LIBTPU_INIT_ARGS  # pyright: ignore[reportMissingImports]
    from maxtext.trainers.pre_train import train_compile  # pyright: ignore[reportMissingImports]

    jit_and_compile = train_compile.jit_and_compile
    found = []

    def keep(*args: Any) -> Any:
        mesh, config = args[3], args[8]
        start = time.perf_counter()
        compiled = jit_and_compile(*args)
        found.append((compiled, config, mesh, time.perf_counter() - start))
        return compiled

    train_compile.jit_and_compile = keep
    assert maxtext.__file__
    base = str(Path(maxtext.__file__).parent / "configs" / "base.yml")
    where = [f"compile_topology={topology}", "compile_topology_num_slices=1"]
    train_compile.main(["train_compile", base, *where, *overrides])
    return found[0]


def model_flops(config: Any) -> float:
    """Return the FLOPs of one device and step, attention counted causally."""
    from maxtext.utils import maxtext_utils  # pyright: ignore[reportMissingImports]

    total, _, _ = maxtext_utils.calculate_tflops_training_per_device(config, log=False)
    return total * 1e12


if __name__ == "__main__":
    main()
