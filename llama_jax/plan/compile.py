"""The compiled train step of an experiment for a slice that need not be there.

libtpu compiles it in a process of its own, because some requests abort the whole process. What it
says is kept in a cache, by a hash of everything that the program is made of: a repeat loads no JAX.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import lzma
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.config import BATCH_KEYS, Experiment, UserError
from llama_jax.experiment import from_json, to_json
from llama_jax.hardware import GIB, Slice, parse_slice
from llama_jax.plan.sources import import_closure
from llama_jax.process import child_command, end_with_parent
from llama_jax.run.workdir import write_whole

log = logging.getLogger(__name__)

MAX_CACHED_BYTES = 2**28  # of JSON; a program takes about a megabyte
TIMEOUT_SECONDS = 1800.0  # twenty times what 7B takes on an idle core
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled train step; bytes are of one device."""

    hlo: str  # scheduled, as one device executes it
    mesh_axes: dict[str, int]  # name -> size, in the order of the mesh
    weights_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    activations_bytes: int  # kept by the forward pass for the backward pass
    offloaded_bytes: int  # likewise, but in the memory of the host
    argument_bytes: int
    temp_bytes: int
    output_bytes: int
    alias_bytes: int  # of the output, in the memory of the arguments
    peak_bytes: int  # of HBM
    host_temp_bytes: int
    compile_seconds: float
    compile_rss_bytes: int  # resident memory of the compiling process, at its peak
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The compiler's answer to a step that does not fit; bytes are of one device."""

    needed_bytes: float | None  # None: it did not say
    limit_bytes: float | None
    message: str


CompileResult = CompiledStep | OutOfMemory
OnProgress = Callable[[float], None]  # called with the seconds so far, about once a second


def compile_step(
    experiment: Experiment, target: Slice, on_progress: OnProgress = lambda _: None
) -> CompileResult:
    """Return what the compiler says of the experiment's train step, from the cache if it is there.

    Raise UserError if it says nothing: it is not installed, it aborts, or it takes too long.
    """
    result = cached(experiment, target)
    if result is None:
        result = _compile_in_child(experiment, target, on_progress)
        try:
            _write(_path(experiment, target), result)
        except OSError as e:
            log.warning("the plan is not kept, a repeat compiles again: %s", e)
    return result


# The cache


def cached(experiment: Experiment, target: Slice) -> CompileResult | None:
    """Return what the cache has of the experiment's train step, None if nothing. Loads no jax."""
    try:
        with lzma.open(_path(experiment, target)) as file:
            text = file.read(MAX_CACHED_BYTES + 1)
        fields: Any = json.loads(text) if len(text) <= MAX_CACHED_BYTES else None
    except (OSError, EOFError, lzma.LZMAError, ValueError, RecursionError, MemoryError):
        return None  # absent, or damaged: it is written again
    if not (_is_a(CompiledStep, fields) or _is_a(OutOfMemory, fields)):
        return None
    return _result(fields)


def _is_a(kind: type[CompileResult], fields: Any) -> bool:
    """Say whether JSON has the fields of a result, each of its type."""
    types = typing.get_type_hints(kind)
    if not isinstance(fields, dict) or fields.keys() != types.keys():
        return False
    return all(_fits(value, types[name]) for name, value in fields.items())


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value is of a type: str, int, float, dict[str, T], or a union of these."""
    if typing.get_origin(hint) is dict:
        _, item = typing.get_args(hint)
        return isinstance(value, dict) and all(_fits(v, item) for v in value.values())
    if options := typing.get_args(hint):
        return any(_fits(value, option) for option in options)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def cache_directory() -> Path:
    """Return where plans are kept. Raise OSError for a user without a home."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as e:
        raise OSError("there is no home directory; XDG_CACHE_HOME names another place") from e
    return Path(home) / "llama_jax" / "plan"


