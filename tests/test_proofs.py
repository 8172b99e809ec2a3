"""Wrong exports: how a writer goes wrong, and what has to be said of it."""

import dataclasses
import json

import numpy as np
import pytest
from gguf import GGUFWriter

from helpers.exports import (
    GQA,
    export,
)
from llama_jax.formats import convert, gguf, hf, native, vocabulary, weights
from llama_jax.formats.parameters import Parameter, interleave_rope
from llama_jax.formats.proofs import compare, prove
from llama_jax.formats.proofs import gguf as gguf_proof
from llama_jax.formats.proofs import hf as hf_proof

# Wrong exports: how a writer goes wrong, and what has to be said of it


def changed(module, change):
    """Return a patch that has a writer write change(matrix, role, layer) for a matrix."""

    def patch(monkeypatch):
        real = module.cast
        monkeypatch.setattr(
            module, "cast", lambda matrix, dtype, where: real(change(matrix, *where), dtype, where)
        )

    return patch


def unpermuted(module):
    return lambda monkeypatch: monkeypatch.setattr(
        module, "interleave_rope", lambda matrix, *_: matrix
    )


def permuted(matrix, role, layer):
    return interleave_rope(matrix, role, GQA)


def only_k(matrix, role, layer):
    return permuted(matrix, role, layer) if role == "k" else matrix


def one_layer(matrix, role, layer):
    return permuted(matrix, role, layer) if layer == 1 else matrix


def transposed(matrix, role, layer):
    return matrix.T if role == "o" else matrix


def reversed_kv_heads(matrix, role, layer):
    heads = matrix.reshape(GQA.kv_heads, -1) if role == "v" else matrix
    return heads[::-1].reshape(matrix.shape) if role == "v" else matrix


def shifted_tokens(matrix, role, layer):
    return np.roll(matrix, 1, 0) if role == "embedding" else matrix


def not_finite(matrix, role, layer):
    return matrix * np.nan if (role, layer) == ("up", 2) else matrix


def noisy(matrix, role, layer):
    noise = np.random.default_rng(0).normal(size=matrix.shape) * matrix.std() / 100
    return matrix + noise if (role, layer) == ("up", 2) else matrix


def swapped(a, b):
    names = hf.NAMES | {a: hf.NAMES[b], b: hf.NAMES[a]}
    return lambda monkeypatch: monkeypatch.setattr(hf, "NAMES", names)


def misconfigured(field, value):
    """config.json says something else, and so does what has been computed with it."""

    def write(source, out, dtype):
        cfg = dataclasses.replace(source.cfg, **{field: value})
        write_config(dataclasses.replace(source, cfg=cfg), out, dtype)

    write_config = hf.write_config
    return lambda monkeypatch: monkeypatch.setattr(hf, "write_config", write)


def other_merges(monkeypatch):
    real = vocabulary._merges
    monkeypatch.setattr(vocabulary, "_merges", lambda parsed: real(parsed)[::-1])


def other_scores(monkeypatch):
    real = GGUFWriter.add_token_scores
    monkeypatch.setattr(
        GGUFWriter, "add_token_scores", lambda writer, scores: real(writer, scores[::-1])
    )


def other_activation(monkeypatch):
    def write(path, value):
        other = {"hidden_act": "gelu"} if path.name == "config.json" else {}
        weights.write_json(path, value | other)

    monkeypatch.setattr(hf, "write_json", write)


