"""A tokenizer of LLaMA's kind (paper section 2.1) learned from a sample of a corpus."""

import heapq
import io
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import sentencepiece

from llama_jax.config import DataConfig, UserError
from llama_jax.data import documents, tokenizer

MAX_LINE_BYTES = 4192  # SentencePiece leaves longer lines out
OWN_MARK = "\u2585"  # and lines with this character, which stands for <unk> inside of it
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


def train(data: DataConfig, vocab_size: int, max_bytes: int) -> bytes:
    """Return a SentencePiece model trained on max_bytes of the mixture's train splits.

    Each source gives its rate's share of the bytes, in lines from all over its text, and a source
    that is too small for it is repeated, as in training; prints how much of its text each gave.
    The same corpus gives the same model, byte for byte. Raises UserError if the corpus or
    vocab_size do not allow it, or the result loses text.
    """
    # A list, because SentencePiece turns an error inside an iterator into one of its own.
    lines = [
        line for source, rate in data.mixture for line in _sample(data, source, rate * max_bytes)
    ]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            minloglevel=2,
            **SETTINGS,
        )
    except RuntimeError as e:
        if most := re.search(r"Please set it to a value <= (\d+)", str(e)):
            raise UserError(
                f"vocab_size: got {vocab_size}, but the text gives {most[1]} pieces at the most, "
                "the 256 bytes included; expected that or less, or a corpus with more different "
                "words in it"
            ) from e
        raise UserError(f"vocab_size: got {vocab_size}, SentencePiece refuses it: {e}") from e
    _check(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
    return model.getvalue()


def _sample(data: DataConfig, source: str, num_bytes: float) -> list[str]:
    """Return lines of num_bytes together, of which each line of the source is as likely as another.

    All of them, over and over, if the source has less.
    """
    found = documents.parts(data, source, "train")
    draw = random.Random(0).random
    kept: list[tuple[float, str]] = []  # the smallest numbers drawn, a heap, the largest first
    kept_bytes = total_bytes = 0
    for line in (line for part in found for line in _lines(part)):
        key, size = -draw(), len(line.encode())
        total_bytes += size
        if kept_bytes >= num_bytes and key < kept[0][0]:
            continue
        heapq.heappush(kept, (key, line))
        kept_bytes += size
        while kept_bytes - (largest := len(kept[0][1].encode())) >= num_bytes:
            heapq.heappop(kept)
            kept_bytes -= largest
    if not kept:
        raise UserError(f"data.corpus: {found[0].directory} has no text in its train files")
    times = num_bytes / kept_bytes
    print(
        f"{source}: {kept_bytes:,} of {total_bytes:,} bytes of text, "
        f"{kept_bytes / total_bytes:.1%}" + (f", {times:.3g} times" if times > 1 else ""),
        flush=True,
    )
    taken, taken_bytes = [], 0
    for line in itertools.cycle([line for _, line in sorted(kept, reverse=True)]):
        if taken_bytes >= num_bytes:
            break
        taken.append(line)
        taken_bytes += len(line.encode())
    return taken


def _lines(part: documents.Part) -> Iterator[str]:
    """Yield lines without their newlines, which so become the byte piece <0x0A>, as for LLaMA."""
    for text, _ in documents.read(part):
        for line in re.split(f"[\n{OWN_MARK}]", text):
            yield from parts(line)


def parts(line: str) -> Iterator[str]:
    """Yield a line in parts of at most MAX_LINE_BYTES, none empty, cut at whitespace if it has any.

    A space at a cut is left out: SentencePiece puts one before each part.
    """
    rest, start = line.encode(), 0
    while len(rest) - start > MAX_LINE_BYTES:
        part = rest[start : start + MAX_LINE_BYTES].decode(errors="ignore")  # half a character
        if space := re.match(r"(?s).*\s", part):
            part = space.group()
        start += len(part.encode())
        if part := part.removesuffix(" "):
            yield part
    if start < len(rest):
        yield rest[start:].decode()


def _check(processor: sentencepiece.SentencePieceProcessor) -> None:
    """Raise UserError unless it gives back text as it was, and splits numbers into digits."""
    if losses := tokenizer.losses(processor):
        raise UserError(f"tokenizer: {losses[0]}")
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        if len(piece) > 1 and not processor.is_byte(i) and any(c in "0123456789" for c in piece):
            raise UserError(f"tokenizer: numbers are not split into digits: {piece!r} is a token")
