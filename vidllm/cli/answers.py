"""An answer on standard output, for people or as JSON, with its notes and its receipt beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .loading import imports_kept
from .options import emit, say, tell

if TYPE_CHECKING:
    from vidllm.models.answer import Answer


def tell_answer(
    answer: Answer,
    duration: float,
    json: Mapping[str, Any] | None,
    *,
    of: str = "ask",
    known_notes: set[str] | None = None,
) -> None:
    """Print an answer.

    Args:
        duration: of the video, in seconds. json: what stands in the JSON object before the answer;
            None for people. of: what was asked: "ask", "ground" or "caption".
        known_notes: notes that were told before; those of this answer are added.
    """
    for note in answer.notes:
        if known_notes is None or note not in known_notes:
            say(f"note: {note}")
    if known_notes is not None:
        known_notes.update(answer.notes)
    if json is not None:
        emit({**json, **answer.as_dict()})
    else:
        tell(spoken(answer, duration, of))
    say(str(answer.receipt))


def spoken(answer: Answer, duration: float, of: str = "ask") -> str:
    """An answer for people, every time in it told once.

    Moments that were looked for stand one a line, and so do captions. In long videos times are
    clocks, such as 1:06:27.

    Args:
        duration: of the video, in seconds. of: "ask", "ground" or "caption".
    """
    with imports_kept():
        from vidllm.ask.moments import captioned
        from vidllm.timecode.clock import LONG, by_clock, names_all, span_text

    spans, text = answer.spans, answer.text
    long = duration >= LONG
    if of == "ground" and spans:
        return "\n".join(span_text(span, long) for span in spans)
    if of == "caption" and ("\n" not in text or "{" in text):
        rows = captioned(answer, duration)
        if len(rows) == len(spans) > 0:  # else some words, or some times, would be left out
            lines = [f"{span_text(span, long)}  {' '.join(words.split())}" for span, words in rows]
            return "\n".join(lines)
    told = by_clock(text) if long else text
    if names_all(text, spans):
        return told
    return "\n".join([told, ", ".join(span_text(span, long) for span in spans)])
