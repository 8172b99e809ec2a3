"""Exports, through the programs that they are for, and what is refused as wrong."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from etils import epath
from exports import (
    GQA,
    ROOT,
    SHARED,
    child,
    experiment_of,
    export,
    export_in_child,
    has_torch,
    interpreter,
    logits_of,
    main,
    save_random,
    sha256,
)
from gguf import GGUFWriter

from llama_jax import cli
from llama_jax.config import ModelConfig, UserError
from llama_jax.data import documents, tokenizer
from llama_jax.experiment import load, override, to_json
from llama_jax.formats import convert, gguf, hf, native, vocabulary, weights
from llama_jax.formats.parameters import Parameter, interleave_rope, num_values
from llama_jax.formats.proofs import compare, prove
from llama_jax.formats.proofs import gguf as gguf_proof
from llama_jax.formats.proofs import hf as hf_proof

# <s> in a text is a text to SentencePiece, and a token to transformers.
TEXTS = [text for text in tokenizer.MUST_SURVIVE if "<s>" not in text]


# Real clients

# Limits: of the difference from our logits, in their standard deviations, and of the KL divergence.
# llama.cpp rounds activations to the type of the weights, so that even what these weights lose
# nothing in, bf16, is not exact there.
EXACT, BF16 = (1e-4, 1e-7), (0.3, 5e-3)
ROUNDED = {  # of one model
    ("hf", "bf16"): BF16,
    ("gguf", "f16"): (0.1, 1e-3),
    ("gguf", "bf16"): BF16,
    ("gguf", "q8_0"): (2.0, 5e-2),
    ("gguf", "q4_0"): (5.0, 1.5),
}
CLIENTS = {
    "transformers": "hf",
    "transformers4": "hf",
    "litgpt": "litgpt",
    "meta": "meta",
    "llamacpp": "gguf",
}


@pytest.fixture(scope="module")
def exported(request, runs, trained, tmp_path_factory) -> dict[Path, tuple[Path, str, str]]:
    """Return what was exported: directory -> (workdir, format, type). All in one process."""
    directory = tmp_path_factory.mktemp("exported")
    workdirs = [runs / "mha", runs / "gqa", trained]
    if (SHARED / "weights/stories260K.bin").exists():
        workdirs.append(request.getfixturevalue("stories"))
    made = {}
    for workdir in workdirs:
        cfg = experiment_of(workdir).model
        tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 48)).astype(np.int32)
        (directory / workdir.name).mkdir()
        np.save(directory / workdir.name / "tokens.npy", tokens)
        np.save(directory / workdir.name / "logits.npy", logits_of(workdir, tokens))
        exact = [(to, "f32") for to in ("hf", "gguf", *["litgpt", "meta"] * has_torch())]
        for to, dtype in exact + list(ROUNDED) * (workdir.name == "gqa"):
            out = directory / workdir.name / f"{to}-{dtype}"
            made[out] = workdir, to, dtype
            # stories260K's tokenizer removes extra spaces, and llama.cpp does not.
            single = to == "gguf" and workdir.name == "stories"
            texts = [prove.without_extra_spaces(t) if single else t for t in TEXTS]
            processor = tokenizer.load(experiment_of(workdir).data.tokenizer)
            survive = {text: processor.decode(processor.encode(text)) for text in texts}
            Path(f"{out}.texts.json").write_text(json.dumps(survive))
    jobs = [
        dict(workdir=workdir, out=out, to=to, dtype=dtype)
        | (dict(shards=2) if to == "meta" else {})
        for out, (workdir, to, dtype) in made.items()
    ]
    done = export_in_child(jobs)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_compute_our_logits_and_ids(client, exported):
    python, script = interpreter(client), Path(__file__).with_name("clients.py")
    outs = [out for out, (_, to, _) in exported.items() if to == CLIENTS[client]]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [python, str(script), client, *map(str, outs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for out in outs:
        workdir, to, dtype = exported[out]
        logits = np.load(f"{out}.{client}.npy")
        figures = compare.compare(logits, np.load(out.parent / "logits.npy"))
        print(client, workdir.name, out.name, figures)
        limit, kl_limit = ROUNDED.get((to, dtype), EXACT)
        assert figures["max_rel"] < limit and abs(figures["kl"]) < kl_limit, out
        processor = tokenizer.load(experiment_of(workdir).data.tokenizer)
        texts = json.loads(Path(f"{out}.texts.json").read_text())
        ids = json.loads(Path(f"{out}.{client}.json").read_text())
        assert ids == [[processor.bos_id(), *processor.encode(text)] for text in texts]


def test_an_export_says_what_it_is(runs, tmp_path, capsys):
    """By the command, in files of a size, with what its manifest has to hold."""
    command = ["export", runs / "gqa", "--to", "hf", "--out", tmp_path / "hf", "--type", "bf16"]
    done = main(*command, "--shard-size", "0.0003")
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
    text = to_json(experiment).encode()
    assert manifest["experiment_sha256"] == hashlib.sha256(text).hexdigest()
    assert (manifest["format"], manifest["type"], manifest["step"]) == ("hf", "bf16", 0)
    verification = manifest["verification"]
    assert verification["passed"] and verification["causes"] == []
    assert verification["conversion"]["greedy_agreement"] == 1
    assert verification["rounding"]["max_abs"] == 0  # these weights are exact in bf16

    command = (*command[:5], tmp_path / "other", "--no-verify")
    args = cli.parser().parse_args([*map(str, command)])
    assert args.run(args) == 0 and "not verified" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "other/export.json").read_text())
    assert manifest["verification"] == "none: --no-verify"


def test_spaces_that_llama_cpp_does_not_remove_are_said(stories, tmp_path):
    manifest = export(stories, tmp_path / "x", "gguf")
    (note,) = manifest["notes"]
    assert "a text with repeated, leading or trailing spaces becomes other tokens" in note
    assert note in convert.summary(tmp_path / "x", manifest)
    assert manifest["verification"]["texts"] == 12
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
    hf.write_config(source, tmp_path, "f32")
    hf.write_tokenizer(source, tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert hf_proof.open_files(tmp_path, source).differences == []
    config = json.loads((tmp_path / "config.json").read_text()) | {field: CHANGED[field]}
    weights.write_json(tmp_path / "config.json", config)
    (said,) = hf_proof.open_files(tmp_path, source).differences
    assert f"{field} is {CHANGED[field]!r} in config.json, expected" in said


@pytest.mark.parametrize(
    "field", ("embedding_length", "feed_forward_length", "rope_dimension_count", "vocab_size")
)
def test_every_field_that_llama_cpp_reads_is_compared(runs, tmp_path, monkeypatch, field):
    real = getattr(GGUFWriter, f"add_{field}")
    monkeypatch.setattr(GGUFWriter, f"add_{field}", lambda writer, n: real(writer, n + 1))
    source = native.read(runs / "gqa")
    gguf.write(source, tmp_path, "f32")
    (said,) = gguf_proof.open_files(tmp_path, source).differences
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


# In a process of its own, for torch.
REFUSED_META = """
import sys
from exports import convert, export

