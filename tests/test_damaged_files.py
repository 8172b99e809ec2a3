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


def move(path: Path, to: Callable[[int, int], list[int]]) -> None:
    """Put other offsets for the first tensor into a header of safetensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = header[next(name for name in header if name != "__metadata__")]
    first["data_offsets"] = to(*first["data_offsets"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def second(directory: Path) -> Path:
    return sorted(directory.glob("*.safetensors"))[1]


NAN = struct.pack("<f", float("nan"))

DAMAGED_HF = {
    "truncated": (
        lambda d: truncate(second(d)),
        r"model-00002-\S+.safetensors: is truncated: tensor model.layers.\S+ ends at byte \d+",
    ),
    "header truncated": (
        lambda d: second(d).write_bytes(second(d).read_bytes()[:100]),
        r"model-00002-\S+.safetensors: is truncated or not safetensors",
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
        "config.json: rope_type is 'linear'",
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
        "config.json: rope_theta is inf, expected a number above 0",
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
        lambda d: move(second(d), lambda start, end: [start, end, end]),
        r"model-00002-\S+.safetensors: is truncated or not safetensors",
    ),
    "offsets below zero": (
        lambda d: move(second(d), lambda start, end: [start - end, 0]),
        r"model-00002-\S+: tensor model.layers.\S+ has data_offsets -\d+ to 0, expected \d+ bytes",
    ),
    "offsets reversed": (
        lambda d: move(second(d), lambda start, end: [end, start]),
        r"model-00002-\S+: tensor model.layers.\S+ has data_offsets \d+ to 0, expected \d+ bytes",
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
    refused(copy, tmp_path, "hf: the tokenizer is not a SentencePiece model")
    refused(copy, tmp_path, "no file .*nowhere.model", tmp_path / "nowhere.model")


def _tensor_type(name: str, kind: int) -> bytes:
    """What a GGUF says of a matrix of 64 x 64: its name, axes, their sizes and its type."""
    return name.encode() + struct.pack("<IQQI", 2, 64, 64, kind)


def test_damaged_ggufs_are_named(good, tmp_path):
    whole = (good / "gguf/model.gguf").read_bytes()
    file, heads = tmp_path / "x.gguf", b"llama.attention.head_count"
    for data, match in (
        (whole[: len(whole) // 2], r"x.gguf: is truncated: tensor blk.\S+ ends at byte"),
        (whole[:5000], "x.gguf: is truncated or no GGUF"),
        (b"GGML" + whole[4:], "x.gguf: is truncated or no GGUF: GGUF magic invalid"),
        (whole.replace(b"llama", b"qwen9", 1), "general.architecture is 'qwen9'"),
        (
            whole.replace(heads + struct.pack("<2I", 4, 4), heads + struct.pack("<2I", 4, 0)),
            "llama.attention.head_count is 0, expected a whole number above 0",
        ),
        (whole[:-4] + NAN, "tensor output.weight has values that are not finite"),
        (whole.replace(b"blk.1.attn_k.w", b"blk.1.attn_z.w"), "has no tensor blk.1.attn_k.weight"),
        (
            whole.replace(
                _tensor_type("blk.0.attn_q.weight", 0), _tensor_type("blk.0.attn_q.weight", 26)
            ),
            "tensor blk.0.attn_q.weight is of type I32, which the gguf package cannot dequantise",
        ),
    ):
        file.write_bytes(data)
        refused(file, tmp_path, match)


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
        (header + bytes(400), "x.bin: is truncated: tensor layers/attn/wq_DGRK ends at byte"),
        (bytes(100), "x.bin: is no model of llama2.c"),
        (header + bytes(10_000), "x.bin: has 10028 bytes, and its header asks for"),
    ):
        file.write_bytes(data)
        refused(file, tmp_path, match)
    refused(tmp_path / "nothing", tmp_path, "nothing: is no model; expected a directory with")
