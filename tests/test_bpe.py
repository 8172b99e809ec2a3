"""Models whose tokenizer is a tokenizer.json of byte-level BPE, as those of LLaMA 3 and SmolLM2."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import byte_level, exports
from helpers.exports import GQA, export, matrix_fingerprints, refused
from helpers.stores import all_tokens, write_jsonl
from llama_jax.config import UserError
from llama_jax.data import documents, store, tokenizer
from llama_jax.data.cache import cache
from llama_jax.formats import bpe, convert, hf, native
from llama_jax.formats.convert import import_model
from llama_jax.formats.weights import write_json
from llama_jax.opened import open_model

TEXTS = (*tokenizer.MUST_SURVIVE, byte_level.TEXT, "", "<|eot_id|> <|endoftext|>")
OTHER_SPLIT = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
KINDS = {
    "llama3": (byte_level.llama3, 0, [1, 2, 3]),  # as of an instruct model
    "smollm": (byte_level.smollm, 0, 0),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> Path:
    """Directories hf and gguf of a model; and run, of which they were made, in another tokenizer's
    name."""
    directory = tmp_path_factory.mktemp(request.param)
    train, bos, eos = KINDS[request.param]
    made = train()
    content = tokenizer.read(str(byte_level.save(made, directory / "tokenizer", bos, eos)))
    cfg = dataclasses.replace(GQA, vocab_size=made.get_vocab_size() + 3, rope_theta=500_000.0)
    exports.save_random(cfg, directory / "run")
    source = dataclasses.replace(
        native.read(directory / "run"), read_tokenizer=lambda: content, name="tiny"
    )
    for to in ("hf", "gguf"):
        manifest = convert.convert(source, to, directory / to, "f32")
        assert manifest["verification"]["passed"]
    with pytest.raises(UserError, match="meta's tokenizer.model is SentencePiece's, and tiny has"):
        convert.convert(source, "meta", directory / "meta", "f32")
    return directory


def peer_of(model: Path):
    """Return the tokenizers package's tokenizer, to which "<|eot_id|>" in a text is a text."""
    from tokenizers import Tokenizer

    peer = Tokenizer.from_file(str(model / "tokenizer/tokenizer.json"))
    peer.encode_special_tokens = True
    return peer


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_the_tokenizer_goes_through_import_and_export_token_for_token(model, tmp_path, form):
    import_model(model / form, tmp_path / "run", None)
    assert matrix_fingerprints(tmp_path / "run") == matrix_fingerprints(model / "run")
    ours, peer = tokenizer.load(str(tmp_path / "run/tokenizer.json")), peer_of(model)
    for text in TEXTS:
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    original = tokenizer.load(str(model / "tokenizer/tokenizer.json"))
    for field in ("vocab_size", "bos_id", "eos_ids", "before"):
        assert getattr(ours, field) == getattr(original, field)
    export(tmp_path / "run", tmp_path / "again", "hf")
    again = tokenizer.load(str(tmp_path / "again/tokenizer.json"))
    assert again.eos_ids == ours.eos_ids and again.before == ours.before
    if form == "hf":
        first, second = (
            json.loads((directory / "tokenizer.json").read_text())
            for directory in (model / "tokenizer", tmp_path / "again")
        )
        assert first == second


def test_a_prompt_is_what_transformers_would_continue(model):
    """Special tokens count in it, and bos is before it where the tokenizer says so."""
    ours, peer = tokenizer.load(str(model / "tokenizer/tokenizer.json")), peer_of(model)
    peer.encode_special_tokens = False
    text = "".join(token.content for token in peer.get_added_tokens_decoder().values()) + " hello"
    assert ours.prompt(text) == peer.encode(text).ids
    assert max(ours.encode(text)) >= len(peer.get_added_tokens_decoder()) < len(ours.encode(text))
    assert ours.prompt("") == [ours.bos_id]  # since a model needs a token to begin with


def test_it_samples_from_files_and_from_a_workdir(cli, model, tmp_path):
    import_model(model / "gguf", tmp_path / "run", None)
    options = ("--prompt", "The quick", "--temperature", 0, "--max-tokens", 12)
    done = [
        cli("sample", *where, *options) for where in ((tmp_path / "run",), ("--from", model / "hf"))
    ]
    assert {d.returncode for d in done} == {0}, done[0].stderr
    assert len({d.stdout for d in done}) == 1 and done[0].stdout.startswith("The quick")


