"""An answer on standard output, for people or as JSON, with its notes and its receipt beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .loading import imports_kept
from .options import emit, say, tell

if TYPE_CHECKING:
    from vidllm.models.answer import Answer
    from vidllm.timecode import Span

#: Seconds from which on a video's times are told as clocks, and what two equal times may differ.
_LONG, _SAME = 600.0, 0.11


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
        from vidllm.ask.moments import captioned, pieces
        from vidllm.longvideo.windows import clock

    spans, text = answer.spans, answer.text
    long = duration >= _LONG
    if of == "ground" and spans:
        return "\n".join(_told(span, long) for span in spans)
    if of == "caption" and ("\n" not in text or "{" in text):
        rows = captioned(answer, duration)
        if len(rows) == len(spans) > 0:  # else some words, or some times, would be left out
            lines = [f"{_told(span, long)}  {' '.join(words.split())}" for span, words in rows]
            return "\n".join(lines)
    cut = pieces(text, duration)
    named = [piece.seconds for piece in cut if piece.seconds is not None]
    if long:
        text = "".join(p.text if p.seconds is None else clock(p.seconds) for p in cut)
    if all(_among(end, named) for span in spans for end in (span.start, span.end)):
        return text
    return "\n".join([text, ", ".join(_told(span, long) for span in spans)])


def _told(span: Span, long: bool) -> str:
    from vidllm.longvideo.windows import clock

    if long:
        return f"{clock(span.start)} – {clock(span.end)}"
    return f"{span.start:.1f} s – {span.end:.1f} s"


def _among(second: float, named: Sequence[float]) -> bool:
    return any(abs(second - one) < _SAME for one in named)
