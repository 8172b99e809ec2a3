"""Training a tokenizer, and what one must not lose."""

import dataclasses
from pathlib import Path

import pytest
import sentencepiece

from llama_jax.config import UserError
from llama_jax.data import documents, tokenizer

# ---- Tokenizer


@pytest.mark.parametrize("text", tokenizer.MUST_SURVIVE)
def test_tokenizer_gives_text_back(tiny_data, text):
    processor = tokenizer.load(tiny_data.tokenizer)
    ids = processor.encode(text)
    assert processor.decode(ids) == text
    assert processor.unk_id() not in ids


def test_tokenizer_is_llamas_kind(tiny_data):
    processor = tokenizer.load(tiny_data.tokenizer)
    ids = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
    assert ids == (0, 1, 2, -1)
    assert [processor.id_to_piece(i) for i in (3, 258)] == ["<0x00>", "<0xFF>"]
    assert processor.encode("a\nb", out_type=str) == ["\u2581a", "<0x0A>", "b"]
    assert processor.encode("10 23", out_type=str) == ["\u2581", "1", "0", "\u2581", "2", "3"]


def test_tokenizer_training_is_deterministic_and_follows_the_mixture(tiny_data):
    def model(mixture) -> bytes:
        data = dataclasses.replace(tiny_data, mixture=mixture)
        return tokenizer.train(data, vocab_size=512, max_bytes=300_000)

    assert model(tiny_data.mixture) == Path(tiny_data.tokenizer).read_bytes()
    code = next(documents.read(documents.files(tiny_data, "github", "validation")[0]))
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
    monkeypatch.setattr(tokenizer, "SETTINGS", tokenizer.SETTINGS | lossy)
    with pytest.raises(UserError, match="^tokenizer: "):
        tokenizer.train(tiny_data, vocab_size=512, max_bytes=300_000)


def test_impossible_vocabulary_and_unusable_model_are_user_errors(tiny_data, tmp_path):
    for vocab_size in (100, 10**6):
        with pytest.raises(UserError, match=f"vocab_size: got {vocab_size}, "):
            tokenizer.train(tiny_data, vocab_size, max_bytes=100_000)
    with pytest.raises(UserError, match="data.tokenizer: no file .*/model"):
        tokenizer.load(str(tmp_path / "model"))
    for content in (b"", b"not a model"):
        (tmp_path / "model").write_bytes(content)
        with pytest.raises(UserError, match="data.tokenizer: .*/model "):
            tokenizer.load(str(tmp_path / "model"))
