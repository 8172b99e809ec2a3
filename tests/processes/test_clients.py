"""Exports, through the programs that they are for."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.exports import (
    experiment_of,
    export_in_child,
    logits_of,
)
from helpers.paths import ROOT, SHARED
from helpers.processes import has_torch, interpreter
from llama_jax.data import tokenizer
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
            vocabulary = tokenizer.load(experiment_of(workdir).data.tokenizer)
            survive = {text: vocabulary.decode(vocabulary.encode(text)) for text in texts}
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
    python, script = interpreter(client), ROOT / "tests/helpers/clients.py"
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
        assert figures["max_rel"] is not None and figures["kl"] is not None
        assert figures["max_rel"] < limit and abs(figures["kl"]) < kl_limit, out
        vocabulary = tokenizer.load(experiment_of(workdir).data.tokenizer)
        texts = json.loads(Path(f"{out}.texts.json").read_text())
        ids = json.loads(Path(f"{out}.{client}.json").read_text())
        assert ids == [[vocabulary.bos_id, *vocabulary.encode(text)] for text in texts]
