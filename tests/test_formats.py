"""What a format is: one module, and a line of the table; from each of them into each."""

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers.exports import GQA, export, sha256
from llama_jax import formats
from llama_jax.config import ModelConfig, UserError
from llama_jax.formats import convert
from llama_jax.formats.format import Format
from llama_jax.formats.parameters import parameters
from llama_jax.formats.weights import Weights
from llama_jax.run import checkpoint


def test_a_format_is_a_module_and_a_line_of_the_table(tmp_path):
    modules = [
        importlib.import_module(f"llama_jax.formats.{module.name}")
        for module in pkgutil.iter_modules(formats.__path__)
    ]
    made = {m.__name__.rpartition(".")[2]: m.FORMAT for m in modules if hasattr(m, "FORMAT")}
    assert made == convert.FORMATS
    for name, form in made.items():
        assert form.read or form.write, name
        assert bool(form.write) == bool(form.dtypes), name
        assert not form.is_it(tmp_path) and not form.is_it(tmp_path / "nothing"), name
        if form.write:
            _, _, _, *options = inspect.signature(form.write).parameters
            assert set(form.options) <= set(options), name


def write_toy(weights: Weights, out: Path, dtype: str) -> None:
    cfg, toy = weights.cfg, {"seq_len": weights.seq_len, "mlp_dim": weights.cfg.mlp_dim}
    toy |= {"norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta}
    (out / "toy.json").write_text(json.dumps(toy))
    (out / "tokenizer.model").write_bytes(weights.tokenizer or b"")
    matrices = {f"{p.role}.{p.layer}": weights.matrix(p) for p in parameters(cfg)}
    np.savez(out / "toy.npz", allow_pickle=False, **matrices)


def read_toy(path: Path) -> Weights:
    toy = json.loads((path / "toy.json").read_text())
    matrices = np.load(path / "toy.npz")
    vocab_size, embed_dim = matrices["embedding.None"].shape
    cfg = ModelConfig(
        num_layers=sum(name.startswith("q.") for name in matrices),
        embed_dim=embed_dim,
        num_heads=GQA.num_heads,
        num_kv_heads=GQA.num_kv_heads,
        mlp_dim_override=toy["mlp_dim"],
        vocab_size=vocab_size,
        norm_eps=toy["norm_eps"],
        rope_theta=toy["rope_theta"],
    )
    return Weights(
        name=path.name,
        cfg=cfg,
        seq_len=toy["seq_len"],
        dtype="f32",
        matrix=lambda p: matrices[f"{p.role}.{p.layer}"],
        where=lambda p: f"{path}: {p.role}",
        read_tokenizer=(path / "tokenizer.model").read_bytes,
        provenance={"source": str(path)},
    )


def test_a_new_format_goes_to_and_from_all_others(runs, tmp_path, monkeypatch):
    toy = Format(
        is_it=lambda path: (path / "toy.json").exists(),
        read=read_toy,
        write=write_toy,
        dtypes=("f32",),
    )
    monkeypatch.setitem(convert.FORMATS, "toy", toy)
    export(runs / "gqa", tmp_path / "gqa", "toy")
    source = convert.open_source(tmp_path / "gqa")
    made = convert.convert(source, "gguf", tmp_path / "x", "q8_0")
    assert made["verification"]["passed"] and made["source"] == str(tmp_path / "gqa")
    same = export(runs / "gqa", tmp_path / "y", "gguf", "q8_0", verify=False)
    assert made["sha256"] == same["sha256"]
    convert.import_model(tmp_path / "x/model.gguf", tmp_path / "run", None)
    export(tmp_path / "run", tmp_path / "again", "toy")
    convert.import_model(tmp_path / "again", tmp_path / "last", None)
    assert fingerprints(tmp_path / "last") == fingerprints(tmp_path / "run")
    with pytest.raises(UserError, match="--type: got bf16 for toy, expected one of f32"):
        convert.convert(source, "toy", tmp_path / "z", "bf16")


def fingerprints(workdir: Path) -> dict[str, int]:
    return checkpoint.read_meta(epath.Path(workdir), 0).fingerprints


def test_one_command_goes_from_hugging_face_to_gguf(cli, runs, tmp_path):
    """The same bytes as by way of a checkpoint, proven in the same way."""
    export(runs / "gqa", tmp_path / "gqa", "hf", "bf16", verify=False, shard_bytes=300_000)
    done = cli(
        *("export", tmp_path / "gqa", "--to", "gguf", "--type", "q4_0", "--out", tmp_path / "x")
    )
    assert done.returncode == 0, done.stderr
    assert "verified, read anew: logits differ by" in done.stdout
    export(runs / "gqa", tmp_path / "y", "gguf", "q4_0", verify=False)  # exact in bf16
    assert sha256(tmp_path / "x/model.gguf") == sha256(tmp_path / "y/model.gguf")
    manifest = json.loads((tmp_path / "x/export.json").read_text())
    assert manifest["source"] == str(tmp_path / "gqa")
    assert not manifest.keys() & {"checkpoint", "step", "experiment_sha256"}


def test_how_a_run_is_executed_does_not_change_what_is_exported(cli, runs, tmp_path):
    command = ("export", runs / "gqa", "--to", "hf", "--no-verify", "--out", tmp_path / "x")
    changes = ("--set", "execution.attention=splash", "--set", "model.compute_dtype=bfloat16")
    assert cli(*command, *changes).returncode == 0
    made = export(runs / "gqa", tmp_path / "y", "hf", "bf16", verify=False)
    assert json.loads((tmp_path / "x/export.json").read_text())["sha256"] == made["sha256"]


def test_options_of_runs_and_of_other_frameworks_models_are_not_mixed(cli, runs, tmp_path):
    export(runs / "gqa", tmp_path / "gqa", "hf", verify=False)

    def refused(match: str, *command) -> None:
        done = cli("export", *command, "--to", "hf")
        assert done.returncode == 2 and re.search(match, done.stderr)

    out = ("--out", tmp_path / "x")
    changes = ("--set", "model.norm_eps=1e-6")
    refused("--set belongs to WORKDIR", tmp_path / "gqa", *out, *changes)
    (tmp_path / "gqa/tokenizer.model").unlink()
    (tmp_path / "gqa/tokenizer.json").unlink()
    refused("gqa: comes without a tokenizer; give --tokenizer", tmp_path / "gqa", *out)
    refused("--tokenizer belongs to SOURCE", runs / "gqa", *out, "--tokenizer", "x.model")
    refused("workdir: no checkpoint in", tmp_path / "nothing", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["gqa"]
