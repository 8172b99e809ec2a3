"""Model files that are refused, and the one line that says why."""

import dataclasses
import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.damage import truncate
from helpers.exports import (
    GQA,
    export,
    matrix_fingerprints,
    refused,
)
from helpers.paths import SHARED
from llama_jax.config import UserError
from llama_jax.formats import hf, meta, native
from llama_jax.formats.convert import import_model


def replace(path: Path, old: str, new: str) -> None:
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))


def change(directory: Path, **fields) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def edit_header(path: Path, edit: Callable[[dict, dict], object], more: bytes = b"") -> None:
    """Edit what a header of safetensors says of the first tensor of the largest shape and of the
    last. more: bytes before all values."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    same = [e for e in entries if e["shape"] == max(e["shape"] for e in entries)]
    edit(same[0], same[-1])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + more + data[8 + length :])


def second(directory: Path) -> Path:
    return sorted(directory.glob("*.safetensors"))[1]


DAMAGED = r"model-00002-\S+.safetensors: is damaged or not safetensors: Error while deserializing"
NAN = struct.pack("<f", float("nan"))

DAMAGED_HF = {
    "truncated": (
        lambda d: truncate(second(d)),
        r"model-00002-\S+.safetensors: is damaged or not safetensors: .*file not fully covered",
    ),
    "header truncated": (
        lambda d: second(d).write_bytes(second(d).read_bytes()[:100]),
        r"model-00002-\S+.safetensors: is damaged or not safetensors",
    ),
    "shard missing": (
        lambda d: second(d).unlink(),
        r"model-00002-\S+: is missing, .*index.json says it holds tensor model.layers",
    ),
    "no weights": (
        lambda d: [p.unlink() for p in d.glob("model*")],
        "has neither model.safetensors.index.json nor model.safetensors",
    ),
    "architecture": (
        lambda d: replace(d / "config.json", '"llama"', '"gpt_neox"'),
        "config.json: model_type is 'gpt_neox', and llama_jax knows 'llama' only",
    ),
    "rope scaling": (
        lambda d: replace(d / "config.json", '"default"', '"linear"'),
        "config.json: rope_parameters.rope_type is 'linear', and llama_jax knows 'default' only",
    ),
    "bias": (
        lambda d: replace(d / "config.json", '"mlp_bias": false', '"mlp_bias": true'),
        "config.json: mlp_bias is True",
    ),
    "field missing": (
        lambda d: replace(d / "config.json", '"rms_norm_eps"', '"eps"'),
        "config.json: rms_norm_eps is None, expected a number above 0",
    ),
    "config is no JSON": (lambda d: truncate(d / "config.json"), "config.json: cannot be read"),
    "shape": (
        lambda d: replace(d / "config.json", '"intermediate_size": 160', '"intermediate_size": 96'),
        r"safetensors: tensor model.layers.0.mlp.gate_proj.weight has shape \(160, 64\), expected "
        r"\(96, 64\)",
    ),
    "vocabulary": (
        lambda d: replace(d / "config.json", '"vocab_size": 2080', '"vocab_size": 2000'),
        r"tensor model.embed_tokens.weight has shape \(2080, 64\), expected \(2000, 64\)",
    ),
    "tensor missing": (
        lambda d: replace(d / "config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 4'),
        "has no tensor model.layers.3.input_layernorm.weight",
    ),
    "tensor not known": (
        lambda d: replace(d / "config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 2'),
        "tensor model.layers.2.input_layernorm.weight is of no LLaMA",
    ),
    "index is wrong": (
        lambda d: replace(d / hf.INDEX, "model.layers.1.mlp.up_proj", "model.layers.9.mlp.up_proj"),
        "has no tensor model.layers.9.mlp.up_proj.weight, but",
    ),
    "type": (
        lambda d: replace(second(d), '"F32"', '"I32"'),
        r"tensor \S+ is of type I32, expected F32, BF16, F16",
    ),
    "layers are no integer": (
        lambda d: change(d, num_hidden_layers=3.0),
        "config.json: num_hidden_layers is 3.0, expected a whole number above 0",
    ),
    "heads are text": (
        lambda d: change(d, num_key_value_heads="2"),
        "config.json: num_key_value_heads is '2', expected a whole number above 0",
    ),
    "more heads than dimensions": (
        lambda d: change(d, num_attention_heads=128),
        "config.json: num_attention_heads is 128, expected a divisor of hidden_size, 64",
    ),
    "heads in no equal groups": (
        lambda d: change(d, num_key_value_heads=3),
        "config.json: num_key_value_heads is 3, expected a divisor of num_attention_heads, 4",
    ),
    "rope is no object": (
        lambda d: change(d, rope_parameters="x"),
        "config.json: rope_parameters is 'x', expected an object",
    ),
    "rope base": (
        lambda d: change(d, rope_parameters={"rope_theta": float("inf")}),
        "config.json: rope_parameters.rope_theta is inf, expected a number above 0",
    ),
    "rope on a part of a head": (
        lambda d: change(d, partial_rotary_factor=0.5),
        "config.json: partial_rotary_factor is 0.5, and llama_jax knows 1 only",
    ),
    "ties": (
        lambda d: change(d, tie_word_embeddings="no"),
        "config.json: tie_word_embeddings is 'no', and llama_jax knows False or True only",
    ),
    "three offsets": (
        lambda d: edit_header(second(d), lambda first, _: first["data_offsets"].append(0)),
        DAMAGED,
    ),
    "offsets below zero": (
        lambda d: edit_header(second(d), lambda first, _: first.update(data_offsets=[-4, 0])),
        DAMAGED,
    ),
    "offsets reversed": (
        lambda d: edit_header(second(d), lambda first, _: first["data_offsets"].reverse()),
        DAMAGED,
    ),
    "two tensors share bytes": (
        lambda d: edit_header(
            second(d), lambda first, last: last.update(data_offsets=first["data_offsets"])
        ),
        DAMAGED,
    ),
    "a value inserted": (
        lambda d: edit_header(second(d), lambda first, _: None, more=bytes(4)),
        DAMAGED,
    ),
    "values after the last": (
        lambda d: second(d).write_bytes(second(d).read_bytes() + bytes(4)),
        DAMAGED,
    ),
    "header longer than it says": (
        lambda d: second(d).write_bytes(
            bytes([second(d).read_bytes()[0] - 2]) + second(d).read_bytes()[1:]
        ),
        DAMAGED,
    ),
    "weights are a directory": (
        lambda d: (d / "model.safetensors").mkdir(),
        "hf/model.safetensors: is damaged or not safetensors",
    ),
    "rope scaling beside parameters without": (
        lambda d: change(d, rope_scaling={"type": "linear", "factor": 4.0}),
        "config.json: rope_scaling.type is 'linear', and llama_jax knows 'default' only",
    ),
    "two rope bases": (
        lambda d: change(d, rope_theta=10_000.0),
        "rope_theta is 10000 and rope_parameters.rope_theta is 5000; expected one value",
    ),
    "two thousand million layers": (
        lambda d: change(d, num_hidden_layers=2_000_000_000),
        "hf: has no tensor model.layers.3.input_layernorm.weight",
    ),
    "more layers than a number may say": (
        lambda d: change(d, num_hidden_layers=10**400),
        r"num_hidden_layers is 10+\.\.\., expected a whole number above 0 and below 2\*\*31",
    ),
    "a number without end": (
        lambda d: change(d, rms_norm_eps=10**400),
        r"rms_norm_eps is 10+\.\.\., expected a number above 0",
    ),
    "deep JSON": (
        lambda d: (d / "config.json").write_text('{"a":' * 100_000),
        "config.json: cannot be read as JSON: maximum recursion depth",
    ),
    "index without a map": (
        lambda d: (d / hf.INDEX).write_text('{"weight_map": [1]}'),
        r"index.json: weight_map is \[1\], expected an object",
    ),
    **{
        f"index leads to {value!r}": (
            lambda d, value=value: (d / hf.INDEX).write_text(
                json.dumps({"weight_map": {"model.norm.weight": value}})
            ),
            f"weight_map has tensor model.norm.weight in {value!r}, expected the name of a file",
        )
        for value in ("../../x", "sub/x", "/etc/passwd", None, 3)
    },
    "tensor in two files": (
        lambda d: shutil.copy(second(d), d / "model-00003-of-00004.safetensors"),
        r"model-00003-\S+: has tensor model.layers.\S+, and so has \S+model-00002",
    ),
    "head of its own, and tied": (
        lambda d: change(d, tie_word_embeddings=True),
        "tensor lm_head.weight is not the embedding, but tie_word_embeddings of config.json",
    ),
    "another end of text": (
        lambda d: change(d, eos_token_id=[2, 5]),
        r"config.json: eos_token_id is \[2, 5\], and tokenizer.model says 2; .* --tokenizer",
    ),
    "another end of generation": (
        lambda d: (d / "generation_config.json").write_text('{"eos_token_id": 5}'),
        "generation_config.json: eos_token_id is 5, and tokenizer.model says 2",
    ),
    "token added": (
        lambda d: (d / "added_tokens.json").write_text('{"<|im_end|>": 2048}'),
        "added_tokens.json: token 2048 is '<|im_end|>', which tokenizer.model has not",
    ),
    "token added to tokenizer.json": (
        lambda d: replace(d / "tokenizer.json", '"content": "</s>"', '"content": "<end>"'),
        "tokenizer.json: token 2 is '<end>', which tokenizer.model has not",
    ),
    "token added to its configuration": (
        lambda d: (d / "tokenizer_config.json").write_text(
            '{"added_tokens_decoder": {"7": {"content": "<pad>"}}}'
        ),
        "tokenizer_config.json: token 7 is '<pad>', which tokenizer.model has not",
    ),
    "added tokens are none": (
        lambda d: (d / "added_tokens.json").write_text('{"<pad>": "x"}'),
        "added_tokens.json: its added tokens have no id and content",
    ),
    "no number": (
        lambda d: second(d).write_bytes(second(d).read_bytes()[:-4] + NAN),
        r"model-00002-\S+: tensor model.layers.\S+ has values that are not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_HF)
def test_damaged_hugging_face_directories_are_named(good, tmp_path, damage):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    hurt, match = DAMAGED_HF[damage]
    hurt(copy)
    refused(copy, tmp_path, match)


def test_a_tokenizer_of_another_model_is_refused(good, tmp_path):
    copy = shutil.copytree(good / "hf", tmp_path / "hf")
    other = SHARED / "tokenizers/llama_tokenizer.model"
    if not other.exists():
        pytest.skip("the tokenizer is not here (../shared/data)")
    match = "llama_tokenizer.model: the tokenizer has 32000 pieces, but the model 2080 rows"
    refused(copy, tmp_path, match, other)
    shutil.copy(other, copy / "tokenizer.model")
    refused(copy, tmp_path, "hf: the tokenizer has 32000 pieces")
    shutil.copy(SHARED / "weights/tok512.model", copy / "tokenizer.model")
    refused(copy, tmp_path, "hf: the tokenizer has only 512 pieces for the model's 2080 rows")
    (copy / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # as tiktoken's are
    import_model(copy, tmp_path / "run", None)
    assert (tmp_path / "run/tokenizer.model").exists()  # what tokenizer.json says
    shutil.rmtree(tmp_path / "run")
    (copy / "tokenizer.json").unlink()
    refused(copy, tmp_path, "hf: the tokenizer is not a SentencePiece model: .*a tokenizer.json$")
    refused(copy, tmp_path, "no file .*nowhere.model", tmp_path / "nowhere.model")


def test_the_single_file_is_taken_as_transformers_does(good, runs, tmp_path):
    """An index of other files beside it is an old one."""
    hf_dir = tmp_path / "hf"
    export(runs / "mha", hf_dir, "hf", verify=False)
    shutil.copy(good / "hf" / hf.INDEX, hf_dir)
    import_model(hf_dir, tmp_path / "run", None)
    assert matrix_fingerprints(tmp_path / "run") == matrix_fingerprints(runs / "mha")


def test_what_cannot_be_written_is_named_and_leaves_nothing(good, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"")
    for out in (Path("/proc/run"), file / "run"):
        with pytest.raises(UserError, match=f"--out: cannot write {out}: "):
            import_model(good / "hf", out, None)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a full disk, to TensorStore
    try:
        refused(good / "hf", tmp_path, f"--out: cannot write {tmp_path}/run: .*: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    monkeypatch.setattr(native, "write_array", lambda array, values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_model(good / "hf", tmp_path / "run", None)
    assert list(tmp_path.iterdir()) == [file]


def test_shards_of_meta_s_divide_the_vocabulary(tmp_path):
    cfg = dataclasses.replace(GQA, vocab_size=513)
    with pytest.raises(UserError, match="got 2, expected a divisor of model.vocab_size=513"):
        meta.write(SimpleNamespace(cfg=cfg), tmp_path, "f32", shards=2)  # type: ignore[arg-type]


def test_damaged_llama2c_files_are_named(tmp_path):
    file = tmp_path / "x.bin"
    header = struct.pack("<7i", 8, 16, 1, 2, 2, 10, 4)
    for data, match in (
        (b"abc", "x.bin: is truncated: 3 bytes"),
        (header + bytes(400), "x.bin: is truncated: has 428 bytes, and its header asks for 3068"),
        (
            struct.pack("<7i", 1, 1, 2**31 - 1, 1, 1, 1, 1) + bytes(400),
            "x.bin: is truncated: has 428 bytes, and its header asks for",
        ),
        (bytes(100), "x.bin: is no model of llama2.c"),
        (header + bytes(10_000), "x.bin: has 10028 bytes, and its header asks for"),
    ):
        file.write_bytes(data)
        refused(file, tmp_path, match)
    refused(tmp_path / "nothing", tmp_path, "nothing: is no model; expected a directory with")
