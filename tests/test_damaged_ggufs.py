"""GGUFs that are refused, and the one line that says why."""

import struct
from functools import partial
from pathlib import Path

import gguf
import pytest
from gguf import GGUFWriter

from helpers.exports import export, refused

NAN = struct.pack("<f", float("nan"))


def _tensor_type(name: str, kind: int) -> bytes:
    """What a GGUF says of a matrix of 64 x 64: its name, axes, their sizes and its type."""
    return name.encode() + struct.pack("<IQQI", 2, 64, 64, kind)


def test_damaged_ggufs_are_named(good, tmp_path):
    whole = (good / "gguf/model.gguf").read_bytes()
    file = tmp_path / "x.gguf"
    for data, match in (
        (whole[: len(whole) // 2], r"x.gguf: is truncated: tensor blk.\S+ ends at byte"),
        (whole[:5000], "x.gguf: is truncated or no GGUF"),
        (whole[:16] + b"\xff" * 8 + whole[24:], "x.gguf: is truncated or no GGUF: "),
        (moved(whole, "blk.1.attn_k.weight"), r"blk.1.attn_k.weight is at \d+, expected \d+"),
        (
            set_field(whole, "llama.block_count", 3, 2**31 - 1),
            "x.gguf: has no tensor blk.3.attn_norm.weight",
        ),
        (
            set_field(whole, "tokenizer.ggml.eos_token_id", 2, 2**32 - 1),
            "the token eos_id is 4294967295, expected one of 2048 tokens",
        ),
        (
            whole.replace("\u2581the".encode(), b"\xff" * 6, 1),
            "tokenizer.ggml.tokens is damaged: 'utf-8' codec can't decode",
        ),
        (b"GGML" + whole[4:], "x.gguf: is truncated or no GGUF: GGUF magic invalid"),
        (whole.replace(b"llama", b"qwen9", 1), "general.architecture is 'qwen9'"),
        (
            set_field(whole, "llama.attention.head_count", 4, 0),
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


def set_field(whole: bytes, key: str, old: int, new: int) -> bytes:
    """Change a u32 of a GGUF's header."""
    before, after = (key.encode() + struct.pack("<2I", 4, value) for value in (old, new))
    assert before in whole
    return whole.replace(before, after)


def moved(whole: bytes, tensor: str) -> bytes:
    """Change the offset of a matrix in a GGUF by its alignment."""
    at = whole.index(tensor.encode()) + len(tensor) + 4 + 16 + 4
    offset = int.from_bytes(whole[at : at + 8], "little") + 32
    return whole[:at] + offset.to_bytes(8, "little") + whole[at + 8 :]


FOREIGN_GGUF = {  # what another writer says
    "rope scaling by its old key": (
        lambda w: w.add_float32("llama.rope.scale_linear", 4.0),
        "llama.rope.scale_linear is 4.0, and llama_jax knows 0.0 or 1.0 only",
    ),
    "rope scaling without a type": (
        lambda w: w.add_rope_scaling_factor(4.0),
        "llama.rope.scaling.factor is 4.0, and llama_jax knows 0.0 or 1.0 only",
    ),
    "rope scaling": (
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        "llama.rope.scaling.type is 'yarn', and llama_jax knows 'none' only",
    ),
    "experts": (lambda w: w.add_expert_count(8), "llama.expert_count is 8, and llama_jax knows 0"),
    "sliding window": (
        lambda w: w.add_sliding_window(512),
        "llama.attention.sliding_window is 512",
    ),
    "parts": (
        lambda w: w.add_uint16("split.count", 3),
        r"x.gguf: is one of 3 parts \(split.count\); .* llama-gguf-split --merge",
    ),
}


@pytest.mark.parametrize("what", FOREIGN_GGUF)
def test_what_another_writer_says_in_a_gguf_is_not_dropped(runs, tmp_path, monkeypatch, what):
    say, match = FOREIGN_GGUF[what]
    real = GGUFWriter.add_name
    monkeypatch.setattr(GGUFWriter, "add_name", lambda w, name: [real(w, name), say(w)])
    refuse_gguf(runs, tmp_path, match)


FOREIGN_VOCABULARY = {
    "no space before": ("add_add_space_prefix", lambda _: False, "add_space_prefix is false"),
    "types missing": (
        "add_token_types",
        lambda types: types[:-1],
        "tokenizer.ggml.token_type has not a value for each of the tokens",
    ),
    "no such type": (
        "add_token_types",
        lambda types: [9, *types[1:]],
        "tokenizer.ggml.token_type has 9, expected 1 to 6",
    ),
    "scores are whole": (
        "add_token_scores",
        lambda scores: [0] * len(scores),
        "tokenizer.ggml.scores is not of float only",
    ),
}


@pytest.mark.parametrize("what", FOREIGN_VOCABULARY)
def test_another_vocabulary_in_a_gguf_is_refused(runs, tmp_path, monkeypatch, what):
    method, other, match = FOREIGN_VOCABULARY[what]
    real = getattr(GGUFWriter, method)
    monkeypatch.setattr(GGUFWriter, method, lambda w, values: real(w, other(values)))
    refuse_gguf(runs, tmp_path, match)


def test_a_gguf_of_a_big_endian_machine_is_refused(runs, tmp_path, monkeypatch):
    writer = partial(GGUFWriter, endianess=gguf.GGUFEndian.BIG)
    monkeypatch.setattr(gguf, "GGUFWriter", writer)
    refuse_gguf(runs, tmp_path, "x.gguf: its numbers are big-endian")


def refuse_gguf(runs: Path, tmp_path: Path, match: str) -> None:
    export(runs / "gqa", tmp_path / "made", "gguf", verify=False)
    file = (tmp_path / "made/model.gguf").rename(tmp_path / "x.gguf")
    refused(file, tmp_path, match)
