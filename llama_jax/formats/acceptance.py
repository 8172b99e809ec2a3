"""What is asked of a tokenizer before a model is trained with it, and how much its tokens hold."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence

import sentencepiece

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, tokenizer
from llama_jax.formats import bpe, vocabulary

SAMPLE_BYTES = 500_000  # of each source
TEXT_CHARACTERS = 100_000  # of a document
RUNS = tuple(character * n for character in " =a\t\n" for n in range(1, 40))
DIGITS = "0123456789"
BYTES = range(3, 259)
LAYOUT = {"<unk>": 0, "<s>": 1, "</s>": 2, "padding": -1}
KIND = "LLaMA's kind"
IDS = "LLaMA's ids of special tokens and bytes"
FALLBACK = "bytes, not <unk>, for what has no piece"
SAME = "SentencePiece and the exported tokenizer.json agree"

Tokenizer = tokenizer.Vocabulary | sentencepiece.SentencePieceProcessor


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found of one thing that is asked."""

    asked: str
    holds: bool | None  # None: it cannot be asked of a tokenizer of this kind
    found: str


@dataclasses.dataclass(frozen=True)
class Count:
    """A tokenizer's tokens in a text."""

    tokens: int
    words: int  # of the text, as whitespace parts them
    bytes: int


def examine(content: bytes, where: str, texts: list[str]) -> list[Answer]:
    """Return the answers of a tokenizer that data.tokenizer.read returned.

    A tokenizer.json that stands for a SentencePiece model answers as that. where: it came from,
    for the error; texts: of the corpus. Raises UserError for a file that is no tokenizer, or a
    tokenizer.json that does not say how a document ends.
    """
    if tokenizer.file_name(content) == tokenizer.MODEL:
        loaded = _processor(content, where)
        kind = tokenizer.unlike_llama(content)
        marks = min(loaded.bos_id(), loaded.eos_id()) >= 0
        can_be = marks and not kind
        exported = vocabulary.hugging_face(vocabulary.parse(content)) if can_be else None
        return _of_model(loaded, loaded, kind, exported, texts)
    loaded, model = tokenizer.from_bytes(content, where), bpe.to_sentencepiece(content)
    if model is not None:
        return _of_model(loaded, _processor(model, where), [], bpe.without_roles(content)[0], texts)
    unasked = "is a tokenizer.json that no SentencePiece model stands for"
    asked = (KIND, IDS, FALLBACK, SAME)
    return [*_common(loaded, texts), *(Answer(name, None, unasked) for name in asked)]


def encoder(content: bytes, where: str) -> Callable[[str], list[int]]:
    """Return what encodes a text. Raises UserError as examine does."""
    if tokenizer.file_name(content) == tokenizer.MODEL:
        return _processor(content, where).encode
    return tokenizer.from_bytes(content, where).encode


def sample(data: DataConfig) -> dict[str, list[str]]:
    """Return the beginning of each source's training text: SAMPLE_BYTES, or all. Raises UserError
    for a corpus that cannot be read."""
    return {source: _beginning(data, source) for source, _ in data.mixture}


def count(encode: Callable[[str], list[int]], texts: list[str]) -> Count:
    """Count tokens, words and bytes of the texts together."""
    counts = [(len(encode(text)), len(text.split()), len(text.encode())) for text in texts]
    return Count(*map(sum, zip(*counts, strict=True)))


def _beginning(data: DataConfig, source: str) -> list[str]:
    texts, size = [], 0
    for part in documents.parts(data, source, "train"):
        for text, _ in documents.read(part):
            if size >= SAMPLE_BYTES:
                return texts
            texts.append(text[:TEXT_CHARACTERS])
            size += len(texts[-1].encode())
    if not size:
        raise UserError(f"data.corpus: source {source!r} has no text in its train files")
    return texts


