"""Training a tokenizer, and what one must not lose."""

import dataclasses
from pathlib import Path

import pytest
import sentencepiece

from helpers.foreign_tokenizers import FOREIGN, foreign_model
from helpers.stores import write_jsonl
from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, tokenizer, tokenizer_training
from llama_jax.data.cache import cache
from llama_jax.formats import vocabulary

# ---- Tokenizer


@pytest.mark.parametrize("text", tokenizer.MUST_SURVIVE)
def test_tokenizer_gives_text_back(tiny_data, text):
    processor = sentencepiece.SentencePieceProcessor(model_file=tiny_data.tokenizer)
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert processor.unk_id() not in ids


def test_tokenizer_is_llamas_kind(tiny_data):
    processor = sentencepiece.SentencePieceProcessor(model_file=tiny_data.tokenizer)
    ids = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    assert ids == (0, 1, 2, -1)
    assert [processor.id_to_piece(i) for i in (3, 258)] == ["<0x00>", "<0xFF>"]
    assert processor.encode("a\nb", out_type=str) == ["\u2581a", "<0x0A>", "b"]
    assert processor.encode("10 23", out_type=str) == ["\u2581", "1", "0", "\u2581", "2", "3"]


def test_tokenizer_training_is_deterministic_and_follows_the_mixture(tiny_data):
    def model(mixture) -> bytes:
        data = dataclasses.replace(tiny_data, mixture=mixture)
        return tokenizer_training.train(data, vocab_size=512, max_bytes=300_000)

    assert model(tiny_data.mixture) == Path(tiny_data.tokenizer).read_bytes()
    code = next(documents.read(documents.parts(tiny_data, "github", "validation")[0])).text
    lengths = [
        len(sentencepiece.SentencePieceProcessor(model_proto=model(mixture)).encode(code))
        for mixture in (
            (("github", 0.99), ("books", 0.01)),
            (("github", 0.5), ("books", 0.5)),
            (("github", 0.01), ("books", 0.99)),
        )
    ]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("kind", ["nmt_nfkc", "byte_fallback", "split_digits"])
def test_tokenizer_that_loses_text_is_refused(tiny_data, monkeypatch, kind):
    lossy = {"normalization_rule_name": kind} if kind == "nmt_nfkc" else {kind: False}
    settings = tokenizer_training.SETTINGS | lossy
    monkeypatch.setattr(tokenizer_training, "SETTINGS", settings)
    with pytest.raises(UserError, match="^tokenizer: "):
        tokenizer_training.train(tiny_data, vocab_size=512, max_bytes=300_000)


