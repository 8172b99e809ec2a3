"""Checkpoints for the tests of formats, and how they are exported."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from llama_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig
from llama_jax.data.schedule import Schedule
from llama_jax.experiment import load, override
from llama_jax.formats import convert, native
from llama_jax.model import Llama
from llama_jax.run import checkpoint
from llama_jax.run.workdir import steps
from llama_jax.sharding import make_mesh
from llama_jax.step import init_state
from llama_jax.train import train

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
MHA = ModelConfig(
    num_layers=3,
    embed_dim=64,
    num_heads=4,
    vocab_size=2080,  # 32 rows more than the tokenizer has pieces
    init_std=1 / 8,
    compute_dtype="float32",
)
GQA = dataclasses.replace(
    MHA, num_kv_heads=2, norm_eps=1e-5, mlp_dim_override=160, rope_theta=5_000.0
)


def save_random(cfg: ModelConfig, workdir: Path) -> None:
    """Save a checkpoint of random weights, norms too, which are exact in bf16.

    Queries and keys are large, because a wrong rotary layout hardly shows with small ones.
    """
    experiment = load(str(ROOT / "experiments/quickstart.py"))
    experiment = dataclasses.replace(experiment, model=cfg)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        state = init_state(experiment)
        state.params.embed_VD[...] *= 1 / cfg.init_std  # as large as what the layers add to it
        state.params.layers.attn.wq_DGRK[...] *= 3
        state.params.layers.attn.wk_DGK[...] *= 3
        keys = nnx.Rngs(params=1)
        for norm in (
            state.params.final_norm,
            state.params.layers.attn_norm,
            state.params.layers.mlp_norm,
        ):
            norm.scale_D[...] += 0.2 * jax.random.normal(keys.params(), norm.scale_D.shape)
        model = jax.tree.map(lambda w: w.astype("bfloat16").astype("float32"), state.params)
        with checkpoint.open_manager(epath.Path(workdir), experiment.upkeep) as manager:
            state = dataclasses.replace(state, params=model)
            checkpoint.save(manager, state, experiment, Schedule(), digest="")


def save_trained(data: DataConfig, workdir: Path) -> None:
    """Train a short run of the quickstart on other data, spread over eight devices."""
    changes = ["execution.mesh.fsdp=8", "model.vocab_size=512", "optimizer.warmup_steps=5"]
    experiment = load(str(ROOT / "experiments/quickstart.py"), changes)
    upkeep = dict(eval_every=20, eval_rows=8, checkpoint_every=20)
    experiment = dataclasses.replace(
        experiment,
        data=data,
        run=dataclasses.replace(experiment.run, num_steps=20),
        upkeep=dataclasses.replace(experiment.upkeep, **upkeep),
    )
    train(experiment, epath.Path(workdir), accept_changes=False)


def experiment_of(workdir: Path) -> Experiment:
    """Return the experiment of the newest checkpoint."""
    path = epath.Path(workdir)
    return checkpoint.read_meta(path, steps(path)[-1]).experiment


def export(
    workdir: Path | str, out: Path | str, to: str, dtype: str = "f32", verify=True, **options
) -> dict:
    source = native.read(Path(workdir))
    return convert.convert(source, to, Path(out), dtype, options, verify)


def export_in_child(jobs: list[dict]) -> subprocess.CompletedProcess:
    """Call export() where torch may be loaded: its CUDA builds crash beside TensorFlow."""
    code = "import json, sys, exports\nfor job in json.load(sys.stdin): exports.export(**job)"
    return child(code, input=json.dumps(jobs, default=str))


def child(code: str, *args, **options) -> subprocess.CompletedProcess:
    """Run Python code that may import this module."""
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, **options)


def logits_of(workdir: Path, tokens: np.ndarray) -> np.ndarray:
    """Return logits in fp32, by the model as training restores it."""
    path = epath.Path(workdir)
    experiment = override(experiment_of(workdir), "model.compute_dtype=float32")
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = checkpoint.restore_model(path, steps(path)[-1], experiment)
        return np.asarray(jax.jit(Llama.__call__)(model, tokens, np.ones_like(tokens), positions))


def main(*args) -> subprocess.CompletedProcess:
    """Run llama-jax in a process of its own."""
    command = [sys.executable, "-m", "llama_jax", *map(str, args)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
