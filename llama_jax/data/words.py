"""A SentencePiece model that encodes each word once: texts are made of few words, over and over.

No piece of a model of LLaMA's kind reaches across the beginning of a word, so its merges on one
side of that know nothing of the other, and the tokens of a text are those of its words in a row.
"""

import re
from collections.abc import Callable

import numpy as np
import sentencepiece

SPACE = "\u2581"  # what SentencePiece reads a space as
WORD = re.compile(r"\n| *[^ \n]+| +")  # with the spaces before it
ACROSS = re.compile(r"[^ \n] |.\n|\n.", re.DOTALL)  # what a piece must not hold
KEPT = 2**18  # words at the most, but for those of one text


def encoder(model: bytes, dtype: type[np.integer]) -> Callable[[str], np.ndarray] | None:
    """Return what gives the ids, [length] of `dtype`, that the model gives a text; None if words
    of this one cannot be told apart."""
    from sentencepiece import sentencepiece_model_pb2 as proto  # its classes are made at run time

    parsed = proto.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    normalizer = parsed.normalizer_spec
    pieces = (p.piece.replace(SPACE, " ") for p in parsed.pieces if p.type in (p.NORMAL, p.UNUSED))
    if normalizer.remove_extra_whitespaces or any(map(ACROSS.search, pieces)):
        return None
    normalizer.add_dummy_prefix = False  # a text begins with a space, but its other words do not
    encode = sentencepiece.SentencePieceProcessor(model_proto=parsed.SerializeToString()).encode

    known: dict[str, bytes] = {}

    def of_text(text: str) -> np.ndarray:
        if not text:
            return np.zeros(0, dtype)
        words = WORD.findall(" " + text.replace(SPACE, " "))
        new = [word for word in dict.fromkeys(words) if word not in known]
        tokens = encode(new, num_threads=1)  # at once, as a call costs more than a word
        known.update(
            (word, np.array(ids, dtype).tobytes()) for word, ids in zip(new, tokens, strict=True)
        )
        found = np.frombuffer(b"".join(map(known.__getitem__, words)), dtype)
        if len(known) > KEPT:
            known.clear()
        return found

    return of_text