def test_impossible_vocabulary_and_unusable_model_are_user_errors(tiny_data, tmp_path):
    for vocab_size in (100, 10**6):
        with pytest.raises(UserError, match=f"vocab_size: got {vocab_size}, "):
            tokenizer_training.train(tiny_data, vocab_size, max_bytes=100_000)
    with pytest.raises(UserError, match="data.tokenizer: no file '.*/model'"):
        tokenizer.load(str(tmp_path / "model"))
    for content in (b"", b"not a model"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(UserError, match="data.tokenizer: .*/model "):
            tokenizer.load(str(tmp_path / "model"))


# ---- The text that one is trained on


def pieces(model: bytes) -> set[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {processor.id_to_piece(i) for i in range(processor.vocab_size())}


def corpus(directory: Path, *shards: list[str]) -> DataConfig:
    (directory / "mine").mkdir()
    for number, texts in enumerate(shards):
        write_jsonl(directory / f"mine/train-{number}.jsonl", texts)
    return DataConfig(
        mixture=(("mine", 1.0),), corpus=str(directory), store=str(directory / "s"), batch_size=1
    )


LONG_LINES = {
    "words": " ".join(["zweitausend"] * 500),
    "words between tabs": "\t".join(["zweitausend"] * 500),
    "one word of characters of three bytes": "\u4e8c\u5343" * 1000,
    "a mark of SentencePiece's own": "\u2585 " + "zweitausend " * 20,
}


@pytest.mark.parametrize("kind", LONG_LINES)
def test_lines_that_sentencepiece_would_leave_out_are_learned_from(tmp_path, kind):
    line = LONG_LINES[kind]
    short = "the quick brown fox\njumps over a lazy dog\n" * 5
    data = corpus(tmp_path, [short, line, short], [line] * 5)
    learned = pieces(tokenizer_training.train(data, vocab_size=320, max_bytes=100_000))
    word = "\u4e8c\u5343" if "three bytes" in kind else "zweitausend"
    assert word in learned or f"\u2581{word}" in learned


def test_parts_of_a_long_line_are_all_of_it():
    for line in (
        "ab " * 5000,
        "a" * 5000 + " " + "b" * 20_000,
        "\u4e8c" * 5001,
        "\U0001f999" * 3000,
    ):
        parts = list(tokenizer_training.parts(line))
        assert len(parts) > 1
        assert max(len(part.encode()) for part in parts) <= tokenizer_training.MAX_LINE_BYTES
        assert "".join(parts).replace(" ", "") == line.replace(" ", "")
    assert set(tokenizer_training.parts("word " * 5000)) == {
        " ".join(["word"] * 838),
        "word " * 810,
    }
    assert list(tokenizer_training.parts("")) == []


def test_a_tokenizer_is_learned_from_the_end_of_a_corpus_too(tmp_path, capsys):
    first, last = ["alpha beta gamma\n" * 40] * 100, ["omega psi chi\n" * 40] * 100
    data = corpus(tmp_path, first + last, [])
    learned = pieces(tokenizer_training.train(data, vocab_size=296, max_bytes=10_000))
    assert {"\u2581beta", "\u2581psi"} <= learned
    assert "mine: 10,0" in (said := capsys.readouterr().out) and " of 116,000 bytes" in said


def test_a_source_without_text_trains_no_tokenizer(tmp_path):
    data = corpus(tmp_path, ["", "\n"])
    with pytest.raises(UserError, match="data.corpus: .*mine has no text in its train files"):
        tokenizer_training.train(data, vocab_size=300, max_bytes=1000)


TOO_LITTLE = {
    "a document of NUL bytes": ["\0" * 10_000],
    "one character over and over": ["a" * 10_000],
    "few words": ["the quick brown fox"] * 10,
}


@pytest.mark.parametrize("kind", TOO_LITTLE)
def test_text_that_has_too_few_pieces_is_said_in_a_line(tmp_path, capfd, kind):
    data = corpus(tmp_path, TOO_LITTLE[kind])
    with pytest.raises(UserError, match=r"got 400, but the text gives \d+ pieces") as error:
        tokenizer_training.train(data, vocab_size=400, max_bytes=10_000)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # of SentencePiece's own


def test_a_tokenizer_that_cannot_be_written_leaves_what_was_there(cli, tmp_path, experiment_file):
    (tmp_path / "file").write_text("not a directory")
    done = cli(
        *("tokenizer", experiment_file, "--vocab-size", 512, "--max-mb", 0.3),
        *("--out", tmp_path / "file/tokenizer.model"),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("llama-jax tokenizer: --out: cannot write ")
    assert len(done.stderr.splitlines()) == 1


# ---- Those of others


def foreign(directory: Path, **settings) -> DataConfig:
    """A corpus, and a tokenizer trained with other settings than LLaMA's."""
    data = corpus(directory, ["the quick brown fox " * 10])
    write_jsonl(directory / "mine/validation.jsonl", ["the dog"])
    (directory / "foreign.model").write_bytes(foreign_model(**settings))
    return dataclasses.replace(data, tokenizer=str(directory / "foreign.model"))


@pytest.mark.parametrize("field", FOREIGN)
def test_a_tokenizer_that_no_export_could_write_is_not_trained_with(tmp_path, field):
    data = foreign(tmp_path, **FOREIGN[field])
    with pytest.raises(UserError, match=f"data.tokenizer: {field} is"):
        vocabulary.parse(Path(data.tokenizer).read_bytes())
    with pytest.raises(UserError, match=f"data.tokenizer: .*/foreign.model: {field} is") as error:
        cache(data, num_workers=1)
    assert "\n" not in str(error.value)
    assert not Path(data.store).exists()


def test_a_tokenizer_that_loses_text_is_trained_with_after_a_warning(tmp_path, capsys):
    """OpenLLaMA's is such a one; exports of it say so, too."""
    data = foreign(tmp_path, remove_extra_whitespaces=True)
    vocabulary.parse(Path(data.tokenizer).read_bytes())
    cache(data, num_workers=1)
    (warning,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("warning: ")]
    assert "foreign.model loses text" in warning
    assert "'one  two   three    four' comes back as 'one two three four'" in warning
    cache(dataclasses.replace(data, tokenizer="embedded", store=data.store + "2"), 1)
    assert "warning: data" not in capsys.readouterr().err
