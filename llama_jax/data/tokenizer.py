"""Tokenizers: SentencePiece models, the embedded one among them, and what they must not lose."""

import hashlib
from pathlib import Path

import sentencepiece
from etils import epath

from llama_jax.config import UserError

EMBEDDED = Path(__file__).parent / "tokenizer.model"

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


def same(a: sentencepiece.SentencePieceProcessor, b: sentencepiece.SentencePieceProcessor) -> bool:
    """Return whether two tokenizers give the same ids, whatever else their files hold."""
    if a.vocab_size() != b.vocab_size():
        return False
    ids = list(range(a.vocab_size()))
    texts = list(MUST_SURVIVE)
    return a.id_to_piece(ids) == b.id_to_piece(ids) and a.encode(texts) == b.encode(texts)


def losses(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Return "TEXT comes back as OTHER" for each of MUST_SURVIVE that it does not give back."""
    pairs = [(text, processor.decode(processor.encode(text))) for text in MUST_SURVIVE]
    return [f"{text!r} comes back as {back!r}" for text, back in pairs if back != text]


def check_kind(model: bytes, where: str) -> None:
    """Raise UserError unless a SentencePiece model is of LLaMA's kind: formats express no other.

    where: it came from, for the error.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto  # its classes are made at run time

    parsed = proto.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    trainer, normalizer = parsed.trainer_spec, parsed.normalizer_spec
    user_defined = [p.piece for p in parsed.pieces if p.type == p.USER_DEFINED]
    for field, got, accepted in (
        ("model_type", trainer.ModelType.Name(trainer.model_type), "BPE"),
        ("byte_fallback", trainer.byte_fallback, True),
        ("precompiled_charsmap", normalizer.precompiled_charsmap, b""),
        ("add_dummy_prefix", normalizer.add_dummy_prefix, True),
        ("escape_whitespaces", normalizer.escape_whitespaces, True),
        ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
        ("user_defined_symbols", user_defined, []),
    ):
        if got != accepted:
            raise UserError(
                f"{where}: {field} is {str(got)[:60]}, and formats can express LLaMA's {accepted} "
                "only; `llama-jax tokenizer` trains one of LLaMA's kind"
            )