def _path(experiment: Experiment, target: Slice) -> Path:
    """Return the file in the cache, named by the hash of all that the step is made of."""
    data, execution = experiment.data, experiment.execution
    without_reasons = [(name, value) for name, value, _ in execution.compiler_options]
    parts = {
        "slice": target.name,
        "model": dataclasses.asdict(experiment.model),
        "batch": (data.seq_len, data.batch_size, experiment.run.gradient_dtype),
        "execution": dataclasses.asdict(execution)
        | {"slice": None, "compiler_options": without_reasons},
        "program": _code(),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_directory() / f"{digest}.json.xz"


@functools.cache
def _code() -> list[str]:
    """Return what makes the step of an experiment: our sources, as far as this module imports them,
    and the versions of the packages they use."""
    files = import_closure("llama_jax.plan.compile")
    sources = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return [*sources, *(f"{name} {version}" for name, version in versions().items())]


def versions() -> dict[str, str]:
    """Return the versions of the PACKAGES that make the step."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _write(path: Path, result: CompileResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = lzma.compress(json.dumps(dataclasses.asdict(result)).encode(), preset=1)
    write_whole(epath.Path(path), data)


def _result(fields: dict[str, Any]) -> CompileResult:
    return CompiledStep(**fields) if "hlo" in fields else OutOfMemory(**fields)


# The process that compiles


def _compile_in_child(
    experiment: Experiment, target: Slice, on_progress: OnProgress
) -> CompileResult:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"slice: libtpu, the compiler for {target.name}, is not installed; "
            "pip install libtpu==0.0.42.1 (no TPU is needed)"
        )
    request = json.dumps({"experiment": to_json(experiment), "slice": target.name})
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = child_command("llama_jax.plan.compile")
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
    ):
        stdin.write(request)
        stdin.seek(0)
        child = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment
        )
        try:
            _wait(child, on_progress)
        finally:
            child.kill()
            child.wait()
        stdout.seek(0)
        stderr.seek(0)
        reply, noise = stdout.read(), stderr.read()
    if child.returncode < 0:
        raise UserError(
            f"{target.name}: the compiler ended on signal {-child.returncode}"
            f"{_reason(noise)}; change the mesh, remat or compiler_options of execution"
        )
    if child.returncode != 0:
        raise UserError(f"{target.name}: the compiler's process failed{_reason(noise)}")
    fields = json.loads(reply.splitlines()[-1])
    if "error" in fields:
        raise UserError(fields["error"])
    return _result(fields)


def _wait(child: subprocess.Popen[bytes], on_progress: OnProgress) -> None:
    start = time.monotonic()
    while True:
        try:
            child.wait(1.0)
            return
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - start
            on_progress(seconds)
            if seconds > TIMEOUT_SECONDS:
                raise UserError(
                    f"the compiler was stopped after {seconds:,.0f} s without an answer; "
                    "try a smaller slice or model, or a less busy machine"
                ) from None


def _reason(noise: str) -> str:
    """Return the line of a dying process that says most, as the end of a sentence."""
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} |F0000|\*\*\* Check fail", line)]
    telling = fatal or [line for line in lines if "rror" in line] or lines
    return f": {telling[-1][:200]}" if telling else ""


# Within that process


def main() -> None:
    """Read a request from stdin, write a result, or {"error": a sentence}, to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # or a compiler would first come to its end
    end_with_parent(int(sys.argv[1]))
    request = json.load(sys.stdin)
    experiment = from_json(request["experiment"])
    try:
        fields = dataclasses.asdict(_compile(experiment, parse_slice(request["slice"])))
    except UserError as e:
        fields = {"error": str(e)}
    print(json.dumps(fields))


def _compile(experiment: Experiment, target: Slice) -> CompileResult:
    import jax

    from llama_jax.sharding import make_mesh
    from llama_jax.step import make_train_step, next_token_loss

    start = time.monotonic()
    mesh = make_mesh(experiment.execution.mesh, devices(target))
    with jax.set_mesh(mesh):
        state, batch = _arguments(experiment, mesh)
        loss = next_token_loss(experiment.execution)
        traced = make_train_step(experiment, loss).trace(state, batch)
        try:
            compiled = traced.lower().compile()
        except (RuntimeError, ValueError, NotImplementedError) as e:
            if "RESOURCE_EXHAUSTED" in str(e):
                return _out_of_memory(str(e))
            raise UserError(
                f"{target.name}: the compiler refused the step: {str(e).splitlines()[0][:300]}"
            ) from e
    forward, backward, sums = _stacked(traced.jaxpr.jaxpr)
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    assert memory and hlo
    return CompiledStep(
        hlo=hlo,
        mesh_axes=dict(zip(mesh.axis_names, mesh.devices.shape, strict=True)),
        weights_bytes=_device_bytes(jax.tree.leaves(state.params)),
        optimizer_bytes=_device_bytes(jax.tree.leaves(state.opt_state)),
        gradients_bytes=_device_bytes(backward) + _device_bytes(sums),
        activations_bytes=_device_bytes([x for x in forward if not _on_host(x)]),
        offloaded_bytes=_device_bytes([x for x in forward if _on_host(x)]),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        peak_bytes=_device_peak(memory),
        host_temp_bytes=memory.host_temp_size_in_bytes,
        compile_seconds=time.monotonic() - start,
        compile_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        versions=versions(),
    )


def devices(target: Slice) -> list[Any]:
    """Return the devices of a slice that need not be there, to compile for. Raise UserError for
    GPUs, and without libtpu, which aborts the whole process on some errors."""
    chip, shape = target.chip, target.shape
    if not chip.dimensions:
        raise UserError(f"slice: {target.name}: programs are compiled for TPUs only")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no lock: no TPU is touched
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor is the metadata server of a TPU VM
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    flat = (*shape, 1)[:3]  # libtpu counts three dimensions
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip.name}:{'x'.join(map(str, shape))}",
            chips_per_host_bounds=(min(flat[0], 2), min(flat[1], 2), 1),
            wrap=(*chip.wraparound(shape), False)[:3],
            num_slices=target.num_slices,
            **options,
        )
    except RuntimeError as e:
        if "TPU support not installed" not in str(e):
            raise
        raise UserError(
            f"slice: libtpu, the compiler for {target.name}, is not installed; "
            "pip install -r requirements-tpu.txt (no TPU is needed)"
        ) from e
    return list(topology.devices)


