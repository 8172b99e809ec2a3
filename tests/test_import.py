"""Models that come back from other formats as they went."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import sentencepiece
from etils import epath

from helpers.exports import (
    GQA,
    experiment_of,
    export,
    logits_of,
    matrix_fingerprints,
    refused,
    same_model,
)
from helpers.paths import ROOT, SHARED
from llama_jax.config import ModelConfig
from llama_jax.data import tokenizer
from llama_jax.data.tokenizer import EMBEDDED, MUST_SURVIVE
from llama_jax.formats import gguf, native
from llama_jax.formats.convert import import_model
from llama_jax.formats.parameters import (
    deinterleave_rope,
    interleave_rope,
    names_in,
    parameters,
    shapes,
)
from llama_jax.loading import load
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


def test_a_directory_that_an_export_to_q4_0_wrote_is_imported_as_it_is_rounded(
    cli, good, runs, tmp_path
):
    import_model(good / "q4_0", tmp_path / "back", None)
    source, back = native.read(runs / "gqa"), native.read(tmp_path / "back")
    for parameter in parameters(source.cfg):
        rounded = interleave_rope(source.matrix(parameter), parameter.role, source.cfg)
        rounded = gguf.rounded(rounded, "q4_0", parameter, source.cfg)
        expected = deinterleave_rope(rounded, parameter.role, source.cfg)
        assert np.array_equal(back.matrix(parameter), expected), parameter
    done = cli("sample", "--from", good / "q4_0", "--prompt", "Once", "--max-tokens", 2)
    assert done.returncode == 0 and done.stdout.startswith("Once"), done.stderr


QUANTISED = ("Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


@pytest.mark.parametrize("name", QUANTISED)
def test_other_programs_quantised_ggufs_have_their_values(tmp_path, name):
    """Of blocks whose bits are random; those of another order of rows would be other values."""
    package = pytest.importorskip("gguf")
    kind, cfg = package.GGMLQuantizationType[name], dataclasses.replace(GQA, embed_dim=256)
    cfg = dataclasses.replace(cfg, num_layers=1, mlp_dim_override=256, vocab_size=64)
    block, num_bytes = package.GGML_QUANT_SIZES[kind]
    writer = package.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(cfg.embed_dim)
    writer.add_block_count(cfg.num_layers)
    writer.add_feed_forward_length(cfg.mlp_dim)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    random, expected = np.random.default_rng(0), {}
    for tensor, parameter in names_in(gguf.NAMES, cfg).items():
        shape = shapes(cfg)[parameter.role]
        if len(shape) == 1:
            writer.add_tensor(tensor, np.ones(shape, np.float32))
            continue
        # Bytes below 0x40: a scale, an fp16, is then finite, wherever it lies in a block.
        bits = random.integers(0, 64, (shape[0], shape[1] // block * num_bytes), np.uint8)
        writer.add_tensor(tensor, bits, raw_dtype=kind)
        expected[parameter] = package.dequantize(bits, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.read(tmp_path / "x.gguf")
    for parameter, values in expected.items():
        assert np.isfinite(values).all() and values.std() > 0
        matrix = interleave_rope(found.matrix(parameter), parameter.role, cfg)
        assert np.array_equal(matrix, values), parameter


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


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"byte_fallback": False}},
        {"model": {"merges": lambda merges: merges[:-1]}},
        {"normalizer": {"type": "NFC"}},
    ],
    ids=["bytes", "merges", "normalizer"],
)
def test_a_tokenizer_json_that_no_sentencepiece_model_equals_is_kept(good, tmp_path, change):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    (copy / "tokenizer.model").unlink()
    whole = json.loads((copy / "tokenizer.json").read_text())
    for field, value in change.items():
        if field == "model":
            ((name, new),) = value.items()
            value = whole["model"] | {name: new(whole["model"][name]) if callable(new) else new}
        whole[field] = value
    (copy / "tokenizer.json").write_text(json.dumps(whole))
    import_model(copy, tmp_path / "run", None)
    ours = tokenizer.load(str(tmp_path / "run/tokenizer.json"))
    peer = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(whole))
    peer.encode_special_tokens = True
    for text in MUST_SURVIVE:
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
    shutil.rmtree(tmp_path / "run")
    import_model(copy, tmp_path / "run", EMBEDDED)


def test_a_tokenizer_json_with_more_tokens_than_the_model_has_rows_is_refused(good, tmp_path):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    (copy / "tokenizer.model").unlink()
    whole = json.loads((copy / "tokenizer.json").read_text())
    whole["model"]["vocab"]["x"] = 9999
    (copy / "tokenizer.json").write_text(json.dumps(whole))
    refused(copy, tmp_path, "hf: the tokenizer has 10000 pieces, but the model 2080 rows")


def test_a_workdir_that_was_moved_has_its_tokenizer(good, tmp_path):
    import_model(good / "hf", tmp_path / "run", None)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert experiment_of(moved).data.tokenizer == str(moved / "tokenizer.model")


# What is not finished


def test_an_import_cut_short_is_no_checkpoint_and_one_without_fingerprints_is_damaged(tmp_path):
    workdir, cfg = (
        epath.Path(tmp_path),
        ModelConfig(num_layers=1, embed_dim=8, num_heads=2, vocab_size=256),
    )
    experiment = load(str(ROOT / "experiments/quickstart.py"))
    experiment = dataclasses.replace(experiment, model=cfg)
    for array in native.create(workdir, experiment).values():
        array.write(0).result()
    assert steps(workdir) == []
    native.finish(workdir, experiment, {})
    assert steps(workdir) == [0]
    with pytest.raises(checkpoint.DamagedCheckpoint, match="embed_VD is not what was saved"):
        logits_of(tmp_path, np.zeros((1, 4), np.int32))
