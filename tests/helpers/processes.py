"""Processes of their own: llama-jax, Python that may import these helpers, and other programs."""

import importlib.metadata
import importlib.util
import os
import socket
import subprocess
import sys

import pytest

from helpers.paths import ROOT

XLA_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it
    # The step of a tiny model compiles in a third of the time, and runs as fast as it needs to.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# What a training process may load: its last line says whether TensorFlow was.
TELLING = """
import sys
from llama_jax.cli import main
try:
    main()
finally:
    print("loaded TensorFlow:", "tensorflow" in sys.modules)
"""


def environment() -> dict[str, str]:
    """Return this process's environment with one device, as outside of tests.

    XLA compiles fast programs slowly and slow ones fast: what trains a few steps wants the latter.
    """
    # An empty entry would be the current directory.
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": XLA_FLAGS}
    return os.environ | fast | {"PYTHONPATH": os.pathsep.join(path)}


def llama_jax(*args) -> subprocess.CompletedProcess:
    """Run llama-jax in a process of its own."""
    command = [sys.executable, "-m", "llama_jax", *map(str, args)]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)


def telling(*args) -> list[str]:
    """Return the command of a llama-jax that says at its end whether it loaded TensorFlow."""
    return [sys.executable, "-c", TELLING, *map(str, args)]


def run_telling(*args) -> subprocess.CompletedProcess:
    """Run that, on one device."""
    return subprocess.run(telling(*args), env=environment(), capture_output=True, text=True)


def child(code: str, *args, **options) -> subprocess.CompletedProcess:
    """Run Python code that may import these helpers, with as many devices as here."""
    env = os.environ | {"PYTHONPATH": environment()["PYTHONPATH"]}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, **options)


def start_pod(
    *args,
    of_second: tuple = (),
    code_of_second: str | None = None,
    second_through: tuple[str, ...] = (),
) -> list[subprocess.Popen[str]]:
    """Start the two processes of a pod, each with half of the devices. Their stdout has all.

    of_second: arguments that only the second has; code_of_second: where its llama_jax lies;
    second_through: a command that starts it.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    mesh = ("--set", "execution.mesh.fsdp=2") if args[0] == "train" else ()
    pod = []
    for index, own in enumerate(((), of_second)):
        command = [sys.executable, "-m", "llama_jax", *args, *mesh, *own]
        through = second_through if index else ()
        pod.append(
            subprocess.Popen(
                [*through, *map(str, command), "--multihost", f"{address},2,{index}"],
                cwd=code_of_second if index else None,  # of which -m takes the package
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return pod


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def interpreter(client: str) -> str:
    """Return the Python that has a client; skip the test if there is none."""
    if client in ("transformers", "meta"):
        if not has_torch():
            pytest.skip("torch is not installed")
        return sys.executable
    environment = {"transformers4": "litgpt"}.get(client, client)  # litgpt needs transformers 4
    python = ROOT / f".venv-{environment}/bin/python"
    if not python.exists():
        pytest.skip(f"no environment .venv-{environment}: make clients")
    return str(python)
