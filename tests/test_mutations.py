"""Exports in which something was changed after they were written: the proof has to see each."""

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.exports import export
from llama_jax.formats import convert, gguf

Mutation = tuple[Callable[[Path], object], str]  # of the written directory; what is said of it


def in_json(name: str, said: str, *path: str, **fields) -> Mutation:
    """Change fields of an object in a JSON file; `...` takes one out."""

    def mutate(directory: Path) -> None:
        whole = found = json.loads((directory / name).read_text())
        for key in path:
            found = found[key]
        found |= fields
        for key in [key for key, value in fields.items() if value is ...]:
            del found[key]
        (directory / name).write_text(json.dumps(whole))

    return mutate, f"{said}.* in {name}, expected"


def in_text(name: str, text: str, said: str) -> Mutation:
    return lambda directory: (directory / name).write_text(text), said


def in_bytes(name: str, old: bytes, new: bytes, said: str) -> Mutation:
    def mutate(directory: Path) -> None:
        data = (directory / name).read_bytes()
        assert old in data
        (directory / name).write_bytes(data.replace(old, new, 1))

    return mutate, said


def in_vocabulary(change: Callable[[dict], object], said: str) -> Mutation:
    """Change the model of a tokenizer.json."""

    def mutate(directory: Path) -> None:
        whole = json.loads((directory / "tokenizer.json").read_text())
        change(whole["model"])
        (directory / "tokenizer.json").write_text(json.dumps(whole))

    return mutate, said


