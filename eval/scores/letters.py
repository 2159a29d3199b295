"""The letter that an answer to a multiple-choice question names, or None.

An answer that names no letter, or several, has no letter: nothing is guessed. "A man opens the
door" is not option A.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vidllm.errors import InputError

from ..metrics import normal

# What may follow a letter that is meant as one; a word may not, so the article "A" is none.
_END = r"""(?=\s*(?:$|[)\]:,;!?*"»\n]|\.(?!\w\.)|'(?!\w)|[-–—]\s|\b(?:because|since|as|is)\b))"""
_NOISE = r"[\W_]*"
_ADVERB = r"(?:(?:therefore|thus|clearly|likely|probably|most|definitely)\s+)*"
_TAG = re.compile(r"</?[\w|]{1,20}>|<\|\w{1,20}\|>")


def read_letter(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The one option that an answer names.

    Read in this order, the first that finds something decides: a lone letter (also on the first
    line); exactly the text of one option; a letter at the start ("B. The dog", "(b) the dog",
    "B because …"); a statement ("the answer is B", "Best option: (B", "I choose B"; the last of
    several); the one letter in brackets; the text of one option within the answer. Tags such as
    "</s>" and "<answer>" are left aside, and "\\boxed{B}" is "(B)".

    Args:
        letters: of the options, in order.
        options: their texts, without letters; what is not given is not searched for.

    Raises:
        InputError: not as many letters as options, or letters that are not single and upper case.
    """
    _check(letters, options)
    text = re.sub(r"\\boxed\{(\w)\}", r"(\1)", _TAG.sub(" ", text))
    one = f"[{letters}{letters.lower()}]"
    lead = r"(?:(?:the\s+)?(?:best\s+|correct\s+)?(?:option|choice|answer)\b(?:\s+is\b)?)?"
    lone = re.compile(rf"{_NOISE}(?i:{lead}){_NOISE}({one}){_NOISE}")
    lines = text.strip().splitlines() or [""]
    for part in (text, lines[0]):
        if found := lone.fullmatch(part):
            return found[1].upper()
    said = normal(text)
    texts = [normal(option) for option in options or ()]
    if said and texts.count(said) == 1:
        return letters[texts.index(said)]
    if several(text, letters):
        return None
    for find in (_leading, _stated, _bracketed):
        if letter := find(text, letters):
            return letter
    return _contained(said, texts, letters)


def several(text: str, letters: str) -> bool:
    """Whether an answer begins with a list of letters: "A and C", "A, B"."""
    link = r"[\W_]*(?:,|/|&|\+|\band\b|\bor\b)[\W_]*"
    return re.match(rf"{_NOISE}[{letters}]{link}[{letters}]{_END}", text) is not None


def _leading(text: str, letters: str) -> str | None:
    """The letter at the start of a line; None if lines start with different ones."""
    small = rf"[{letters.lower()}](?=[)\]:]|\.(?!\w\.))"
    start = re.compile(rf"^[^\w\n]*([{letters}]{_END}|{small})", re.MULTILINE)
    found = list(start.finditer(text))
    if len({match[1].upper() for match in found}) != 1 or text[: found[0].start()].strip():
        return None
    return found[0][1].upper()


def _stated(text: str, letters: str) -> str | None:
    """The letter of the last statement about the answer."""
    noun = r"\b(?:answer|option|choice)\b"
    named = rf"{_ADVERB}(?:option\s+|choice\s+)?{_NOISE}"
    forms = (
        rf"(?i:{noun}[^.\n:]{{0,40}}?(?:\bis\b|\bbe\b|:)\s*{named})([{letters}]){_END}",
        rf"(?i:{noun}\s+\(?)([{letters}])(?i:\)?\s+is\s+(?:the\s+)?(?:correct|right|best|most)\b)",
        rf"(?i:\b(?:choose|pick|select|go\s+with|it\s+is|it's)\s+{named})([{letters}]){_END}",
        rf"(?i:\b(?:think|say|guess|is)\s+{named})([{letters}]){_NOISE}$",
    )
    found = [match for form in forms for match in re.finditer(form, text)]
    return max(found, key=lambda match: match.start(1))[1] if found else None


def _bracketed(text: str, letters: str) -> str | None:
    found = set(re.findall(rf"\(([{letters}])\)", text))
    return found.pop() if len(found) == 1 else None


def _contained(said: str, texts: Sequence[str], letters: str) -> str | None:
    """The one option whose words stand in the answer, the longer of one inside another."""
    inside = [text for text in texts if text and f" {text} " in f" {said} "]
    longest = [t for t in inside if not any(t != u and f" {t} " in f" {u} " for u in inside)]
    return letters[texts.index(longest[0])] if len(longest) == 1 else None


def loose_letter(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The letter as the loose parsers of NExT-QA, EgoSchema and LongVideoBench read it.

    A letter in brackets, else a letter before a blank, else one before a full stop, else the text
    of an option; the last one found. Wrong where an answer starts with the article: "A man …" is
    option A.

    Raises:
        InputError: see `read_letter`.
    """
    _check(letters, options)
    padded = f" {text.strip(',.!?;: ')} "
    places: dict[str, int] = {}
    for form in ("({})", "{} ", "{}."):
        places = {c: place for c in letters if (place := padded.rfind(form.format(c))) >= 0}
        if places:
            break
    if not places and options:
        found = {c: text.lower().rfind(o.lower()) for c, o in zip(letters, options, strict=True)}
        places = {c: place for c, place in found.items() if place >= 0 and text}
    return max(places, key=lambda c: places[c]) if places else None


def first_capital(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The first of the capitals anywhere in a text, as the scripts of Video-MME and LongVideoBench
    read letters: "Because" is option B.
    """
    return next((c for c in text if c in letters), None)


def lone_capital(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The first capital that stands alone, as lmms-eval reads Perception Test: "A man" is A."""
    found = re.search(rf"\b([{letters}])\b", text)
    return found[1] if found else None


def lone_letter(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The first letter that stands alone, as lmms-eval reads MVBench: "I see a man" is A."""
    found = re.search(rf"\b([{letters}])\b", text, re.IGNORECASE)
    return found[1].upper() if found else None


def _check(letters: str, options: Sequence[str] | None) -> None:
    if (
        not letters
        or len(set(letters)) < len(letters)
        or set(letters) - set(string.ascii_uppercase)
    ):
        raise InputError(f"options have different letters from A to Z, not {letters!r}")
    if options is not None and len(options) != len(letters):
        raise InputError(f"{len(options)} options need as many letters, not {letters!r}")
