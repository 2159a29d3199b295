"""What an option states as the answer to a question."""

from __future__ import annotations

import re

#: Questions of the stage language, and what an option {o} to each states.
_FORMS: tuple[tuple[str, str], ...] = (
    (r"what does (?P<who>.+) do after it (?P<what>.+)", "after {who} {what} it {o}"),
    (r"what does (?P<who>.+) do first", "{who} first {o}"),
    (r"what does (?P<who>.+) do", "{who} {o}"),
    (r"what colour is (?P<who>the \w+) that (?P<what>.+)", "the {o} {noun} {what}"),
    (r"which colour does (?P<who>.+) change to", "{who} changes colour to {o}"),
    (r"how many times does (?P<who>.+)", "{o} times {who}"),
    (r"how many objects (?P<what>.+)", "{o} objects {what}"),
    (r"what happens (?P<what>first|last)", "{what} {o}"),
    (r"(?:what|which object) (?P<what>.+)", "{o} {what}"),
    (r"where does (?P<who>.+)", "{who} {o}"),
)


def statement(question: str, option: str) -> str:
    """What an option states as the answer to a question, as one sentence.

    Tem-Adapter (arXiv 2308.08414) fuses question and option so, for text encoders that learned from
    statements. "does … ?" takes yes or no behind what it asks; other questions, which this language
    does not have, are followed by the option.
    """
    asked = " ".join(re.sub(r"\s*[?.]\s*$", "", question.strip().lower()).split())
    said = " ".join(option.strip().lower().split())
    for form, fused in _FORMS:
        if found := re.fullmatch(form, asked):
            parts = found.groupdict()
            noun = parts.get("who", "").removeprefix("the ")
            return fused.format(**parts, o=said, noun=noun)
    return f"{asked} {said}"