def _processor(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model that may lack what tokenizer.sentencepiece_of wants."""
    if not model:
        raise UserError(f"{where} is an empty file; expected a tokenizer")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as e:
        raise UserError(
            f"{where} is neither a SentencePiece model nor a tokenizer.json: {e}"
        ) from e


def _of_model(
    loaded: Tokenizer,
    processor: sentencepiece.SentencePieceProcessor,
    kind: list[str],
    exported: dict | None,
    texts: list[str],
) -> list[Answer]:
    """Return the answers of `loaded`, which `processor` is or stands for.

    kind: how that is not of LLaMA's kind; exported: its tokenizer.json, None if none can be.
    """
    return [
        Answer(KIND, not kind, "; ".join(kind) or "BPE with byte fallback, no Unicode normaliser"),
        _layout(processor),
        *_common(loaded, texts),
        _fallback(processor),
        Answer(SAME, False, "no tokenizer.json can express it")
        if exported is None
        else _same(processor, exported, texts),
    ]


def _common(loaded: Tokenizer, texts: list[str]) -> list[Answer]:
    asked = {
        **tokenizer.MUST_SURVIVE_BY_KIND,
        "runs of characters": RUNS,
        # SentencePiece reads its own mark as a space, LLaMA's model, too.
        "the corpus": [text.replace(vocabulary.SPACE, " ") for text in texts],
    }
    return [
        *(_round_trips(loaded, kind, of_kind) for kind, of_kind in asked.items()),
        _digits(loaded),
    ]


def _round_trips(loaded: Tokenizer, kind: str, texts: Sequence[str]) -> Answer:
    lost = [text for text in texts if loaded.decode(loaded.encode(text)) != text]
    found = f"{len(texts):,} texts, {_num_bytes(texts):,} bytes"
    if lost:
        found = f"{len(lost):,} of {len(texts):,} texts do not come back: {_first(loaded, lost[0])}"
    return Answer(f"gives back: {kind}", not lost, found)


def _first(loaded: Tokenizer, text: str) -> str:
    """Return what is lost of a text, from a little before it on."""
    back = loaded.decode(loaded.encode(text))
    pairs = itertools.zip_longest(text, back)
    start = max(0, next(i for i, (a, b) in enumerate(pairs) if a != b) - 10)
    return f"{text[start : start + 40]!r} as {back[start : start + 40]!r}"


def _digits(loaded: Tokenizer) -> Answer:
    begun = loaded.encode("a")  # or a space at the beginning of a token would not show
    before = len(loaded.decode(begun))
    size = loaded.vocab_size if isinstance(loaded.vocab_size, int) else loaded.vocab_size()
    pieces = (loaded.decode([*begun, i])[before:].strip() for i in range(size))
    joined = [p for p in pieces if len(p) > 1 and any(digit in p for digit in DIGITS)]
    shown = ", ".join(map(repr, joined[:3]))
    found = f"{len(joined)} tokens hold a digit and more, such as {shown}" if joined else ""
    return Answer("digits one by one", not joined, found)


def _layout(processor: sentencepiece.SentencePieceProcessor) -> Answer:
    got = dict(
        zip(
            LAYOUT,
            (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()),
            strict=True,
        )
    )
    of_bytes = [i for i in range(processor.vocab_size()) if processor.is_byte(i)]
    wrong = [f"{name} is {got[name]}, not {i}" for name, i in LAYOUT.items() if got[name] != i]
    if of_bytes != list(BYTES):
        where = f"from {of_bytes[0]} to {of_bytes[-1]}" if of_bytes else "nowhere"
        wrong.append(f"{len(of_bytes)} bytes are {where}, not {BYTES[0]} to {BYTES[-1]}")
    right = ", ".join(f"{name} {i}" for name, i in LAYOUT.items())
    right += f", bytes {BYTES[0]} to {BYTES[-1]}"
    return Answer(IDS, not wrong, "; ".join(wrong) or right)


def _fallback(processor: sentencepiece.SentencePieceProcessor) -> Answer:
    characters = sorted({c for text in tokenizer.MUST_SURVIVE for c in text})
    unknown = [c for c in characters if processor.unk_id() in processor.encode(c)]
    shown = ", ".join(f"U+{ord(c):04X}" for c in unknown[:5])
    return Answer(FALLBACK, not unknown, f"<unk> for {shown}" if unknown else "")


def _same(
    processor: sentencepiece.SentencePieceProcessor, exported: dict, texts: list[str]
) -> Answer:
    import tokenizers

    fast = tokenizers.Tokenizer.from_str(json.dumps(exported))
    fast.encode_special_tokens = True  # "<s>" in a text is text
    tried = [*tokenizer.MUST_SURVIVE, *RUNS, *texts]
    different = []
    for text in tried:
        ours, theirs = processor.encode(text), fast.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            different.append(f"{text[:30]!r} is {ours[:10]} and {theirs[:10]}")
    found = f"{len(tried):,} texts, {_num_bytes(tried):,} bytes"
    if different:
        found = f"{len(different):,} of {found} differ: {different[0]}"
    return Answer(SAME, not different, found)


def _num_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
