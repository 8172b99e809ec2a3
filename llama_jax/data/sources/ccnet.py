"""What CCNet (arXiv 1911.00359) takes a paragraph for, and how it scores one.

Its constants are those of facebookresearch/cc_net, whose models and cut-offs depend on them.
"""

import re
import unicodedata
from typing import Any

# What CCNet takes for punctuation, by what it becomes before a text is scored.
_BECOMES = {
    **{",": "，、", ".": "。", ". ": "．", "...": "…", ":": "∶：", ";": "；", "?": "？", "!": "！"},
    **{'"': "„”“«»」「《》１", "'": "´’", "(": "（", ")": "）", "[": "【", "]": "】"},
    **{"-": "–━►", " - ": "—", "~": "～", "<": "〈", ">": "〉", "%": "％"},
}
PUNCTUATION = {c: plain for plain, characters in _BECOMES.items() for c in characters}
CONTROLS = "".join(map(chr, (*range(32), *range(127, 160))))
DIGIT = re.compile(r"\d")
_WITHOUT = str.maketrans("", "", "".join(PUNCTUATION) + CONTROLS)
_PLAIN = str.maketrans(PUNCTUATION | dict.fromkeys(CONTROLS, ""))


def normalised(paragraph: str) -> str:
    """Return what is hashed of a paragraph: lower case, every digit 0, without PUNCTUATION
    and no control characters; accents stay."""
    return DIGIT.sub("0", paragraph.strip().lower()).translate(_WITHOUT)


def plain(text: str) -> str:
    """Return what SentencePiece and the language model see of a text: lower case, no accents, every
    digit 0, plain punctuation."""
    decomposed = unicodedata.normalize("NFD", text.strip().lower())
    unaccented = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    return DIGIT.sub("0", unaccented).translate(_PLAIN)


def perplexity(text: str, pieces: Any, model: Any) -> float:
    """Return a text's perplexity to a KenLM model of SentencePiece pieces, to one decimal.

    Like CCNet it scores a document as one sentence, without its line breaks.
    """
    found = pieces.encode(plain(text), out_type=str)
    return round(10.0 ** (-model.score(" ".join(found)) / (len(found) + 1)), 1)