def test_a_store_is_written_with_it_and_a_held_out_loss_computed(model, tmp_path):
    """Each document's tokens are what the tokenizers package makes of it, between bos and eos. The
    loss is that of the model's own logits, of every token but the documents' first."""
    texts = [f"{byte_level.TEXT[:n]} document {n} <|eot_id|>" for n in range(20, 60, 5)]
    (tmp_path / "corpus/essays").mkdir(parents=True)
    for split in store.SPLITS:
        write_jsonl(tmp_path / f"corpus/essays/{split}.jsonl", texts)
    shutil.copytree(model / "hf", tmp_path / "hf")
    opened = open_model(
        tmp_path / "hf",
        [
            "data.mixture=(('essays', 1.0),)",
            f"data.corpus={tmp_path}/corpus",
            "data.seq_len=32",
            f"data.tokenizer={model}/tokenizer/tokenizer.json",
            "upkeep.eval_rows=4",
        ],
    )
    data = opened.experiment.data
    cache(data, num_workers=1)
    peer, ours = peer_of(model), opened.vocabulary
    documents_of = [
        [ours.bos_id, *peer.encode(text, add_special_tokens=False).ids, ours.eos_ids[0]]
        for part in documents.parts(data, "essays", "validation")
        for text, _ in documents.read(part)
    ]
    tokens, order, start = all_tokens(data, "essays", "validation").tolist(), [], 0
    while start < len(tokens):
        here = [d for d in documents_of if tokens[start : start + len(d)] == d]
        order.append(start)
        start += len(here[0])
    assert len(order) == len(documents_of)

    parts = []  # what of a document is in one of the first four windows
    for row in range(0, 4 * 32, 32):
        cuts = [row, *(n for n in order if row < n <= row + 32), row + 33]
        parts += [tokens[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    padded = np.array([part + [0] * (33 - len(part)) for part in parts])
    logits = opened.logits(padded.tolist()).astype(float)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        -log_probs[n, i, part[i + 1]] for n, part in enumerate(parts) for i in range(len(part) - 1)
    ]
    (loss,) = opened.held_out_losses().values()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


# What cannot be kept is named


def changed(model: Path, directory: Path, change: Callable[[dict], object]) -> Path:
    """Copy a Hugging Face directory, and change its tokenizer.json."""
    copy = Path(shutil.copytree(model / "hf", directory))
    parsed = json.loads((copy / "tokenizer.json").read_text())
    change(parsed)
    write_json(copy / "tokenizer.json", parsed)
    return copy


def test_what_gguf_cannot_hold_is_refused_by_field(model, tmp_path):
    for n, (change, match) in enumerate(
        (
            (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer is {'type': 'NFC'}"),
            (
                lambda t: t.update(pre_tokenizer=OTHER_SPLIT),
                "llama.cpp has no name that is known here for its pre_tokenizer; expected that of",
            ),
            (lambda t: t["added_tokens"][0].update(lstrip=True), "lstrip of '<|.*|>' is True"),
            (
                lambda t: t["model"].update(ignore_merges=not t["model"]["ignore_merges"]),
                "model.ignore_merges beside (llama-bpe|smollm) is (True|False), expected",
            ),
        )
    ):
        copy = changed(model, tmp_path / f"hf{n}", change)
        with pytest.raises(UserError, match=f"^--to: gguf cannot hold .*: {match}|{match}") as e:
            convert.convert(convert.open_source(copy), "gguf", tmp_path / "out", "f32")
        assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_pre_tokenizer_of_gguf_that_is_not_known_is_refused(model, tmp_path):
    whole = (model / "gguf/model.gguf").read_bytes()
    for name in (b"llama-bpe", b"smollm"):
        whole = whole.replace(name, b"x" * len(name))
    (tmp_path / "x.gguf").write_bytes(whole)
    match = "tokenizer.ggml.pre is 'x+', and llama_jax knows .*; give .*tokenizer.json with --tok"
    refused(tmp_path / "x.gguf", tmp_path, match)
    import_model(tmp_path / "x.gguf", tmp_path / "run", model / "tokenizer/tokenizer.json")
    content = tokenizer.read(str(model / "tokenizer/tokenizer.json"))
    assert (tmp_path / "run/tokenizer.json").read_bytes() == content


def test_what_ends_a_text_must_be_said(model, tmp_path):
    copy = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        fields = json.loads((copy / name).read_text())
        without = {k: v for k, v in fields.items() if not k.startswith("eos_token")}
        write_json(copy / name, without)
    refused(copy, tmp_path, "hf: the tokenizer has 0 tokens for eos; expected eos_token_id, or")
    write_json(copy / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 200]})
    refused(copy, tmp_path, "tokenizer.json: has no token 200 among its added_tokens, and the eos_")
    write_json(copy / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1]})
    import_model(copy, tmp_path / "run", None)
    assert tokenizer.load(str(tmp_path / "run/tokenizer.json")).eos_ids == (1,)


def test_a_damaged_tokenizer_json_is_named(model, tmp_path):
    for n, (change, match) in enumerate(
        (
            (lambda t: t.pop("model"), "the tokenizer is not a tokenizer.json: "),
            (lambda t: t.update(added_tokens=[3]), "the tokenizer is not a tokenizer.json: "),
            (
                lambda t: t.update(
                    post_processor={
                        "type": "TemplateProcessing",
                        "single": [
                            {"Sequence": {"id": "A", "type_id": 0}},
                            {"SpecialToken": {"id": "x", "type_id": 0}},
                        ],
                        "pair": [],
                        "special_tokens": {"x": {"id": "x", "ids": [7], "tokens": ["x"]}},
                    }
                ),
                "has a post_processor that adds .*; expected bos before it, or nothing",
            ),
        )
    ):
        refused(changed(model, tmp_path / f"hf{n}", change), tmp_path, match)
    copy = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    for content, match in ((b"{", "cannot be read as JSON"), (b"[" * 10**5, "not a SentencePiece")):
        (copy / "tokenizer.json").write_bytes(content)
        refused(copy, tmp_path, match)


def test_pre_tokenizers_have_their_names():
    for train, name in ((byte_level.llama3, "llama-bpe"), (byte_level.smollm, "smollm")):
        assert bpe.pre_of(train().to_str().encode()) == name


def test_rope_scaling_of_llama_3_1_is_refused_by_field(model, tmp_path):
    copy = Path(shutil.copytree(model / "hf", tmp_path / "hf"))
    config = json.loads((copy / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    write_json(copy / "config.json", config | {"rope_parameters": None, "rope_scaling": scaling})
    with pytest.raises(UserError, match="config.json: .*rope.*'llama3'"):
        hf.read(copy)