def swap(vocabulary: dict, a: str, b: str) -> None:
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def in_tensors(change: Callable[[dict[str, np.ndarray]], object], said: str) -> Mutation:
    def mutate(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return mutate, said


def u32(key: str, old: int, new: int) -> tuple[bytes, bytes]:
    before, after = (key.encode() + struct.pack("<2I", 4, value) for value in (old, new))
    return before, after


NORM = "model.norm.weight"
HF: dict[str, Mutation] = {
    "length": in_json("config.json", "max_position_embeddings", max_position_embeddings=4096),
    "type": in_json("config.json", "dtype is 'bfloat16'", dtype="bfloat16"),
    "rope scaling": in_json("config.json", "rope_scaling", rope_scaling={"type": "linear"}),
    "rope parameter": in_json(
        "config.json", "rope_parameters.factor", "rope_parameters", factor=8.0
    ),
    "field not known": in_json("config.json", "pretraining_tp", pretraining_tp=2),
    "field missing": in_json("config.json", "mlp_bias is missing", mlp_bias=...),
    "a number is text": in_json("config.json", "hidden_size is '64'", hidden_size="64"),
    "eps is text": (
        in_json("config.json", "", rms_norm_eps="x")[0],
        "the files cannot be read: ValueError: could not convert string to float: 'x'",
    ),
    "ties are a number": in_json("config.json", "tie_word_embeddings", tie_word_embeddings=0),
    "end of text": in_json("generation_config.json", "eos_token_id is 3", eos_token_id=3),
    "end of text of the model": in_json("config.json", "eos_token_id is 3", eos_token_id=3),
    "temperature": in_json("generation_config.json", "temperature", temperature=0.1),
    "no end of text": in_json("tokenizer_config.json", "eos_token is missing", eos_token=...),
    "chat template": in_json("tokenizer_config.json", "chat_template", chat_template="x"),
    "no decoder": in_json("tokenizer.json", "decoder is None", decoder=None),
    "no normalizer": in_json("tokenizer.json", "normalizer is None", normalizer=None),
    "rare piece": in_vocabulary(
        lambda model: model["vocab"].update({list(model["vocab"])[-40]: 1}),
        r"model.vocab\.\S+ is 1 in tokenizer.json, expected the checkpoint's 2008",
    ),
    "two bytes": in_vocabulary(
        lambda model: swap(model["vocab"], "<0xE4>", "<0xE5>"),
        "model.vocab.<0xE4> is 232 in tokenizer.json, expected the checkpoint's 231",
    ),
    "last merges": in_vocabulary(
        lambda model: model.update(merges=model["merges"][:-40] + model["merges"][:-41:-1]),
        r"model.merges\[\d+\]\[0\] is .* in tokenizer.json",
    ),
    "tokenizer.model": (
        lambda d: (d / "tokenizer.model").write_bytes((d / "tokenizer.model").read_bytes()[:-40]),
        "tokenizer.model: is not the checkpoint's",
    ),
    "tokenizer.model missing": (
        lambda d: (d / "tokenizer.model").unlink(),
        "the files cannot be read: FileNotFoundError: .*tokenizer.model",
    ),
    "no JSON": in_text("config.json", "{", "the files cannot be read: JSONDecodeError"),
    "deep JSON": in_text("config.json", "[" * 100_000, "the files cannot be read: RecursionError"),
    "another object": in_text("config.json", "[]", "the files cannot be read: "),
    "extra tensor": in_tensors(
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": np.zeros(160, "f4")}),
        "up_proj.bias: is a tensor in model.safetensors that no model of this shape has",
    ),
    "tensor missing": in_tensors(lambda tensors: tensors.pop(NORM), f"{NORM}: is not in model"),
    "tensor of another type": in_tensors(
        lambda tensors: tensors.update({NORM: tensors[NORM].astype("f2")}),
        f"{NORM}: is of type F16, expected f32",
    ),
    "tensor of another shape": in_tensors(
        lambda tensors: tensors.update({NORM: tensors[NORM][:-1]}), rf"{NORM}: has shape \(63,\)"
    ),
    "weights truncated": (
        lambda d: (d / "model.safetensors").write_bytes(b"12345678"),
        "the files cannot be read: SafetensorError",
    ),
    "adapter": in_text("adapter_config.json", "{}", "adapter_config.json: is a file in x.unproven"),
}
GGUF: dict[str, Mutation] = {
    "length": in_bytes(
        "model.gguf", *u32("llama.context_length", 256, 257), "llama.context_length is 257 in"
    ),
    "file type": in_bytes("model.gguf", *u32("general.file_type", 0, 1), "general.file_type is 1"),
    "field renamed": in_bytes(
        "model.gguf", b"general.name", b"general.nama", "general.name is missing in model.gguf"
    ),
    "end of text": in_bytes(
        "model.gguf",
        *u32("tokenizer.ggml.eos_token_id", 2, 2**32 - 1),
        "eos_token_id is 4294967295",
    ),
    "rare piece": in_bytes(
        "model.gguf", "\u2581the".encode(), "\u2581thq".encode(), r"tokenizer.ggml.tokens\[\d+\] is"
    ),
    "not UTF-8": in_bytes(
        "model.gguf", "\u2581the".encode(), b"\xff" * 6, "the files cannot be read: UnicodeDecode"
    ),
    "no GGUF": (
        lambda d: (d / "model.gguf").write_bytes(b"GGUF"),
        "the files cannot be read: ",
    ),
    "renamed": (
        lambda d: (d / "model.gguf").rename(d / "x.gguf"),
        "the files cannot be read: FileNotFoundError",
    ),
}
MUTATIONS = {
    f"{to}: {what}": (to, *mutation)
    for to, mutations in (("hf", HF), ("gguf", GGUF))
    for what, mutation in mutations.items()
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_every_mutation_of_an_export_is_refused(runs, tmp_path, monkeypatch, what):
    to, mutate, said = MUTATIONS[what]
    form = convert.FORMATS[to]
    written = form.write
    assert written

    def write(weights, out, dtype, **options) -> None:
        written(weights, out, dtype, **options)
        mutate(out)

    monkeypatch.setitem(convert.FORMATS, to, dataclasses.replace(form, write=write))
    with pytest.raises(convert.WrongExport, match=said) as e:
        export(runs / "gqa", tmp_path / "x", to)
    assert "\n" not in str(e.value) and not (tmp_path / "x").exists()


def test_a_quantiser_that_rounds_down_is_refused(runs, tmp_path, monkeypatch):
    """By up to a whole step, where q4_0 loses half of one, but at one end of its scale."""

    def floored(matrix, dtype, parameter, cfg):
        data, kind = encode(matrix, dtype, parameter, cfg)
        if parameter.role != "up":
            return data, kind
        blocks = data.reshape(-1, 18).copy()  # two bytes of scale, 32 values of four bits
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        exact = matrix.reshape(-1, 32) / scale + 8
        values = np.clip(np.floor(exact), 0, 15).astype(np.uint8)
        blocks[:, 2:] = values[:, :16] | values[:, 16:] << 4
        return blocks.reshape(data.shape), kind

    encode = gguf.encode
    monkeypatch.setattr(gguf, "encode", floored)
    cause = r"blk.0.ffn_up.weight differs by .*, more than q4_0 rounds, and 2 more tensors do"
    with pytest.raises(convert.WrongExport, match=cause):
        export(runs / "gqa", tmp_path / "x", "gguf", "q4_0")
