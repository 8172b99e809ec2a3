"""Text whose charset is uncertain."""

import codecs
import re


def decoded(content: bytes, told: str | None = None) -> str:
    r"""Return text as its mark says, in UTF-8, in the charset that is told of it, or in Latin-1.

    Lines end in "\n". Raises ValueError if it holds NUL bytes, as no text does.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _lines(content.decode("utf-16"))
    if b"\0" in content:
        raise ValueError("is not text: it holds NUL bytes")
    # Of Latin-1, Windows-1252 has all but control characters that no text has.
    for charset in ("utf-8-sig", told or "cp1252", "cp1252"):
        try:
            return _lines(content.decode(charset))
        except (UnicodeDecodeError, LookupError):
            continue
    return _lines(content.decode("latin-1"))


def _lines(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text)