def refused(**options):
    try:
        export(sys.argv[1], sys.argv[2], "meta", **options)
    except (convert.UserError, convert.WrongExport) as e:
        print(e)

refused(shards=8)
shard = convert.meta._shard
convert.meta._shard = lambda values, role, i, shards: (
    shard(values, role, i, shards) + (i if role == "final_norm" else 0))
refused(shards=2)
convert.meta._shard = shard
convert.meta.interleave_rope = lambda matrix, *_: matrix
refused()
"""


def test_exports_to_meta_are_refused(runs, tmp_path):
    interpreter("meta")
    done = child(REFUSED_META, runs / "gqa", tmp_path / "x")
    split, norms, wrong = done.stdout.splitlines()
    assert split == "--shards: got 8, expected a divisor of model.num_kv_heads=2"
    assert "norm.weight: is not the same in consolidated.01.pth as in the others" in norms
    assert "likely cause: Q/K permutation: the rows of wq and wk" in wrong
    assert [path.name for path in tmp_path.iterdir()] == ["x.unproven"]


def test_a_wrong_export_is_a_failure_of_the_command(runs, tmp_path, monkeypatch, capsys):
    unpermuted(gguf)(monkeypatch)
    command = ("export", runs / "mha", "--to", "gguf", "--type", "q8_0", "--out", tmp_path / "x")
    args = cli.parser().parse_args([*map(str, command)])
    assert args.run(args) == 1
    printed = capsys.readouterr().err
    assert "do not compute what the checkpoint does" in printed and "Q/K permutation" in printed


def test_rounding_in_a_model_that_amplifies_it_is_not_a_mistake(tmp_path):
    """Weights so large that fp32 alone makes a difference of more than 1e-4; and a mistake still
    makes a larger one."""
    save_random(dataclasses.replace(GQA, init_std=3 / 8), tmp_path / "run")
    manifest = export(tmp_path / "run", tmp_path / "x", "gguf")
    assert manifest["verification"]["passed"]


# Memory


# In a process of its own. What the code and its libraries take is known from a model of one layer.
SEQ_LEN = 256
MEMORY = """
import json, sys
from pathlib import Path
import exports
from llama_jax.data.tokenizer import EMBEDDED
from llama_jax.formats.convert import import_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

