"""What is asked of a tokenizer before a model is trained with it."""

import json
import re
from pathlib import Path

import pytest
import sentencepiece

from helpers import byte_level
from helpers.foreign_tokenizers import FOREIGN, foreign_model
from helpers.paths import SHARED
from llama_jax.data import documents, tokenizer
from llama_jax.formats import acceptance, vocabulary

TEXTS = ["The quick brown fox.\n\tIt  is 1234567 years old.", "def f(x):\n    return x ** 2\n"]
LLAMA = SHARED / "tokenizers/llama_tokenizer.model"


def shared(name: str) -> Path:
    path = SHARED / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"{name} is not here (../shared/data)")
    return path


def failed(content: bytes) -> set[str]:
    return {a.asked for a in acceptance.examine(content, "it", TEXTS) if a.holds is False}


def unasked(content: bytes) -> set[str]:
    return {a.asked for a in acceptance.examine(content, "it", TEXTS) if a.holds is None}


# ---- What passes, and what fails


@pytest.mark.parametrize("name", ["llama_tokenizer.model", "mistral_v1_apache2.tokenizer.model"])
def test_the_published_ones_of_llamas_kind_pass(name):
    model = shared(name).read_bytes()
    assert failed(model) == unasked(model) == set()


def test_one_that_we_train_passes(tiny_data):
    model = Path(tiny_data.tokenizer).read_bytes()
    assert failed(model) == unasked(model) == set()


def test_one_with_odd_ids_and_a_normaliser_fails_with_the_reasons(cli):
    path = shared("axlearn_bpe_32k_c4_apache2.model")
    assert failed(path.read_bytes()) == {
        *(acceptance.KIND, acceptance.IDS, acceptance.SAME),
        "gives back: scripts with no pieces",
        "gives back: no normalisation",
    }
    found = {a.asked: a.found for a in acceptance.examine(path.read_bytes(), "it", TEXTS)}
    assert "<unk> is 2, not 0; <s> is -1, not 1; </s> is 1, not 2" in found[acceptance.IDS]
    assert "precompiled_charsmap is" in found[acceptance.KIND]
    assert "as 'fi " in found["gives back: no normalisation"]


