"""Text from outside as a terminal or a page may show it: no control characters."""

from __future__ import annotations

import unicodedata

#: Control, surrogate, and those of format that turn the direction of what stands around them.
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
_TURNS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, *, lines: bool = False) -> str:
    """Text in which every control character is spelt out ("\\x1b", "\\u202e").

    Args:
        lines: line ends and tabs stay; else the result is one line.
    """
    whole = str(text)
    if whole.isascii() and whole.isprintable():
        return whole
    return "".join(_shown(sign, lines) for sign in whole)


def _shown(sign: str, lines: bool) -> str:
    if lines and sign in "\n\t":
        return sign
    if sign in _TURNS or unicodedata.category(sign) in _HIDDEN:
        return sign.encode("unicode_escape").decode("ascii")
    return sign


def printable_json(text: str) -> str:
    """JSON of the same value, in which control characters are written as JSON's escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{ord(sign):04x}" if sign != "\n" and _shown(sign, False) != sign else sign
        for sign in text
    )