directory = Path(sys.argv[1])
steps = {"import": lambda size: import_model(directory / f"{size}.bin", directory / size, EMBEDDED)}
for to in sys.argv[2:]:
    options = {"shards": 2} if to == "meta" else {}
    steps[to] = lambda size, to=to, options=options: exports.export(
        directory / size, directory / f"{size}-{to}", to, "f32", **options)
figures = {}
for name, step in steps.items():
    step("small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = status("VmRSS")
    step("large")
    figures[name] = status("VmHWM") - before, status("VmHWM")
print(json.dumps(figures))
"""


def write_llama2c(path: Path, cfg: ModelConfig) -> None:
    """Random weights in llama2.c's format."""
    header = (cfg.embed_dim, cfg.mlp_dim, cfg.num_layers, cfg.num_heads, cfg.kv_heads)
    values = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    values /= cfg.embed_dim**0.5
    left = num_values(cfg) + SEQ_LEN * cfg.head_dim  # with its tables of sines
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", *header, cfg.vocab_size, SEQ_LEN))
        while left:
            values[:left].tofile(file)
            left -= len(values[:left])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # or glibc keeps what each thread has freed
    one = ModelConfig(
        num_layers=1, embed_dim=512, num_heads=8, mlp_dim_override=1408, vocab_size=2048,
        tie_embeddings=True,
    )  # fmt: skip
    many = dataclasses.replace(one, num_layers=24)
    write_llama2c(tmp_path / "small.bin", one)
    write_llama2c(tmp_path / "large.bin", many)
    done = child(MEMORY, tmp_path, "hf", "gguf", *["meta"] * has_torch())
    assert done.returncode == 0, done.stderr
    layer_and_embedding = 4 * num_values(one)
    for name, (grown, peak) in json.loads(done.stdout).items():
        print(f"{name}: {grown / 1e6:.0f} MB more than before, {peak / 1e6:.0f} MB in all")
        assert grown < layer_and_embedding + 80e6 < 4 * num_values(many) / 3, name
        assert peak < layer_and_embedding + 1.5e9, name


# Tokenizers

MODELS = [ROOT / "llama_jax/data/tokenizer.model"] + [
    SHARED / name
    for name in (
        "tokenizers/llama_tokenizer.model",
        "tokenizers/mistral_v1_apache2.tokenizer.model",
        "weights/tok512.model",
    )
]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_other_tokenizers_give_sentencepiece_s_ids(path):
    """tokenizer.json by the tokenizers package, and the model that is made of a GGUF's fields."""
    if not path.exists():
        pytest.skip("the tokenizer is not here (../shared/data)")
    tokenizers = pytest.importorskip("tokenizers")
    model = path.read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    parsed = vocabulary.parse(model)
    fast = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.hugging_face(parsed)))
    fast.encode_special_tokens = True  # "<s>" in a text is text
    special = {name: getattr(parsed.trainer_spec, name) for name in ("unk_id", "bos_id", "eos_id")}
    columns = ([getattr(p, f) for p in parsed.pieces] for f in ("piece", "score", "type"))
    extra_spaces = parsed.normalizer_spec.remove_extra_whitespaces
    again = sentencepiece.SentencePieceProcessor(
        model_proto=vocabulary.sentencepiece(*columns, special, extra_spaces)
    )
    runs = [character * n for character in " =a" for n in range(1, 80)]
    texts = [
        *tokenizer.MUST_SURVIVE,
        "",
        "\n",
        *runs,
        *(f"\n{run}x" for run in runs),
        *corpus_texts(),
    ]
    for text in texts:
        ids = processor.encode(text)
        assert fast.encode(text).ids == [processor.bos_id(), *ids], text
        assert fast.decode(ids, skip_special_tokens=False) == processor.decode(ids), text
        assert again.encode(text) == ids and again.decode(ids) == processor.decode(ids), text


