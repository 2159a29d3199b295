"""What single tokens of an answer say of its times: how sure each is, and whether it is whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from . import Found, Span, TimeCode

#: A time in digit tokens that may go on with the next token.
_HALF = re.compile(r"<TIME_\w{1,9}>\Z")


def scored_spans(
    found: Sequence[Found],
    ids: Sequence[int],
    scores: Sequence[float],
    decode: Callable[[Sequence[int]], str],
    code: TimeCode,
) -> list[Span]:
    """The spans of an answer, each with the mean probability of the tokens that spell its times.

    The mean is geometric: e to the mean of the tokens' log-probabilities. Words between the times
    do not count. 1 where the answer's tokens were not scored.

    Args:
        found: the spans and their places in the answer, which is `decode(ids)` stripped.
        ids: of the answer. scores: natural log-probabilities, one an id.
    """
    spans = [item.span for item in found]
    if not spans or len(scores) != len(ids):
        return spans
    whole = decode(ids)
    lead = len(whole) - len(whole.lstrip())
    ends = [len(decode(ids[: k + 1])) - lead for k in range(len(ids))]
    starts = [-lead, *ends[:-1]]
    scored = []
    for item in found:
        told = [
            score
            for start, end, score in zip(starts, ends, scores, strict=True)
            if start < item.end
            and end > item.begin
            and _spells(whole[start + lead : end + lead], code)
        ]
        sure = math.exp(sum(told) / len(told)) if told else 1.0
        scored.append(item.span._replace(score=sure))
    return scored


def _spells(piece: str, code: TimeCode) -> bool:
    """Whether a token is a piece of a time."""
    piece = piece.strip()
    return piece in code.special_tokens or bool(re.search(r"\d|^[.:]$", piece))


def whole_times(raw: str) -> str:
    """A growing answer without what its next token may still change at the end."""
    said = raw.rstrip()
    while half := _HALF.search(said[-16:]):
        said = said[: -len(half[0])].rstrip()
        raw = said
    return raw.rstrip("\ufffd")
