"""Models that come back from other formats as they went."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import sentencepiece
from etils import epath

from helpers.exports import (
    experiment_of,
    export,
    logits_of,
    matrix_fingerprints,
    refused,
    same_model,
)
from helpers.paths import ROOT, SHARED
from llama_jax.config import ModelConfig
from llama_jax.data.tokenizer import EMBEDDED, MUST_SURVIVE
from llama_jax.experiment import load
from llama_jax.formats import native
from llama_jax.formats.convert import import_model
from llama_jax.run import checkpoint
from llama_jax.run.workdir import steps

# There and back


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "to, file, options", [("hf", "", {"shard_bytes": 300_000}), ("gguf", "model.gguf", {})]
)
def test_there_and_back_no_bit_changes(runs, tmp_path, to, file, options, dtype):
    """The weights of these runs are exact in bf16."""
    back = tmp_path / "back"
    export(runs / "gqa", tmp_path / "out", to, dtype, verify=False, **options)
    import_model(tmp_path / "out" / file, back, None)
    assert matrix_fingerprints(back) == matrix_fingerprints(runs / "gqa") and same_model(
        back, runs / "gqa"
    )
    experiment = experiment_of(back)
    assert experiment.model.compute_dtype == {"f32": "float32", "bf16": "bfloat16"}[dtype]
    assert experiment.data.seq_len == 256  # the quickstart's


def test_eight_bits_come_back_as_they_are(runs, tmp_path):
    """q8_0 loses something on the way there, and nothing on the way back."""
    export(runs / "gqa", tmp_path / "a", "gguf", "q8_0", verify=False)
    import_model(tmp_path / "a/model.gguf", tmp_path / "back", None)
    assert matrix_fingerprints(tmp_path / "back") != matrix_fingerprints(runs / "gqa")
    export(tmp_path / "back", tmp_path / "b", "gguf", "q8_0", verify=False)
    import_model(tmp_path / "b/model.gguf", tmp_path / "again", None)
    assert matrix_fingerprints(tmp_path / "again") == matrix_fingerprints(tmp_path / "back")


def test_imported_stories_are_told_as_they_were_published(cli, stories):
    done = cli("sample", stories, "--prompt", "", "--temperature", 0, "--max-tokens", 256)
    assert done.returncode == 0, done.stderr
    expected = (SHARED / "weights/stories260K_greedy_expected.txt").read_text()
    assert done.stdout.strip() == expected.strip()


def test_one_command_goes_from_a_model_to_text(cli, runs, tmp_path):
    """The same text as of the run that was exported; WORKDIR and --from are not for both."""
    export(runs / "gqa", tmp_path / "hf", "hf", verify=False)
    options = ("--prompt", "Once", "--temperature", 0, "--max-tokens", 20)
    fp32 = ("--set", "model.compute_dtype=float32")
    expected = cli("sample", runs / "gqa", *options, *fp32)
    done = cli("sample", "--from", tmp_path / "hf", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout and done.stdout.startswith("Once")
    both = cli("sample", runs / "gqa", "--from", tmp_path / "hf", *options)
    assert both.returncode == 2 and "either WORKDIR or --from" in both.stderr


def test_a_directory_with_tokenizer_json_alone_has_its_tokenizer(good, tmp_path):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    (copy / "tokenizer.model").unlink()
    import_model(copy, tmp_path / "run", None)
    ours, expected = (
        sentencepiece.SentencePieceProcessor(model_file=str(path))
        for path in (tmp_path / "run/tokenizer.model", EMBEDDED)
    )
    for text in MUST_SURVIVE:
        assert ours.encode(text) == expected.encode(text)
    shutil.rmtree(tmp_path / "run")
    whole = json.loads((copy / "tokenizer.json").read_text())
    for model, match in (
        ({"byte_fallback": False}, "its model is not BPE with byte_fallback"),
        ({"merges": whole["model"]["merges"][:-1]}, "its merges leave out some"),
        ({"vocab": whole["model"]["vocab"] | {"x": 9999}}, "the ids of its tokens are not"),
    ):
        written = whole | {"model": whole["model"] | model}
        (copy / "tokenizer.json").write_text(json.dumps(written))
        refused(copy, tmp_path, f"hf/tokenizer.json: cannot be made a SentencePiece model: {match}")
    for field, value in (("normalizer", {"type": "NFC", "normalizers": []}), ("pre_tokenizer", {})):
        (copy / "tokenizer.json").write_text(json.dumps(whole | {field: value}))
        refused(copy, tmp_path, "its normalizer or pre_tokenizer is not LLaMA's; .* --tokenizer")
    import_model(copy, tmp_path / "run", EMBEDDED)


def test_a_workdir_that_was_moved_has_its_tokenizer(good, tmp_path):
    import_model(good / "hf", tmp_path / "run", None)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert experiment_of(moved).data.tokenizer == str(moved / "tokenizer.model")


# What is not finished


def test_an_import_cut_short_is_no_checkpoint_and_one_without_fingerprints_is_damaged(tmp_path):
    workdir, cfg = epath.Path(tmp_path), ModelConfig(num_layers=1, embed_dim=8, num_heads=2)
    experiment = load(str(ROOT / "experiments/quickstart.py"))
    experiment = dataclasses.replace(experiment, model=cfg)
    for array in native.create(workdir, experiment).values():
        array.write(0).result()
    assert steps(workdir) == []
    native.finish(workdir, experiment, {})
    assert steps(workdir) == [0]
    with pytest.raises(checkpoint.DamagedCheckpoint, match="embed_VD is not what was saved"):
        logits_of(tmp_path, np.zeros((1, 4), np.int32))