def corpus_texts() -> list[str]:
    data = load(str(ROOT / "experiments/quickstart.py")).data
    return [
        text[:2000]
        for source, _ in data.mixture
        for text in itertools.islice(
            documents.read(documents.files(data, source, "validation")[0]), 20
        )
    ]


# What cannot be exported


def test_what_cannot_be_exported_is_said_in_a_line(runs, tmp_path, monkeypatch):
    def refused(match, to, dtype="f32", workdir=runs / "gqa", **options):
        with pytest.raises(UserError, match=match) as e:
            export(workdir, tmp_path / "out", to, dtype, **options)
        assert "\n" not in str(e.value) and not list(tmp_path.glob("out*"))

    refused("--type: got q8_0 for hf, expected one of f32, bf16, f16", "hf", "q8_0")
    command = ("export", runs / "gqa", "--to", "hf", "--out", tmp_path / "out", "--shards", 4)
    args = cli.parser().parse_args([*map(str, command)])
    with pytest.raises(UserError, match="--shards belongs to --to meta; got --to hf"):
        args.run(args)
    args = cli.parser().parse_args([*map(str, command[:-2]), "--set", "model.rope_theta=500"])
    with pytest.raises(UserError, match="--set: got model.rope_theta=500.0, but the checkpoint"):
        args.run(args)
    large = dataclasses.replace(GQA, init_std=60_000.0)
    save_random(large, tmp_path / "large")
    refused("--type: .*layers/.* has a value beyond .* of f16", "hf", "f16", tmp_path / "large")
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="--out: .*here is there already"):
        export(runs / "gqa", tmp_path / "here", "hf")
    experiment = override(experiment_of(runs / "gqa"), "data.tokenizer=no.model")
    source = native.read_step(epath.Path(runs / "gqa"), 0, experiment)
    with pytest.raises(UserError, match="data.tokenizer: no file no.model"):
        convert.convert(source, "meta", tmp_path / "out", "f32")
    unigram = vocabulary.parse(MODELS[0].read_bytes())
    unigram.trainer_spec.model_type = unigram.trainer_spec.UNIGRAM
    with pytest.raises(UserError, match="data.tokenizer: model_type is"):
        vocabulary.parse(unigram.SerializeToString())
    monkeypatch.setitem(sys.modules, "torch", None)
    refused("PyTorch is needed for .pth files", "meta")
