"""Exports, through the programs that they are for."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.exports import experiment_of, export_in_child, logits_of
from helpers.paths import ROOT, SHARED
from helpers.processes import environment, has_torch, interpreter
from llama_jax.data import tokenizer
from llama_jax.formats.proofs import client as clients
from llama_jax.formats.proofs import compare, prove

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
PACKAGES = {"hf": "transformers", "litgpt": "litgpt", "gguf": "llama-cpp-python"}


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
        clients.run(python, PACKAGES[to], *where)
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
