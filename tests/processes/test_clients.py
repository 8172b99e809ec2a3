"""Exports, through the programs that they are for."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from helpers import byte_level
from helpers.exports import GQA, experiment_of, export_in_child, logits_of, save_random
from helpers.paths import ROOT, SHARED
from helpers.processes import environment, has_torch, interpreter, llama_jax
from llama_jax.data import tokenizer
from llama_jax.formats import convert, gguf, native
from llama_jax.formats.proofs import client as clients
from llama_jax.formats.proofs import compare, prove
from llama_jax.formats.proofs import gguf as gguf_proof

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
            made[directory / workdir.name / f"{to}-{dtype}"] = workdir, to, dtype
    jobs = [
        dict(workdir=workdir, out=out, to=to, dtype=dtype)
        | (dict(shards=2) if to == "meta" else {})
        for out, (workdir, to, dtype) in made.items()
    ]
    done = export_in_child(jobs)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_compute_our_logits_and_ids(client, exported, tmp_path):
    python, to = interpreter(client), CLIENTS[client]
    places = {}
    for number, (out, (workdir, form, _)) in enumerate(exported.items()):
        if form == to:
            # stories260K's tokenizer removes extra spaces, and llama.cpp does not.
            single = to == "gguf" and workdir.name == "stories"
            texts = [prove.without_extra_spaces(t) if single else t for t in TEXTS]
            places[out] = tmp_path / str(number), texts
            places[out][0].mkdir()
            tokens = np.load(out.parent / "tokens.npy")
            clients.write_request(places[out][0], out, tokens, texts, bos=True)
    where = [place for place, _ in places.values()]
    if client == "meta":
        script = ROOT / "tests/helpers/meta.py"
        subprocess.run([python, script, *where], env=environment(), check=True)
    else:
        clients.run(python, convert.FORMATS[to].client[0], *where)
    for out, (place, texts) in places.items():
        workdir, _, dtype = exported[out]
        reply = clients.read_reply(place)
        figures = compare.compare(reply.logits_BTV, np.load(out.parent / "logits.npy"))
        print(client, workdir.name, out.name, figures)
        limit, kl_limit = ROUNDED.get((to, dtype), EXACT)
        assert figures["max_rel"] is not None and figures["kl"] is not None
        assert figures["max_rel"] < limit and abs(figures["kl"]) < kl_limit, out
        vocabulary = tokenizer.load(experiment_of(workdir).data.tokenizer)
        assert reply.ids == [[vocabulary.bos_id, *vocabulary.encode(text)] for text in texts]
        survive = [vocabulary.decode(vocabulary.encode(text)) for text in texts]
        assert reply.decoded == ([] if to == "gguf" else survive)


@pytest.mark.parametrize(
    ("client", "dtype"), [("transformers", "bf16"), ("litgpt", "f16"), ("llamacpp", "q8_0")]
)
def test_an_export_is_verified_in_its_client(cli, client, dtype, runs, tmp_path):
    python, to = interpreter(client), CLIENTS[client]
    named = [] if python == sys.executable else [python]
    short = ("--set", "data.seq_len=48")  # fewer than the tokens of a prompt
    command = ("export", runs / "gqa", *short, "--to", to, "--type", dtype, "--out", tmp_path / "x")
    here = llama_jax if to == "litgpt" else cli  # torch writes it, in a process of its own
    done = here(*command, "--client", *named)
    assert done.returncode == 0, done.stderr
    verification = json.loads((tmp_path / "x/export.json").read_text())["verification"]
    asked = verification["client"]
    assert verification["passed"] and asked["causes"] == [] and asked["texts"] == len(TEXTS)
    assert asked["name"] == convert.FORMATS[to].client[0]
    said = f"verified in {asked['name']} {asked['version']}: {compare.describe(asked['logits'])}"
    assert said in done.stdout
    if to != "gguf":  # llama.cpp rounds activations, and as much as was foretold
        assert asked["limits"] == {"max_rel": 1e-4} and asked["logits"]["max_rel"] < 1e-4
    else:
        for figure, times in (("max_rel", prove.TIMES_INPUTS), ("kl", prove.TIMES_INPUTS**2)):
            assert 0.5 < times * asked["logits"][figure] / asked["limits"][figure] < 2
        assert "accepted, since it rounds activations)" in done.stdout


@pytest.mark.parametrize("kind", ["llama3", "smollm"])
def test_byte_level_tokenizers_are_those_of_llama_cpp(kind, tmp_path):
    python, made = interpreter("llamacpp"), getattr(byte_level, kind)()
    content = tokenizer.read(str(byte_level.save(made, tmp_path / "tokenizer", 0, 0)))
    cfg = dataclasses.replace(GQA, vocab_size=made.get_vocab_size() + 3)
    save_random(cfg, tmp_path / "run")
    source = dataclasses.replace(native.read(tmp_path / "run"), read_tokenizer=lambda: content)
    manifest = convert.convert(source, "gguf", tmp_path / "x", "f32", client=python)
    assert manifest["verification"]["client"]["texts"] == len(TEXTS)


# What clients alone notice: a mistake that a writer and our reader of its files have in common


def other_rotary_layout(monkeypatch):
    def open_files(*args):
        files = gguf_proof.open_files(*args)
        conventions = dataclasses.replace(files.conventions, q_pairs=False, k_pairs=False)
        return dataclasses.replace(files, conventions=conventions)

    monkeypatch.setattr(gguf, "interleave_rope", lambda matrix, *_: matrix)
    form = dataclasses.replace(gguf.FORMAT, open_files=open_files)
    monkeypatch.setitem(convert.FORMATS, "gguf", form)


def other_field(method, key, value):
    """Return a patch that has a field written with another value, None for not at all, and
    expected so."""

    def patch(monkeypatch):
        def expected(*args):
            fields = real_fields(*args) | {key: value}
            if value is None:
                del fields[key]
                fields["GGUF.kv_count"] -= 1
            return fields

        real_fields, real_method = gguf_proof._expected_fields, getattr(GGUFWriter, method)
        write = (lambda *_: None) if value is None else lambda w, _: real_method(w, value)
        monkeypatch.setattr(GGUFWriter, method, write)
        monkeypatch.setattr(gguf_proof, "_expected_fields", expected)

    return patch


def other_reply(change):
    """Return a patch that has a program reply something else, change(reply) of its fields."""

    def patch(monkeypatch):
        def read(place):
            reply = real(place)
            return dataclasses.replace(reply, **change(reply))

        real = clients.read_reply
        monkeypatch.setattr(clients, "read_reply", read)

    return patch


NOTICED = {
    "logits": (other_rotary_layout, "logits differ by .* accepted"),
    "tokens": (
        other_field("add_add_space_prefix", "tokenizer.ggml.add_space_prefix", False),
        "the tokens of 'one  two   three    four' are others, and of 11 more texts",
    ),
    "a file that is refused": (
        other_field("add_block_count", "llama.block_count", None),
        "of .*/python: ValueError: .* key not found in model: llama.block_count",
    ),
    "decoding": (
        other_reply(lambda _: dict(decoded=[*TEXTS[:-1], "other"])),
        r"the decoded tokens of 'control \\x01.*' are others$",
    ),
    "shape": (
        other_reply(lambda reply: dict(logits_BTV=reply.logits_BTV[..., 1:])),
        r"logits are of shape \(2, 64, 2079\), not \(2, 64, 2080\)",
    ),
    "not finite": (
        other_reply(lambda reply: dict(logits_BTV=reply.logits_BTV * np.nan)),
        "logits are not finite",
    ),
}


@pytest.mark.parametrize("how", NOTICED)
def test_what_only_the_client_notices_is_refused(how, runs, tmp_path, monkeypatch):
    """In the type that hides most."""
    python, (patch, cause) = interpreter("llamacpp"), NOTICED[how]
    patch(monkeypatch)
    source = convert.open_source(runs / "gqa")
    assert convert.convert(source, "gguf", tmp_path / "x", "q4_0")["verification"]["passed"]
    with pytest.raises(convert.WrongExport, match=f"in llama-cpp-python [0-9.]+, {cause}") as e:
        convert.convert(source, "gguf", tmp_path / "y", "q4_0", client=python)
    print(e.value)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y.unproven"}
    manifest = json.loads((tmp_path / "y.unproven/export.json").read_text())
    assert not manifest["verification"]["passed"] and manifest["verification"]["causes"] == []


# Clients that cannot be asked


def test_a_python_without_the_client_is_refused_before_anything_is_written(cli, runs, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    command = ("export", runs / "gqa", "--to", "gguf", "--out", tmp_path / "x", "--client")
    done = cli(*command, python)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--client: {python} cannot import llama-cpp-python: " in done.stderr
    assert "No module named" in done.stderr
    assert "install it there with pip install llama-cpp-python" in done.stderr
    done = cli(*command, "/bin/echo")
    assert done.returncode == 2 and "--client: /bin/echo is no Python" in done.stderr
    killed = tmp_path / "venv/bin/killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    done = cli(*command, killed)
    assert done.returncode == 2
    assert f"{killed} cannot import llama-cpp-python: ended on signal 9, as for" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["venv"]


def test_a_client_imports_from_its_own_environment_only(tmp_path, monkeypatch):
    python = interpreter("llamacpp")
    for name in ("json", "numpy", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert clients.find(("llama-cpp-python",), python).python == python


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
def test_a_client_ends_with_a_parent_that_is_killed(tmp_path):
    """Though it waits for a request that would still come."""
    os.mkfifo(tmp_path / "request.json")
    code = "import sys; from llama_jax.formats.proofs import client; client.run(*sys.argv[1:])"
    client = (interpreter("llamacpp"), "llama-cpp-python", tmp_path)
    command = [sys.executable, "-c", code, *map(str, client)]
    parent = subprocess.Popen(command, env=environment())
    pipe = os.open(tmp_path / "request.json", os.O_WRONLY)  # once the client reads
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with pytest.raises(BrokenPipeError):
        for _ in range(200):
            os.write(pipe, b" ")
            time.sleep(0.05)
    os.close(pipe)
