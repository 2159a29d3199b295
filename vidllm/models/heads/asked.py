"""What a question asks of a system without an LLM: a sentence, options, or what it cannot tell."""

from __future__ import annotations

import re
from typing import NamedTuple

from vidllm.errors import InputError
from vidllm.errors.bounds import short

#: Questions that are answered by something else than a time.
_OTHER = re.compile(
    r"(?:what|which|who|whom|whose|how|where|why|is|are|was|were|do|does|did|can|could|describe|list|"
    r"summari[sz]e|explain|tell|count|name)\b",
    re.IGNORECASE,
)
_WHEN = re.compile(
    r"(?:when|at (?:what|which) (?:time|second|moment)|during which seconds?)\b", re.IGNORECASE
)
_SECOND = re.compile(r"at (?:what|which) second\b", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)'(.+?)'(?!\w)|\"(.+?)\"|“(.+?)”", re.DOTALL)
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.):]\s+")
_TAIL = re.compile(r"\n[^\n]*\bletter\b[^\n]*$", re.IGNORECASE)


class Moment(NamedTuple):
    """A question for a time.

    Attributes:
        sentence: what is looked for. one_second: whether a second is wanted and not a span.
    """

    sentence: str
    one_second: bool


def moment_asked(question: str, who: str) -> Moment:
    """What a question for a time looks for: what stands in quotes, or else all of it.

    Args:
        who: answers, for the message.

    Raises:
        InputError: it asks for something else than a time.
    """
    text = question.strip()
    if _OTHER.match(text) and not _WHEN.match(text):
        raise InputError(
            f"{who} says when something happens and nothing else, and this asks for something "
            f"else: {short(text)}; ask when …, or use vidllm ground"
        )
    quoted = _QUOTED.search(text)
    sentence = text if quoted is None else next(part for part in quoted.groups() if part)
    return Moment(sentence.strip(), bool(_SECOND.match(text)))


class Choice(NamedTuple):
    """A question with its options.

    Attributes:
        question: without them. letters, options: of each.
    """

    question: str
    letters: tuple[str, ...]
    options: tuple[str, ...]


def choice_asked(question: str) -> Choice:
    """The options of a question, "A. first B. second" on lines of their own or in one.

    A last line that only says how to answer is left aside. None are found where letters do not
    come in their order from A, or are fewer than two.
    """
    text = _TAIL.sub("", question.strip())
    marks = list(_OPTION.finditer(text))
    first = next((k for k, mark in enumerate(marks) if mark[1] == "A"), len(marks))
    chosen: list[re.Match[str]] = []
    for mark in marks[first:]:
        if ord(mark[1]) == ord("A") + len(chosen):
            chosen.append(mark)
    if len(chosen) < 2:
        return Choice(text, (), ())
    ends = [*(mark.start() for mark in chosen[1:]), len(text)]
    options = [text[m.end() : end].strip() for m, end in zip(chosen, ends, strict=True)]
    letters = tuple(mark[1] for mark in chosen)
    return Choice(text[: chosen[0].start()].strip(), letters, tuple(options))