WRONG = {
    "gguf not permuted": ("gguf", unpermuted(gguf), "Q/K permutation: the rows of wq and wk"),
    "hf permuted": ("hf", changed(hf, permuted), "Q/K permutation: the rows of wq and wk"),
    "k permuted": ("hf", changed(hf, only_k), "Q/K permutation: the rows of wk"),
    "one layer permuted": ("hf", changed(hf, one_layer), "none of the usual"),
    "transposed": ("hf", changed(hf, transposed), "transposed matrix: o"),
    "kv heads reversed": ("hf", changed(hf, reversed_kv_heads), "none of the usual"),
    "embedding off by one": ("hf", changed(hf, shifted_tokens), "none of the usual"),
    "noise of 1% on a matrix": ("hf", changed(hf, noisy), "layers.2.mlp.up_proj.weight differs by"),
    "gate and up": (
        "hf",
        swapped("gate", "up"),
        "gate and up are swapped",
    ),
    "norms": (
        "hf",
        swapped("attn_norm", "mlp_norm"),
        "none of the usual",
    ),
    "eps": ("hf", misconfigured("norm_eps", 1e-6), "norm eps: rms_norm_eps is 1e-06 .* 1e-05"),
    "theta": ("hf", misconfigured("rope_theta", 5_050.0), "rope base: rope_theta is 5050"),
    "not finite": (
        "hf",
        changed(hf, not_finite),
        "logits are not finite .* model.layers.2.mlp.up_proj.weight has values in the files that",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_exports_are_refused_and_their_cause_is_named(runs, tmp_path, monkeypatch, how):
    to, patch, cause = WRONG[how]
    patch(monkeypatch)
    with pytest.raises(convert.WrongExport, match=cause) as e:
        export(runs / "gqa", tmp_path / "x", to)
    print(e.value)
    assert not (tmp_path / "x").exists()
    manifest = (tmp_path / "x.unproven/export.json").read_text()
    verification = json.loads(manifest, parse_constant=pytest.fail)["verification"]
    assert not verification["passed"]
    assert not compare.within(verification["conversion"], prove.TOLERANCE)


UNSEEN = {  # by logits
    "activation": ("hf", other_activation, "hidden_act is 'gelu' in config.json"),
    "merges": ("hf", other_merges, "the files' tokenizer makes other tokens of 'one  two"),
    "scores": ("gguf", other_scores, "the files' tokenizer makes other tokens of 'one  two"),
}


@pytest.mark.parametrize("how", UNSEEN)
def test_what_logits_do_not_show_is_refused_too(runs, tmp_path, monkeypatch, how):
    to, patch, cause = UNSEEN[how]
    patch(monkeypatch)
    with pytest.raises(convert.WrongExport, match=cause):
        export(runs / "gqa", tmp_path / "x", to)


def test_a_quantiser_that_loses_too_much_is_refused(runs, tmp_path, monkeypatch):
    def halved(matrix, dtype, parameter, cfg):
        matrix = matrix / 2 if parameter.role == "up" else matrix
        return encode(matrix, dtype, parameter, cfg)

    encode = gguf.encode
    monkeypatch.setattr(gguf, "encode", halved)
    cause = r"blk.0.ffn_up.weight differs by .*, more than q8_0 rounds, and 2 more tensors do"
    with pytest.raises(convert.WrongExport, match=cause):
        export(runs / "gqa", tmp_path / "x", "gguf", "q8_0")


@pytest.mark.parametrize("dtype", ("f32", "bf16", "f16", "q8_0", "q4_0"))
def test_the_limit_of_a_type_is_what_it_rounds(dtype):
    """Values of every size down to f16's least, and blocks whose largest is of either sign."""
    x = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    x *= np.logspace(-8, 4, 512, dtype=np.float32)[:, None]
    gate = Parameter("gate", 0)
    cfg = dataclasses.replace(GQA, mlp_dim_override=512)
    error = np.abs(gguf.rounded(x, dtype, gate, cfg) - x)
    limit = compare.rounding(x, dtype)
    assert (error <= limit).all()
    assert dtype == "f32" or (error >= 0.8 * limit)[-100:].any()  # and is not much less


CHANGED = {
    "head_dim": 99,
    "hidden_size": 65,
    "intermediate_size": 161,
    "num_key_value_heads": 1,
    "vocab_size": 2081,
    "tie_word_embeddings": True,
    "eos_token_id": 3,
    "rope_theta": 10_000.0,
    "rope_scaling": {"type": "linear", "factor": 8.0},
    "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5_000.0},
}


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_that_transformers_reads_is_compared(runs, tmp_path, field):
    source = native.read(runs / "gqa")
    hf.write(source, tmp_path, "f32", shard_bytes=10**9)
    assert hf_proof.open_files(tmp_path, source, "f32").differences == []
    config = json.loads((tmp_path / "config.json").read_text()) | {field: CHANGED[field]}
    weights.write_json(tmp_path / "config.json", config)
    (said,) = hf_proof.open_files(tmp_path, source, "f32").differences
    changed = CHANGED[field]
    if field == "rope_parameters":  # of which the first value that differs is named
        field, changed = "rope_parameters.rope_type", "linear"
    assert f"{field} is {changed!r} in config.json, expected" in said


@pytest.mark.parametrize(
    "field", ("embedding_length", "feed_forward_length", "rope_dimension_count", "vocab_size")
)
def test_every_field_that_llama_cpp_reads_is_compared(runs, tmp_path, monkeypatch, field):
    real = getattr(GGUFWriter, f"add_{field}")
    monkeypatch.setattr(GGUFWriter, f"add_{field}", lambda writer, n: real(writer, n + 1))
    source = native.read(runs / "gqa")
    gguf.write(source, tmp_path, "f32")
    (said,) = gguf_proof.open_files(tmp_path, source, "f32").differences
    key = field.replace("rope_dimension", "rope.dimension")
    assert f"llama.{key} is " in said and "model.gguf, expected the checkpoint's" in said


def test_an_index_that_names_the_wrong_file_is_refused(runs, tmp_path, monkeypatch):
    def write(path, value):
        if path.name == hf.INDEX:
            value["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
        weights.write_json(path, value)

    monkeypatch.setattr(hf, "write_json", write)
    cause = "model.norm.weight: is not in model-00001-of-00002.safetensors"
    with pytest.raises(convert.WrongExport, match=cause):
        export(runs / "gqa", tmp_path / "x", "hf", shard_bytes=1_000_000)


def test_a_wrong_export_is_a_failure_of_the_command(cli, runs, tmp_path, monkeypatch):
    unpermuted(gguf)(monkeypatch)
    command = ("export", runs / "mha", "--to", "gguf", "--type", "q8_0", "--out", tmp_path / "x")
    done = cli(*command)
    assert done.returncode == 1
    printed = done.stderr
    assert "do not compute what the checkpoint does" in printed and "Q/K permutation" in printed
