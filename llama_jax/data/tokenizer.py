"""SentencePiece BPE with the settings of LLaMA's own tokenizer (paper section 2.1)."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from etils import epath

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents

EMBEDDED = Path(__file__).parent / "tokenizer.model"

MAX_LINE_BYTES = 4192  # SentencePiece leaves longer lines out
# What the trainer_spec and normalizer_spec inside LLaMA's tokenizer.model say.
SETTINGS: dict[str, Any] = dict(
    model_type="bpe",
    character_coverage=0.99995,
    byte_fallback=True,  # a character outside the vocabulary is spelt in bytes, never <unk>
    split_digits=True,
    allow_whitespace_only_pieces=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=True,
    max_sentencepiece_length=16,
    max_sentence_length=MAX_LINE_BYTES,
    input_sentence_size=200_000_000,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
)

# Text that tokenizers in use have lost: OpenLLaMA's merged spaces, an earlier one dropped newlines.
MUST_SURVIVE = (
    "one  two   three    four",
    "a\nb\n\n\nc\r\nd\n",
    "\tif x:\n\t\treturn\ty",
    "        eight leading spaces",
    " one trailing space ",
    "   ",
    "0123456789 3.14159 1_000_000 2302.13971",
    "emoji \U0001f999\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\ufb01 \u00bd \u212b e\u0301 \u00e9",  # a Unicode normaliser would change these
    "control \x01\x02\x07\x1b[0m\x7f \u200b\ufeff",
    "<s> </s> <unk> <0x0A>",
)


def train(data: DataConfig, vocab_size: int, max_bytes: int) -> bytes:
    """Return a SentencePiece model trained on max_bytes of the mixture's train splits.

    Each source gives its rate's share of the bytes, and a source that is too small for it is
    repeated, as in training. The same corpus gives the same model, byte for byte.
    Raises UserError if the corpus or vocab_size do not allow it, or the result loses text.
    """
    # A list, because SentencePiece turns an error inside an iterator into one of its own.
    lines = [
        line
        for source, rate in data.mixture
        for line in _sample(documents.files(data, source, "train"), rate * max_bytes)
    ]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            minloglevel=1,
            **SETTINGS,
        )
    except RuntimeError as e:
        raise UserError(f"vocab_size: got {vocab_size}, SentencePiece refuses it: {e}") from e
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    check(processor)
    return model.getvalue()


def _sample(paths: list[epath.Path], num_bytes: float) -> Iterator[str]:
    """Yield lines from the head of each file in equal shares; a file that runs out starts again."""
    for path in paths:
        wanted = left = num_bytes / len(paths)
        while left > 0:
            for line in _lines(path):
                left -= len(line.encode())
                yield line
                if left <= 0:
                    break
            if left == wanted:
                raise UserError(f"{path}: has no line of 1 to {MAX_LINE_BYTES} bytes of text")


def _lines(path: epath.Path) -> Iterator[str]:
    """Yield lines without their newlines, which so become the byte piece <0x0A>, as for LLaMA."""
    for text in documents.read(path):
        yield from (s for s in text.split("\n") if 0 < len(s.encode()) <= MAX_LINE_BYTES)


def find(path: str) -> epath.Path:
    """Find the file of a model; "embedded" is the one in this package. Raises UserError."""
    found = epath.Path(EMBEDDED if path == "embedded" else path)
    if not found.is_file():
        raise UserError(f"data.tokenizer: no file {found}; `llama-jax tokenizer` trains one")
    return found


def sha256(path: str) -> str:
    """Return the SHA-256, in hex, of the model at `path`, or "embedded". Raises UserError."""
    return hashlib.sha256(find(path).read_bytes()).hexdigest()


def load(path: str) -> sentencepiece.SentencePieceProcessor:
    """Load the model at `path`, or "embedded". Raises UserError for a missing or unusable file."""
    return from_bytes(find(path).read_bytes(), f"data.tokenizer: {path}")


def from_bytes(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """Load a model from the content of a file. where: it came from, for the error."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as e:
        raise UserError(f"{where} is not a SentencePiece model: {e}") from e
    if not model or processor.bos_id() < 0 or processor.eos_id() < 0:
        raise UserError(f"{where} has no <s> and </s>; every document needs both")
    return processor


def check(processor: sentencepiece.SentencePieceProcessor) -> None:
    """Check that the tokenizer gives back text as it was. Raises UserError naming what it loses."""
    for text in MUST_SURVIVE:
        ids = processor.encode(text)
        if processor.decode(ids) != text or processor.unk_id() in ids:
            raise UserError(f"tokenizer: {text!r} comes back as {processor.decode(ids)!r}")
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        if len(piece) > 1 and not processor.is_byte(i) and any(c in "0123456789" for c in piece):
            raise UserError(f"tokenizer: numbers are not split into digits: {piece!r} is a token")
