"""Tokenizers: SentencePiece models, the embedded one among them, Hugging Face's tokenizer.json, as
of LLaMA 3, and what they must not lose."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from etils import epath

from llama_jax.config import UserError
from llama_jax.experiment import shown
from llama_jax.place import place
from llama_jax.plain_file import plain

EMBEDDED = Path(__file__).parent / "tokenizer.model"
MODEL, JSON = "tokenizer.model", "tokenizer.json"  # the names of a tokenizer's file, by its kind

# Text that tokenizers in use have lost: OpenLLaMA's merged spaces, an earlier one dropped newlines.
MUST_SURVIVE_BY_KIND = {
    "runs of spaces": (
        "one  two   three    four",
        "        eight leading spaces",
        " one trailing space ",
        "   ",
    ),
    "tabs": ("\tif x:\n\t\treturn\ty",),
    "line breaks": ("a\nb\n\n\nc\r\nd\n",),
    "numbers": ("0123456789 3.14159 1_000_000 2302.13971",),
    "scripts with no pieces": (
        "emoji \U0001f999\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
        "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
        "\U00013080\U00012000 \ua015 \u0710\u1405 \U00010330",
    ),
    # A Unicode normaliser would change these.
    "no normalisation": ("\ufb01 \u00bd \u212b e\u0301 \u00e9",),
    "control characters": ("control \x01\x02\x07\x1b[0m\x7f \u200b\ufeff",),
    "marks as text": ("<s> </s> <unk> <0x0A>",),
}
MUST_SURVIVE = tuple(text for texts in MUST_SURVIVE_BY_KIND.values() for text in texts)


def find(path: str) -> epath.Path:
    """Find the file of a model; "embedded" is the one in this package. Raises UserError."""
    found = epath.Path(EMBEDDED) if path == "embedded" else place(path, "data.tokenizer")
    if not plain(found).is_file():
        raise UserError(
            f"data.tokenizer: no file {shown(str(found))}; `llama-jax tokenizer` trains one"
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer, of whichever kind."""

    vocab_size: int  # one more than the largest id
    bos_id: int
    eos_ids: tuple[int, ...]  # each ends a text that is written; the first, a document of training
    before: tuple[int, ...]  # what comes before a text that is to be continued: bos or nothing
    encode: Callable[[str], list[int]]  # a text's tokens, in which "<s>" is a text
    # What a model is to continue, one token at the least; special tokens of a tokenizer.json count
    # in it, as they do for transformers.
    prompt: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]  # without special tokens; for ids below vocab_size


def read(path: str) -> bytes:
    """Return a tokenizer's file, at `path` or "embedded", as from_bytes needs it. Raises UserError.

    A tokenizer.json does not say which tokens begin and end a document. In what is returned, they
    have "roles" among its added_tokens, by the files of Hugging Face's that lie beside it.
    """
    file = find(path)
    content = file.read_bytes()
    if file_name(content) == MODEL:
        return content
    parsed = _read_json(file, content)
    try:
        added = {token["id"]: token for token in parsed["added_tokens"]}
        ids = {token["content"]: i for i, token in added.items()}
    except (KeyError, TypeError):
        return content  # from_bytes says what is wrong with it
    if any("roles" in token for token in added.values()):
        return content
    for role, of_role in _special_ids(file.parent, ids).items():
        for i in of_role:
            if i not in added:
                raise UserError(
                    f"{file}: has no token {i} among its added_tokens, and the {role}_token_id "
                    "beside it says so"
                )
            added[i]["roles"] = [*added[i].get("roles", ()), role]
    return json.dumps(parsed, ensure_ascii=False).encode()


def sha256(path: str) -> str:
    """Return the SHA-256, in hex, of what read() returns. Raises UserError."""
    return hashlib.sha256(read(path)).hexdigest()


def file_name(content: bytes) -> str:
    """Return the name that a tokenizer's file has, by its kind."""
    return JSON if content.startswith(b"{") else MODEL


def _special_ids(directory: epath.Path, ids: dict[str, int]) -> dict[str, list[int]]:
    """Return the ids of "bos" and "eos" by Hugging Face's files. ids: of the special tokens."""
    found: dict[str, list[int]] = {}
    # The last that has a word on it decides, as it does for transformers.
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        if not (directory / name).exists():
            continue
        fields = _read_json(directory / name, (directory / name).read_bytes())
        for role in ("bos", "eos"):
            token, given = fields.get(f"{role}_token"), fields.get(f"{role}_token_id")
            if isinstance(token, dict):
                token = token.get("content")
            if token in ids:
                found[role] = [ids[token]]
            if given is not None:
                found[role] = given if isinstance(given, list) else [given]
    return found


def _read_json(file: epath.Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file}: cannot be read as JSON: {e}") from e
    if not isinstance(parsed, dict):
        raise UserError(f"{file}: holds no JSON object")
    return parsed


def load(path: str) -> Vocabulary:
    """Load the model at `path`, or "embedded". Raises UserError for a missing or unusable file."""
    return from_bytes(read(path), f"data.tokenizer: {path}")


