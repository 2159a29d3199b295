"""Sentences of an answer that name a stretch of time but no event: refusals, and of the video."""

from __future__ import annotations

import re
from bisect import bisect

_EVENT = r"(?:event|moment|scene|action|activity|query|clip|segment|description|it|that|this)"
_REFUSED = re.compile(
    rf"\bno\s(?:such|relevant|matching|event|moment)\b|\bonly\ssee\b|\bthere\s(?:is|was|are|were)\sno\s(?:{_EVENT}|time|point|instance|mention"
    r"|evidence|sign)\b"
    rf"|\b{_EVENT}\s(?:(?:does|did|is|was)\snot|(?:does|did|is|was)n't|never|cannot\sbe|can't\sbe)"
    r"\s(?:occur|happen|appear|exist|take\splace|shown|present|visible|found|seen|in\sth)"
    r"|\b(?:i|we)\s(?:cannot|can't|can\snot|could\snot|couldn't|do\snot|don't|did\snot|didn't"
    r"|am\s(?:not\sable|unable)\sto|was\s(?:not\sable|unable)\sto)\s(?:find|see|determine|identify"
    r"|locate|tell|detect|say|know|answer|confirm)\b"
    r"|\bcannot\sbe\s(?:determined|identified|located|answered)\b"
    r"|\bnot\s(?:present|shown|found|visible|depicted)\sin\s(?:the|this)\s(?:video|clip|footage)\b"
    r"|(?:\u65e0\u6cd5(?:\u786e\u5b9a|\u627e\u5230|\u5224\u65ad)|\u6ca1\u6709\u627e\u5230"
    r"|\u672a\u627e\u5230|\u6ca1\u6709\u51fa\u73b0|\u672a\u51fa\u73b0|\u4e0d\u5b58\u5728)"
    # Of the video as a whole, or of what the model was shown.
    r"|\b(?:video|clip|footage|recording|film)\s(?:(?:lasts|runs|goes|extends|spans)\b|is\s[^,.;\n]{1,20}\slong\b)"
    r"|\bframes?\s(?:are\s|were\s)?(?:sampled|taken)\b|\bsampled\s(?:at|from|every|between)\b",
    re.IGNORECASE,
)
_NOT_THIS = re.compile(r"\bnot\s(?:from\s|between\s|at\s|in\s|during\s)?\Z", re.IGNORECASE)
_BOUNDARY = re.compile(r"[.!?;](?=\s|\Z)|\n|\b(?:but|however|instead|rather)\b", re.IGNORECASE)


class Refusals:
    """Where a plain text refuses; see `covers`."""

    def __init__(self, text: str) -> None:
        self.text = text
        places = [found.start() for found in _REFUSED.finditer(text)]
        bounds = [found.start() for found in _BOUNDARY.finditer(text)] if places else []
        self.bounds, self.refused = bounds, {bisect(bounds, place) for place in places}

    def covers(self, begin: int, end: int) -> bool:
        """Whether a range at [begin, end) is refused by its sentence, or by "not" before it."""
        if _NOT_THIS.search(self.text[max(0, begin - 16) : begin]):
            return True
        told = range(bisect(self.bounds, begin), bisect(self.bounds, end - 1) + 1)
        return any(clause in self.refused for clause in told)