# A setting other than LLaMA's -> what has to fail.
SETTINGS = {
    "OpenLLaMA's spaces": (
        {"remove_extra_whitespaces": True},
        {
            *("gives back: runs of spaces", "gives back: runs of characters"),
            "gives back: the corpus",
        },
    ),
    "ids": ({"unk_id": 2, "eos_id": 0}, {acceptance.IDS}),
    "no bos": ({"bos_id": -1}, {acceptance.IDS}),
    "padding": ({"pad_id": 3}, {acceptance.IDS}),
    "no byte fallback": (
        FOREIGN["byte_fallback"],
        {acceptance.KIND, acceptance.FALLBACK, acceptance.IDS, acceptance.SAME},
    ),
    "no dummy prefix": (FOREIGN["add_dummy_prefix"], {acceptance.KIND, acceptance.SAME}),
    "normaliser": (
        FOREIGN["precompiled_charsmap"],
        {acceptance.KIND, acceptance.SAME, "gives back: no normalisation"},
    ),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_a_setting_breaks_is_named(kind):
    settings, broken = SETTINGS[kind]
    assert broken <= failed(foreign_model(**settings))
    assert failed(foreign_model()) == set()


def test_numbers_that_stay_whole_are_named(tiny_data):
    parsed = vocabulary.parse(Path(tiny_data.tokenizer).read_bytes())
    parsed.pieces[-1].piece = "1985"
    (wrong,) = [
        answer
        for answer in acceptance.examine(parsed.SerializeToString(), "it", TEXTS)
        if answer.holds is False
    ]
    assert (wrong.asked, wrong.found) == (
        "digits one by one",
        "1 tokens hold a digit and more, such as '1985'",
    )


# ---- A tokenizer.json


def as_json(model: bytes, directory: Path, **changed) -> bytes:
    written = vocabulary.hugging_face(vocabulary.parse(model)) | changed
    (directory / "tokenizer.json").write_text(json.dumps(written))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (directory / "generation_config.json").write_text(json.dumps(ids))
    return tokenizer.read(str(directory / "tokenizer.json"))


def test_a_tokenizer_json_is_compared_with_the_model_it_stands_for(tiny_data, tmp_path):
    model = Path(tiny_data.tokenizer).read_bytes()
    content = as_json(model, tmp_path)
    assert failed(content) == unasked(content) == set()
    theirs = {"normalizer": None, "pre_tokenizer": vocabulary.METASPACE}
    content = as_json(model, tmp_path, **theirs)  # loses no text, but has other ids
    assert acceptance.SAME in failed(content)


@pytest.mark.parametrize("kind", ["llama3", "smollm"])
def test_one_of_another_kind_is_asked_what_can_be_asked(tmp_path, kind):
    made, ids = getattr(byte_level, kind)(), {"llama3": (0, 1), "smollm": (0, 0)}[kind]
    content = tokenizer.read(str(byte_level.save(made, tmp_path, *ids)))
    whole = {"digits one by one"} if kind == "llama3" else set()
    assert failed(content) == whole
    only = {acceptance.KIND, acceptance.IDS, acceptance.FALLBACK, acceptance.SAME}
    assert unasked(content) == only


# ---- llama.cpp's vectors


def test_llamas_model_gives_the_tokens_of_llama_cpps_vectors():
    vectors = shared("ggml-vocab-llama-spm.gguf.inp").read_bytes().decode()
    *texts, _ = vectors.split("\n__ggml_vocab_test__\n")
    expected = shared("ggml-vocab-llama-spm.gguf.out").read_text().splitlines()
    encode = acceptance.encoder(LLAMA.read_bytes(), "it")
    assert [encode(text) for text in texts] == [[*map(int, line.split())] for line in expected]
    assert len(texts) == 46


# ---- The command


def test_the_command_tells_the_length_of_tokens_beside_another_tokenizers(cli, tiny_data, tmp_path):
    (tmp_path / "short.model").write_bytes(foreign_model())
    check = ("tokenizer", tmp_path / "short.model", "--check", "--against", tiny_data.tokenizer)
    done = cli(*check, *places(tiny_data))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "passes"
    processors = [
        sentencepiece.SentencePieceProcessor(model_file=str(path))
        for path in (tmp_path / "short.model", tiny_data.tokenizer)
    ]
    for source, _ in tiny_data.mixture:
        parts = documents.parts(tiny_data, source, "train")
        texts = [document.text for part in parts for document in documents.read(part)]
        size, words = len("".join(texts).encode()), len(" ".join(texts).split())
        short, beside = (sum(len(p.encode(text)) for text in texts) for p in processors)
        row = next(line for line in done.stdout.splitlines() if f" {source} " in line)
        assert re.findall(r"[\d.,]+", row.replace(source, "")) == [
            f"{size:,}",
            *(f"{size / short:.3f}", f"{short / words:.3f}"),
            *(f"{size / beside:.3f}", f"{beside / words:.3f}"),
            f"{short / beside:.2f}",
        ]


def test_the_command_fails_with_status_1_and_the_reasons(cli, experiment_file, tmp_path):
    (tmp_path / "odd.model").write_bytes(foreign_model(pad_id=3))
    odd = ("--set", f"data.tokenizer={tmp_path}/odd.model")
    done = cli("tokenizer", experiment_file, "--check", *odd)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"fails: {acceptance.IDS}"
    assert "padding is 3" in done.stdout


def places(data) -> list[str]:
    mixture = ("--set", f"data.mixture={data.mixture!r}")
    return ["--set", f"data.corpus={data.corpus}", *mixture]


WRONG = {
    "an empty file": (b"", [], "is an empty file"),
    "no model": (b"what", [], "is neither a SentencePiece model nor a tokenizer.json"),
    "no JSON": (b"{", [], "cannot be read as JSON"),
    "no tokenizer in it": (b"{}", [], "is not a tokenizer.json"),
    "a missing one beside it": (None, ["--against", "/none"], "no file '/none'"),
    "one to train, too": (None, ["--vocab-size", "300"], "either --vocab-size"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_checked_is_said_in_a_line(cli, tmp_path, kind):
    content, options, reason = WRONG[kind]
    path = tmp_path / "wrong.model"
    path.write_bytes(foreign_model() if content is None else content)
    done = cli("tokenizer", path, "--check", *options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("llama-jax tokenizer: ") and reason in line
