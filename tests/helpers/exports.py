"""Checkpoints for the tests of formats, and how they are exported."""

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from helpers.paths import ROOT
from helpers.processes import child
from llama_jax.config import Experiment, MeshConfig, ModelConfig, UserError
from llama_jax.data.schedule import Schedule
from llama_jax.formats import convert, native
from llama_jax.formats.convert import import_model
from llama_jax.formats.parameters import NAMES, shapes
from llama_jax.loading import load, override
from llama_jax.model import Llama
from llama_jax.run import checkpoint, managers
from llama_jax.run.workdir import steps
from llama_jax.sharding import make_mesh
from llama_jax.step import init_state

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
        with managers.open_manager(epath.Path(workdir), experiment.upkeep) as manager:
            state = dataclasses.replace(state, params=model)
            checkpoint.save(manager, state, experiment, Schedule(), checkpoint.Origin())


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
    code = (
        "import json, sys\nfrom helpers import exports\n"
        "for job in json.load(sys.stdin): exports.export(**job)"
    )
    return child(code, input=json.dumps(jobs, default=str))


def logits_of(workdir: Path, tokens: np.ndarray) -> np.ndarray:
    """Return logits in fp32, by the model as training restores it."""
    path = epath.Path(workdir)
    experiment = override(experiment_of(workdir), "model.compute_dtype=float32")
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        model = checkpoint.restore_model(path, steps(path)[-1], experiment)
        return np.asarray(jax.jit(Llama.__call__)(model, tokens, np.ones_like(tokens), positions))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def matrix_fingerprints(workdir: Path) -> dict[str, int]:
    """Return the fingerprint of each matrix: the same, or not, to the bit."""
    meta = checkpoint.read_meta(epath.Path(workdir), 0)
    return {role: meta.fingerprints[NAMES[role]] for role in shapes(meta.experiment.model)}


def same_model(a: Path, b: Path) -> bool:
    """Say whether two workdirs' models have the same shape and constants."""
    models = [experiment_of(workdir).model for workdir in (a, b)]
    fields = (*checkpoint.SHAPE_FIELDS, "norm_eps", "rope_theta")
    return all(getattr(models[0], field) == getattr(models[1], field) for field in fields)


def refused(source: Path, tmp_path: Path, match: str, tokenizer: Path | None = None) -> None:
    with pytest.raises(UserError, match=match) as e:
        import_model(source, tmp_path / "run", tokenizer)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("run*"))
