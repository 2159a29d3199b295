"""What was asked and answered about a clip, as HTML: every time is a button of the player."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vidllm.ask.moments import pieces
from vidllm.models.answer import Answer
from vidllm.timecode import Span

from .drawing import clock
from .sessions import Turn
from .terms import term


def time_button(text: str, seconds: float) -> str:
    """A time that can be clicked, tapped, or reached by keyboard."""
    return (
        f'<button type="button" class="vl-time" data-seconds="{seconds:.3f}" '
        f'aria-label="go to {escape(text, quote=True)}">{escape(text)}</button>'
    )


def reply(text: str, duration: float) -> str:
    """An answer whose times are buttons.

    Args:
        duration: of the video, in seconds.
    """
    cut = pieces(text, duration)
    if not cut:
        return '<span class="vl-hint">(the model said nothing)</span>'
    return "".join(
        escape(part) if seconds is None else time_button(part.strip(), seconds)
        for part, seconds in cut
    )


def chat(turns: Sequence[Turn], duration: float, asked: str = "", growing: str = "") -> str:
    """The questions about a clip, the oldest one first.

    Args:
        asked: a question that is being answered; growing: what there is of its answer.
    """
    rows = [_turn(turn.question, reply(turn.text, duration), turn.account) for turn in turns]
    if asked:
        said = reply(growing, duration) if growing else '<span class="vl-hint">…</span>'
        rows.append(_turn(asked, said))
    if not rows:
        return '<p class="vl-hint">Questions and answers appear here.</p>'
    return (
        '<div class="vl-scroll" tabindex="0" role="log" aria-label="Questions and answers">'
        f"{''.join(rows)}</div>"
    )


def moments(told: Iterable[tuple[Span, str]]) -> str:
    """Moments and what is said of each (HTML), a line each."""
    rows = "".join(
        f"<li><span>{time_button(clock(span.start), span.start)} – "
        f"{time_button(clock(span.end), span.end)}</span> {words}</li>"
        for span, words in told
    )
    return f'<ol class="vl-moments">{rows}</ol>' if rows else hint("no moment was found")


def captions(rows: Iterable[tuple[Span, str]]) -> str:
    """Dense captions, a line each."""
    return moments((span, escape(words)) for span, words in rows)


def scored(answer: Answer) -> str:
    """The moments of an answer with their scores."""
    spans = () if answer.failed else answer.spans
    return moments((s, f"{term('score')} {s.score:.2f}") for s in spans)


def examples(questions: Iterable[str]) -> str:
    """Questions that belong to the loaded clip; a click writes one into the box."""
    buttons = "".join(
        f'<button type="button" class="vl-example">{escape(question)}</button>'
        for question in questions
    )
    return f'<div class="vl-examples"><span>For this clip</span>{buttons}</div>' if buttons else ""


def hint(text: str) -> str:
    """A quiet line."""
    return f'<p class="vl-hint">{escape(text)}</p>'


def _turn(question: str, said: str, account: str = "") -> str:
    small = f"<small>{escape(account)}</small>" if account else ""
    return (
        f'<article class="vl-turn"><p class="vl-asked">{escape(question)}</p>'
        f'<p class="vl-said">{said}</p>{small}</article>'
    )
