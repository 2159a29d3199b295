"""The letter that an answer to a multiple-choice question names, or None.

An answer that names no letter, or several, has no letter: nothing is guessed. "A man opens the
door" is not option A.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vidllm.errors import InputError
from vidllm.timecode import plain

from .metrics import normal

# What may follow a letter that is meant as one; a word may not, so the article "A" is none.
_END = (
    r"""(?=\s?(?:$|[)\]:,;!?*"»}>\n]|\.(?!\w\.)|'(?!\w)|[-–—]\s|\b(?:because|since|as|is)\b"""
    r"|是|为|為|因|正确|正確|选项|選項|です|입니다|이다))"
)
# Bounded, as all repeated pieces are: no answer takes more than time in proportion to its length.
_NOISE = r"[\W_]{0,60}"
_ADVERB = r"(?:(?:therefore|thus|clearly|likely|probably|most|definitely)\s){0,9}"
_LINK = r"\s?(?:,|/|&|\+|\band\b|\bor\b|和|或)\s?[\W_]{0,3}"


def read_letter(
    text: str, letters: str = "ABCD", options: Sequence[str] | None = None
) -> str | None:
    """The one option that an answer names.

    Read in this order, the first that finds something decides: a lone letter (also on the first
    line); exactly the text of one option; a letter at the start ("B. The dog", "(b) the dog",
    "B because …"); a statement ("the answer is B", "Best option: (B", "I choose B"; the last of
    several); the one letter in brackets; the one line that is a letter alone; the text of one
    option within the answer. All of this in the answer of a reply in plain form, see
    `timecode.reply`: what the model thought, tags, dress and other Unicode forms are left aside.

    Args:
        letters: of the options, in order.
        options: their texts, without letters; what is not given is not searched for.

    Raises:
        InputError: not as many letters as options, or letters that are not single and upper case.
    """
    _check(letters, options)
    text = plain(text).text
    one = f"[{letters}{letters.lower()}]"
    lead = r"(?:(?:the\s+)?(?:best\s+|correct\s+)?(?:option|choice|answer)\b(?:\s+is\b)?)?"
    lone = re.compile(rf"{_NOISE}(?i:{lead}){_NOISE}({one}){_NOISE}")
    lines = text.strip().splitlines() or [""]
    for part in (text, lines[0]):
        if found := lone.fullmatch(part):
            return found[1].upper()
    said = normal(text)
    texts = [normal(plain(option).text) for option in options or ()]
    if said and texts.count(said) == 1:
        return letters[texts.index(said)]
    if several(text, letters):
        return None
    for find in (_leading, _stated, _bracketed):
        if letter := find(text, letters):
            return letter
    alone = {found[1].upper() for line in lines if (found := lone.fullmatch(line))}
    if len(alone) == 1:
        return alone.pop()
    return _contained(said, texts, letters)


def several(text: str, letters: str) -> bool:
    """Whether an answer begins with a list of letters: "A and C", "A, B"."""
    return re.match(rf"{_NOISE}[{letters}][\W_]{{0,9}}{_LINK}[{letters}]{_END}", text) is not None


def _leading(text: str, letters: str) -> str | None:
    """The letter at the start of a line; None if lines start with different ones."""
    small = rf"[{letters.lower()}](?=[)\]:]|\.(?!\w\.))"
    start = re.compile(rf"^[^\w\n]{{0,60}}([{letters}]{_END}|{small})", re.MULTILINE)
    found = list(start.finditer(text))
    if len({match[1].upper() for match in found}) != 1 or text[: found[0].start()].strip():
        return None
    return found[0][1].upper()


def _stated(text: str, letters: str) -> str | None:
    """The letter of the last statement about the answer."""
    noun = r"(?<![^\W_])(?:answer|ans|option|choice|prediction|letter)\b"
    named = rf"{_ADVERB}(?:option\s|choice\s)?{_NOISE}"
    small = letters.lower()
    forms = (
        rf"(?i:{noun}[^.\n:=]{{0,40}}?(?:\bis\b|\bbe\b|[:=]|->)\s?{named})([{letters}]){_END}",
        rf"(?i:{noun}[^.\n:=]{{0,9}}?(?:\bis\b|[:=])\s?)[\"'(\[]\s?([{small}])\s?[\"')\]]",
        rf"(?i:{noun}\s\(?)([{letters}])(?i:\)?\sis\s(?:the\s)?(?:correct|right|best|most)\b)",
        rf"(?i:\b(?:choose|pick|select|go\swith|it\sis|it's)\s{named})([{letters}]){_END}",
        rf"(?i:\b(?:think|say|guess|is)\s{named})([{letters}]){_NOISE}$",
        rf"(?:答案|正解|答え|選択肢|정답|답|选项|選項)[^.\n,]{{0,12}}?{_NOISE}([{letters}])(?!\w)",
        rf"(?:选择?|選擇?|应选|應選|選ぶ){_NOISE}([{letters}])(?!\w)",
    )
    found = [match for form in forms for match in re.finditer(form, text)]
    if not found:
        return None
    last = max(found, key=lambda match: match.start(1))
    more = re.compile(rf"[)\]\"']?{_LINK}[{letters}](?=\s?(?:$|[)\].,;!?\"'\n\u2e80-\uffff]))")
    return None if more.match(text, last.end(1)) else last[1].upper()


def _bracketed(text: str, letters: str) -> str | None:
    found = set(re.findall(rf"\(\s?([{letters}])\s?\)", text))
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
