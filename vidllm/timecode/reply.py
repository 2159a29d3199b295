"""The answer in a model's reply, and its characters in plain form; every reader begins here.

A reply may hold more than its answer: what a model thinks before it, and tags around it. And the
same answer may come in other clothes: full-width digits, dashes of all lengths, Markdown, LaTeX.
`plain` gives the answer alone, in ASCII where there is a plain form, with the place in the reply
from which each character came.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

_UNFINISHED = (
    "the reply ended while the model was still thinking, so nothing is read from it: allow more "
    "tokens (max_new_tokens, --max-new-tokens)"
)

_THINKS = re.compile(
    r"<\|?\s*/?\s*(?:\w{1,12}:|ant)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad"
    r"|(?:begin|end)_of_thought)\s*\|?>|\[\s*/?think(?:ing)?\s*\]|\u25c1\s*/?think\s*\u25b7"
    r"|<\|channel\|>\s*(?:analysis|commentary|final)\b",
    re.IGNORECASE,
)
_ANSWERS = re.compile(
    r"<\|?\s*(/?)\s*(?:final_)?answer\s*\|?>|<\|(?:begin|end)_of_solution\|>", re.IGNORECASE
)

#: Without tags: what stands behind the last of these lines is the answer.
_FINAL = re.compile(
    r"(?:^|\n)[\s>*_#]{0,9}final\s{1,3}answer[\s*_]{0,3}(?:is)?[\s*_]{0,3}[:\uff1a]", re.I
)
_REASONED = re.compile(
    r"\s{0,9}(?:[*_#\s]{0,9}(?:thinking|thoughts?|reasoning|rationale|analysis|chain of thought)"
    r"[*_\s]{0,4}[:\uff1a]|```\s?(?:think\w*|thoughts?|reason\w*)\s*\n)",
    re.IGNORECASE,
)
_ANSWER_LINE = re.compile(r"\n[\s>*_#]{0,9}answer[\s*_]{0,3}[:\uff1a]", re.IGNORECASE)
_FENCE_END = re.compile(r"\n\s{0,3}```[^\S\n]*(?=\n|\Z)")

_DASHES = "\u2010\u2011\u2012\u2013\u2212\u2043\u02d7\u30fc\u2500\uff0d\ufe63\ufe58"
_LONG_DASHES = "\u2014\u2015\u2e3a\u2e3b"  # never a sign: a blank on either side
_ARROWS = "\u2192\u21d2\u27f6\u2794\u279c\u279e\u21a6\u27a1\u25b6\u25ba\u21e8\u27f9\u2933"
_PLAIN: dict[str, str] = {
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_LONG_DASHES, " - "),
    **dict.fromkeys(_ARROWS, "->"),
    **dict.fromkeys("\u223c\u301c\uff5e\u2248\u2053", "~"),
    **dict.fromkeys(
        "\u201c\u201d\u201e\u201f\u2033\u2036\u00ab\u00bb\u300c\u300d\u300e\u300f", '"'
    ),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2035", "'"),
    **dict.fromkeys("\u3010\u3014\u3016\u27e6", "["),
    **dict.fromkeys("\u3011\u3015\u3017\u27e7", "]"),
    **dict.fromkeys("\u300a\u3008\u2039\u27e8", "<"),
    **dict.fromkeys("\u300b\u3009\u203a\u27e9", ">"),
    "\u3002": ". ",  # the full stop of Chinese and Japanese is never a decimal point
    "\uff61": ". ",
    "\u3001": ", ",
    "\u066b": ".",
    "\u066c": ",",
    "\u2236": ":",
    "\ua789": ":",
    "\u2044": "/",
    "\u2215": "/",
}

_BOLD = r"(?:\*\*|__|~~|`)+"
# Dress: marks without meaning around words and numbers.
_DRESS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]{0,40})\}"), lambda m: f" {m[1]} "),
    (re.compile(r"\\boxed\{([^{}]{0,80})\}"), lambda m: f"({m[1]})"),
    (re.compile(r"\\(?:rightarrow|to)\b"), lambda m: "->"),
    (re.compile(r"\\approx\b"), lambda m: "~"),
    (re.compile(r"\\(?:[,;:!]|q?quad\b)"), lambda m: " "),
    (re.compile(r"\\([()\[\]])"), lambda m: " "),
    (re.compile(r"(?<![\w$])\${1,2}([^$\s][^$\n]{0,60})\${1,2}(?![\w$])"), lambda m: f" {m[1]} "),
    (re.compile(r" {2,}"), lambda m: " "),
    (re.compile(r"&(?:nbsp|#160);"), lambda m: " "),
    (re.compile(r"&[mn]dash;"), lambda m: "-"),
    (re.compile(r"&lt;"), lambda m: "<"),
    (re.compile(r"&gt;"), lambda m: ">"),
    (re.compile(rf"(?<!\d)(?<!\d[.,:]){_BOLD}|{_BOLD}(?![\d*_`~]|[.,:]\d)"), lambda m: ""),
    (re.compile(r"(?<![^\W_])(?<!\*)[*_](?=[^\W_])|(?<=[^\W_])[*_](?![\w*])"), lambda m: ""),
    (re.compile(r"<([bipsu])>(?=[^<]{0,200}</\1>)"), lambda m: " "),
    # Tags, but not the time tokens of the codes.
    (re.compile(r"<(?!t\d|TIME_)(?:/?[A-Za-z]\w{1,20}|\|\w{1,20}\||/[a-z])/?>"), lambda m: " "),
)


class Plain(NamedTuple):
    """An answer in plain form.

    Attributes:
        text: of the answer.
        place: for every character of `text`, and for its end, the place in the reply.
        unfinished: the reply ended while the model was thinking; `text` is then empty.
    """

    text: str
    place: list[int]
    unfinished: bool

    def end(self, place: int) -> int:
        """Where in the reply the character before a place of `text` ends."""
        return self.place[place - 1] + 1 if place else self.place[0]


class Part(NamedTuple):
    """Where the answer stands in a reply; see `Plain` for `unfinished`."""

    begin: int
    end: int
    unfinished: bool


def answer_part(reply: str) -> Part:
    """The answer of a reply, without what the model thought.

    It is what stands behind the last end of thinking (`</think>`, also where only the closing tag
    is there), and there what the last `<answer>` holds. A thinking that never ends has no answer.
    """
    begin, end = 0, len(reply)
    thinking = False
    for tag in _THINKS.finditer(reply):
        thinking = not re.search(r"/|end_of|final", tag[0], re.IGNORECASE)
        begin = tag.end()
    if thinking:
        return Part(end, end, True)
    tags = list(_ANSWERS.finditer(reply, begin))
    opened = [k for k, tag in enumerate(tags) if not _closes(tag)]
    if opened:
        k = opened[-1]
        begin = tags[k].end()
        end = tags[k + 1].start() if k + 1 < len(tags) else end
    elif tags:  # only the closing tag: the prompt opened it
        end = tags[-1].start()
        begin = tags[-2].end() if len(tags) > 1 else begin
    else:
        begin = _behind_reasons(reply, begin)
    return Part(begin, end, False)


def _behind_reasons(reply: str, begin: int) -> int:
    """Where the answer begins behind reasons that have a heading and no tags."""
    lines = list(_FINAL.finditer(reply, begin))
    if not lines and (reasoned := _REASONED.match(reply, begin)):
        pattern = _FENCE_END if "```" in reasoned[0] else _ANSWER_LINE
        lines = list(pattern.finditer(reply, reasoned.end()))
        lines = lines[:1] if "```" in reasoned[0] else lines
    return lines[-1].end() if lines else begin


def unfinished(reply: str) -> tuple[str, ...]:
    """A note on a reply that ended while the model was thinking."""
    return (_UNFINISHED,) * answer_part(reply).unfinished


def answer_text(reply: str) -> str:
    """The answer of a reply as it is written; "" for a thinking that never ends."""
    begin, end, _ = answer_part(reply)
    return reply[begin:end].strip() if end - begin < len(reply) else reply


def plain(reply: str) -> Plain:
    """The answer of a reply in plain form.

    Unicode forms of digits, letters, dashes, arrows and brackets become ASCII; fractions,
    superscripts and numbers in circles stay, since they are no digits of a number. Blanks are
    single, a new line stays one, and there is a blank between Chinese, Japanese or Korean and
    ASCII. Markdown's and LaTeX's dress and tags go; time tokens such as "<t12>" stay.
    """
    begin, end, unfinished = answer_part(reply)
    text: list[str] = []
    place: list[int] = []
    last, kind = "", 0  # the last character, and its kind: ASCII word 1, CJK 2, else 0
    for at in range(begin, end):
        for char in _form(reply[at]):
            if char.isspace():
                if last == "\n" or (last == " " and char != "\n"):
                    continue
                if last == " ":  # " \n" is "\n"
                    text.pop()
                    place.pop()
            now = _kind(char)
            if now and kind and now != kind:
                text.append(" ")
                place.append(at)
            text.append(char)
            place.append(at)
            last, kind = char, now
    place.append(end)
    found = Plain("".join(text), place, unfinished)
    for pattern, worth in _DRESS:
        found = _replaced(found, pattern, worth)
    return found


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag[1]) or tag[0].lower().startswith("<|end")


@cache
def _form(char: str) -> str:
    """The plain form of one character; "" for one that is not seen."""
    if char.isascii():
        return "\n" if char in "\n\r" else " " if char.isspace() else char
    if char in _PLAIN:
        return _PLAIN[char]
    if 0x1F150 <= ord(char) <= 0x1F189:  # white letters in black circles and squares
        return chr(ord("A") + (ord(char) - 0x1F150) % 32)
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in ("Cf", "Me") or "\ufe00" <= char <= "\ufe0f":
        return ""
    if category == "Zl" or category == "Zp":
        return "\n"
    if category == "Zs":
        return " "
    if category == "No":  # 1/2, superscripts: no digits of a number
        return char
    form = unicodedata.normalize("NFKC", char)
    # A letter in a circle or in brackets is a letter; no other form may bring digits.
    return char if any(c.isdigit() for c in form) else form


@cache
def _kind(char: str) -> int:
    if char.isascii():
        return 1 if char.isalnum() else 0
    return 2 if char >= "\u2e80" and char.isalpha() else 0


def _replaced(
    found: Plain, pattern: re.Pattern[str], worth: Callable[[re.Match[str]], str]
) -> Plain:
    """Pieces of a text replaced; what is left of a piece keeps its places."""
    pieces: list[str] = []
    place: list[int] = []
    last = 0
    for match in pattern.finditer(found.text):
        new = worth(match)
        pieces += (found.text[last : match.start()], new)
        place += found.place[last : match.start()]
        kept = match[1] if match.re.groups else ""
        if kept and kept in new:  # one mark, the kept words, one mark
            inner = found.place[match.start(1) : match.end(1)]
            lead = new.index(kept)
            place += [found.place[match.start()]] * lead + inner
            place += [found.place[match.end() - 1]] * (len(new) - lead - len(kept))
        else:
            place += [found.place[match.start()]] * len(new)
        last = match.end()
    if not last:
        return found
    pieces.append(found.text[last:])
    place += found.place[last:]
    return Plain("".join(pieces), place, found.unfinished)
