"""Exports by the command: what they say, what leaves nothing behind, and what is refused."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from etils import epath

from helpers.exports import (
    GQA,
    experiment_of,
    export,
    save_random,
    sha256,
)
from llama_jax.config import UserError
from llama_jax.data.tokenizer import EMBEDDED
from llama_jax.experiment import identity
from llama_jax.formats import convert, native, vocabulary
from llama_jax.loading import override


def test_an_export_says_what_it_is(cli, runs, tmp_path):
    """By the command, in files of a size, with what its manifest has to hold."""
    command = ["export", runs / "gqa", "--to", "hf", "--out", tmp_path / "hf", "--type", "bf16"]
    done = cli(*command, "--shard-size", "0.0003")
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "verified, read anew: logits differ by" in printed and "what bf16 costs" in printed
    shards = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    manifest = json.loads((tmp_path / "hf/export.json").read_text())
    files = {p.name for p in (tmp_path / "hf").iterdir()}
    assert manifest["sha256"].keys() == files - {"export.json"}
    assert manifest["sha256"][shards[1]] == sha256(tmp_path / "hf" / shards[1])
    experiment = experiment_of(runs / "gqa")
    assert manifest["experiment_sha256"] == identity(experiment)
    assert (manifest["format"], manifest["type"], manifest["step"]) == ("hf", "bf16", 0)
    verification = manifest["verification"]
    assert verification["passed"] and verification["causes"] == []
    assert verification["conversion"]["greedy_agreement"] == 1
    assert verification["rounding"]["max_abs"] == 0  # these weights are exact in bf16

    command = (*command[:5], tmp_path / "other", "--no-verify")
    done = cli(*command)
    assert done.returncode == 0 and "not verified" in done.stdout
    manifest = json.loads((tmp_path / "other/export.json").read_text())
    assert manifest["verification"] == "none: --no-verify"


def test_spaces_that_llama_cpp_does_not_remove_are_said(stories, tmp_path):
    manifest = export(stories, tmp_path / "x", "gguf")
    (note,) = manifest["notes"]
    assert "a text with repeated, leading or trailing spaces becomes other tokens" in note
    assert note in convert.summary(tmp_path / "x", manifest)
    assert manifest["verification"]["texts"] == 13
    assert export(stories, tmp_path / "y", "hf", verify=False)["notes"] == []


def test_an_unproven_export_never_has_the_name_that_was_asked_for(runs, tmp_path, monkeypatch):
    def fail(*_):
        assert (tmp_path / "x.unproven/model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "prove", fail)
    with pytest.raises(KeyboardInterrupt):
        export(runs / "mha", tmp_path / "x", "hf")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_not_what_was_saved_is_not_exported(runs, tmp_path):
    workdir = shutil.copytree(runs / "mha", tmp_path / "run")
    array = native.open_array(epath.Path(workdir), 0, "layers/attn/wo_GRKD")
    array[1, 0, 0, 3, 5].write(np.float32(0.25)).result()
    with pytest.raises(UserError, match="layers/attn/wo_GRKD is not what was saved"):
        export(workdir, tmp_path / "x", "hf")
    assert not list(tmp_path.glob("x*"))


def test_rounding_in_a_model_that_amplifies_it_is_not_a_mistake(tmp_path):
    """Weights so large that fp32 alone makes a difference of more than 1e-4; and a mistake still
    makes a larger one."""
    save_random(dataclasses.replace(GQA, init_std=3 / 8), tmp_path / "run")
    manifest = export(tmp_path / "run", tmp_path / "x", "gguf")
    assert manifest["verification"]["passed"]


# What cannot be exported


def test_what_cannot_be_exported_is_said_in_a_line(cli, runs, tmp_path, monkeypatch):
    def refused(match, to, dtype="f32", workdir=runs / "gqa", **options):
        with pytest.raises(UserError, match=match) as e:
            export(workdir, tmp_path / "out", to, dtype, **options)
        assert "\n" not in str(e.value) and not list(tmp_path.glob("out*"))

    refused("--type: got q8_0 for hf, expected one of f32, bf16, f16", "hf", "q8_0")
    command = ("export", runs / "gqa", "--to", "hf", "--out", tmp_path / "out", "--shards", 4)
    done = cli(*command)
    assert done.returncode == 2
    assert "--shards belongs to --to meta; got --to hf" in done.stderr
    done = cli(*command[:-2], "--set", "model.rope_theta=500")
    assert done.returncode == 2
    assert "--set: got model.rope_theta=500.0, but the checkpoint" in done.stderr
    client = ("export", runs / "gqa", "--out", tmp_path / "out", "--client", tmp_path / "python")
    for options, said in (
        (("--to", "meta"), "--client belongs to --to hf or gguf or litgpt; got --to meta"),
        (("--to", "hf", "--no-verify"), "--client compares with what --no-verify leaves out"),
        (("--to", "hf"), f"--client: cannot run '{tmp_path}/python': No such file or directory;"),
    ):
        done = cli(*client, *options)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
        assert not list(tmp_path.glob("out*"))
    large = dataclasses.replace(GQA, init_std=60_000.0)
    save_random(large, tmp_path / "large")
    refused("--type: .*layers/.* has a value beyond .* of f16", "hf", "f16", tmp_path / "large")
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="--out: .*here is there already"):
        export(runs / "gqa", tmp_path / "here", "hf")
    experiment = override(experiment_of(runs / "gqa"), "data.tokenizer=no.model")
    source = native.read_step(epath.Path(runs / "gqa"), 0, experiment)
    with pytest.raises(UserError, match="data.tokenizer: no file 'no.model'"):
        convert.convert(source, "meta", tmp_path / "out", "f32")
    unigram = vocabulary.parse(EMBEDDED.read_bytes())
    unigram.trainer_spec.model_type = unigram.trainer_spec.UNIGRAM
    with pytest.raises(UserError, match="data.tokenizer: model_type is"):
        vocabulary.parse(unigram.SerializeToString())
    monkeypatch.setitem(sys.modules, "torch", None)
    refused("PyTorch is needed for .pth files", "meta")