def _arguments(experiment: Experiment, mesh: Any) -> tuple[Any, dict[str, Any]]:
    """Return the train step's state and batch, without their numbers."""
    import jax
    import jax.numpy as jnp

    from llama_jax.sharding import abstract, batch_sharding
    from llama_jax.step import init_state

    A, T = experiment.execution.micro_batches, experiment.data.seq_len
    x_ABT = jax.ShapeDtypeStruct(
        (A, experiment.data.batch_size // A, T),
        jnp.int32,
        sharding=batch_sharding(mesh, experiment.execution.mesh, "ABT"),
    )
    return abstract(lambda: init_state(experiment)), dict.fromkeys(BATCH_KEYS, x_ABT)


def _stacked(jaxpr: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return abstract arrays: (what the layers' forward pass keeps, gradients of the layers, sums
    over micro-batches).

    The layers are the scans that are neither on one device (the loss) nor around others (the
    micro-batches). The backward pass is the one in reverse; what a scan stacks are the outputs
    after its carry.
    """
    forward, backward, sums = [], [], []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "shard_map":
            continue
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        found = [_stacked(one) for one in inner if hasattr(one, "eqns")]
        if eqn.primitive.name == "scan":
            outputs = [v.aval for v in eqn.outvars]
            body = eqn.params["jaxpr"].jaxpr
            # What is stacked has a dimension more outside than in the body, the carry does not.
            num_carry = sum(
                output.ndim == v.aval.ndim for output, v in zip(outputs, body.outvars, strict=True)
            )
            if any(f or b for f, b, _ in found):
                sums += outputs[:num_carry]
            else:
                (backward if eqn.params["reverse"] else forward).extend(outputs[num_carry:])
        for f, b, s in found:
            forward, backward, sums = forward + f, backward + b, sums + s
    return forward, backward, sums


def _on_host(x: Any) -> bool:
    return "host" in str(getattr(x, "memory_space", "")).lower()


def _device_bytes(arrays: list[Any]) -> int:
    """Return the bytes of one device's part of arrays, without the padding of tiles."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in arrays)


def _device_peak(memory: Any) -> int:
    """Return the HBM that the step needs at the most. libtpu's peak is that of the device or of the
    host, whichever is more; arguments and temporaries together are HBM without any reuse between
    temporaries."""
    return min(
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    )


def _out_of_memory(message: str) -> OutOfMemory:
    """Read libtpu's "... required for HLO temporaries (18.59G) exceeds available HBM (15.75G)", or
    "Used 16.20G of 15.75G hbm"."""
    match = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
    match = match or re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", message)
    needed, limit = (float(text) * GIB for text in match.groups()) if match else (None, None)
    return OutOfMemory(needed_bytes=needed, limit_bytes=limit, message=message.splitlines()[0])


if __name__ == "__main__":
    main()
