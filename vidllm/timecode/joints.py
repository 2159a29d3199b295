"""The words that make a range of two times, in the languages that are read.

All are pieces of regular expressions: before a range, between its ends, and behind it.
"""

from __future__ import annotations

import re

#: "from", "between": a preposition before the first time.
LEAD = (
    r"(?:\b(?:from|between|von|zwischen|ab|desde|entre|de|del|depuis|du|da|dal|dallo|dalla|dalle"
    r"|dai|das|dos|tra|fra|vanaf|van|tussen|\u043e\u0442|\u0441|\u043c\u0435\u0436\u0434\u0443)\b"
    r"|\u4ece|\u5f9e|\u81ea|\u5728)"
)
#: Those of them that take "and" between the times.
BOTH = (
    r"(?:\b(?:from|between|zwischen|entre|desde|von|tra|fra|tussen|\u043c\u0435\u0436\u0434\u0443)\b"
    r"|\u4ece|\u5f9e|\u81ea|\u5728)"
)
ALSO = r"(?:\b(?:and|und|et|y|e|en|\u0438)\b|\u548c|\u4e0e|\u8207)"
#: "to", and signs for it.
TO = (
    r"-+>?|=+>|~+|\.{2,}|\bto\b|\buntil\b|\btill\b|\bthrough\b|\bthru\b|\bup\sto\b"
    r"|\bbis(?:\szu[rm]?)?\b|\bhasta\b|\ba[lisd]?\b|\balle\b|\bfino\sa[li]?\b"
    r"|\bat\u00e9\b|\b\u00e0s?\b|\baos?\b|\baux?\b|\bjusqu'(?:\u00e0|aux?)"
    r"|\btot(?:\sen\smet)?\b|\bt/m\b|\b\u0434\u043e\b|\b\u043f\u043e\b"
    r"|\u5230|\u81f3|\u304b\u3089|\uc5d0\uc11c|\ubd80\ud130"
)
#: A joint that is also an English word: it needs a preposition before, or a unit behind.
WEAK = frozenset(("a", "as", "ad", "al", "ai", "au"))
#: Words between a preposition and its time.
AT = (
    r"(?:\s?(?:\b(?:at|around|about|approximately|roughly|nearly|ca|circa|etwa|rund|ungef\u00e4hr"
    r"|environ|unos|aproximadamente|\u043e\u043a\u043e\u043b\u043e|\u043f\u0440\u0438\u043c\u0435"
    r"\u0440\u043d\u043e|t|the|la|le|les|los|las|el|il|lo|i|gli|der|die|dem|den|het|o|os|as"
    r"|second|seconds|seconde|secondo|segundo|sekunde|\u0441\u0435\u043a\u0443\u043d\u0434\u044b?"
    r"|time|mark|is|was|timestamp)\b"
    r"|\u7ea6|\u7d04|\u5927\u7ea6|\u5927\u7d04|\uc57d|\u7b2c|[:=~]))*\s?"
)
#: Behind the first time: "12\u79d2\u5f00\u59cb, \u523015\u79d2".
SINCE = r"(?:\s?(?:\u5f00\u59cb|\u958b\u59cb|\u8d77)\s?,?)?"
#: Particles behind the last time.
UNTIL = (
    r"(?:\s?(?:\u307e\u3067(?:\u306e\u9593)?\u306b?|\u306e\u9593\u306b?|\u306b\u304b\u3051\u3066"
    r"|\u4e4b\u95f4|\u4e4b\u9593|\u4e4b\u5185|\u4e4b\u5167|\u671f\u95f4|\u671f\u9593|\u7ed3\u675f"
    r"|\u7d50\u675f|\u4e3a\u6b62|\u70ba\u6b62|\u6b62|\uae4c\uc9c0\ub294?|\uc0ac\uc774\uc5d0?"
    r"|\ub3d9\uc548))*"
)
#: "12\u79d2\u306815\u79d2\u306e\u9593": between, said behind both.
WITH = r"(?:\u3068|\uc640|\uacfc|\u548c|\u4e0e|\u8207|\u8ddf)"
AMID = r"(?:\u306e\u9593\u306b?|\u4e4b\u95f4|\u4e4b\u9593|\uc0ac\uc774\uc5d0?)"

_BEFORE = re.compile(
    rf"(?:^|(?<=[\s.,;:(\[*\u3002\uff0c\u3001]))(?:(?:{LEAD}|\u5927?[\u7ea6\u7d04\u6982]|\b(?:at|in|during|within|around|about"
    rf"|approximately|roughly|ca|etwa|vers|en|im|bei|ungef\u00e4hr|environ)\b){AT})+\Z",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    rf"(?:\s?[\u79d2\ucd08])?{UNTIL}(?:\s{{0,9}}(?:of|in|into)\s(?:the|this)\s(?:video|clip|footage|recording|film)\b"
    r"(?=\s{0,9}(?:[.,;:!?\n]|$)))?",
    re.IGNORECASE,
)


def widened(text: str, begin: int, end: int) -> tuple[int, int]:
    """The place of a range with the words around it that belong to it alone, such as "from"."""
    before = _BEFORE.search(text[max(0, begin - 40) : begin])
    behind = _BEHIND.match(text, end)
    return begin - (len(before[0]) if before else 0), behind.end() if behind else end