def from_bytes(content: bytes, where: str) -> Vocabulary:
    """Load what read() returned. where: it came from, for the error."""
    return (_of_json if file_name(content) == JSON else _of_model)(content, where)


def sentencepiece_of(content: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model. where: it came from, for the error. Raises UserError."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as e:
        raise UserError(
            f"{where} is not a SentencePiece model: {e}; expected one, or a tokenizer.json"
        ) from e
    if not content or processor.bos_id() < 0 or processor.eos_id() < 0:
        raise UserError(f"{where} has no <s> and </s>; every document needs both")
    return processor


def _of_model(content: bytes, where: str) -> Vocabulary:
    processor = sentencepiece_of(content, where)
    return Vocabulary(
        vocab_size=processor.vocab_size(),
        bos_id=processor.bos_id(),
        eos_ids=(processor.eos_id(),),
        before=(processor.bos_id(),),
        encode=processor.encode,
        prompt=lambda text: [processor.bos_id(), *processor.encode(text)],
        decode=processor.decode,
    )


def _of_json(content: bytes, where: str) -> Vocabulary:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as e:  # of no narrower kind
        raise UserError(f"{where} is not a tokenizer.json: {e}") from e
    roles: dict[str, list[int]] = {"bos": [], "eos": []}
    for token in json.loads(content).get("added_tokens", ()):
        for role in token.get("roles", ()):
            roles[role].append(token["id"])
    for role, ids in roles.items():
        if not ids or (role == "bos" and len(ids) > 1):
            raise UserError(
                f"{where} has {len(ids)} tokens for {role}; expected {role}_token_id, or "
                f"{role}_token, of one in its added_tokens, in generation_config.json, config.json "
                "or tokenizer_config.json beside it"
            )
    bos_id = roles["bos"][0]
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str, special: bool = False) -> list[int]:
        tokenizer.encode_special_tokens = not special
        return tokenizer.encode(text, add_special_tokens=special).ids

    before = encode("", special=True)
    if before not in ([], [bos_id]) or encode("a", special=True) != [*before, *encode("a")]:
        raise UserError(
            f"{where} has a post_processor that adds {encode('a', special=True)} to "
            f"{encode('a')}; expected bos before it, or nothing"
        )
    return Vocabulary(
        vocab_size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        bos_id=bos_id,
        eos_ids=tuple(roles["eos"]),
        before=tuple(before),
        encode=encode,
        prompt=lambda text: encode(text, special=True) or [bos_id],
        decode=tokenizer.decode,
    )


def same(a: Vocabulary, b: Vocabulary) -> bool:
    """Return whether two tokenizers give the same ids, whatever else their files hold."""
    fields = ("vocab_size", "bos_id", "eos_ids", "before")
    if any(getattr(a, field) != getattr(b, field) for field in fields):
        return False
    if any(a.encode(text) != b.encode(text) for text in MUST_SURVIVE):
        return False
    begun = a.encode("a")  # or a space at the beginning of a token would not show
    return all(a.decode([*begun, i]) == b.decode([*begun, i]) for i in range(a.vocab_size))


def losses(processor: Vocabulary | sentencepiece.SentencePieceProcessor) -> list[str]:
    """Return "TEXT comes back as OTHER" for each of MUST_SURVIVE that it does not give back."""
    pairs = [(text, processor.decode(processor.encode(text))) for text in MUST_SURVIVE]
    return [f"{text!r} comes back as {back!r}" for text, back in pairs if back != text]


def check_kind(model: bytes, where: str) -> None:
    """Raise UserError unless a SentencePiece model is of LLaMA's kind: formats express no other.

    model: or a tokenizer.json, of any kind; where: it came from, for the error.
    """
    if file_name(model) == MODEL and (differences := unlike_llama(model)):
        raise UserError(
            f"{where}: {differences[0]} only; `llama-jax tokenizer` trains one of LLaMA's kind"
        )


def unlike_llama(model: bytes) -> list[str]:
    """Return "FIELD is THIS, and formats can express LLaMA's THAT" for each difference in kind."""
    from sentencepiece import sentencepiece_model_pb2 as proto  # its classes are made at run time

    parsed = proto.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    trainer, normalizer = parsed.trainer_spec, parsed.normalizer_spec
    user_defined = [p.piece for p in parsed.pieces if p.type == p.USER_DEFINED]
    return [
        f"{field} is {str(got)[:60]}, and formats can express LLaMA's {accepted}"
        for field, got, accepted in (
            ("model_type", trainer.ModelType.Name(trainer.model_type), "BPE"),
            ("byte_fallback", trainer.byte_fallback, True),
            ("precompiled_charsmap", f"{len(normalizer.precompiled_charsmap):,} bytes", "0 bytes"),
            ("add_dummy_prefix", normalizer.add_dummy_prefix, True),
            ("escape_whitespaces", normalizer.escape_whitespaces, True),
            ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
            ("user_defined_symbols", user_defined, []),
        )
        if got != accepted
    ]
