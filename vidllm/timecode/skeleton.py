"""A plain text with each number as one character, in which ranges can be looked for.

Dress around single times is gone in it, and numbers that a blank broke in two are no times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from .joints import ALSO, AMID, AT, BOTH, LEAD, SINCE, TO, UNTIL, WITH
from .labels import END, START
from .numbers import Number, read_numbers
from .reply import Plain, plain

# In the skeleton a time is one character, and what only looks like one another.
TIME, OTHER = "\ue000", "\ue001"
_JOINED = rf"{SINCE}\s?(?:{TO}){AT}"
CHAIN = re.compile(
    rf"(?P<both>{BOTH}){AT}{TIME}\s?(?:{ALSO}){AT}{TIME}(?!{_JOINED}[{TIME}{OTHER}]){UNTIL}"
    rf"|(?:(?P<lead>{LEAD}){AT})?{TIME}(?:{_JOINED}[{TIME}{OTHER}])+{UNTIL}"
    rf"|{TIME}\s?{WITH}\s?{TIME}\s?{AMID}"
    rf"|[\[({{]\s?{TIME}\s?[,;|]\s?{TIME}\s?[\])}}]"
    rf"|(?P<cells>(?<![{TIME}{OTHER}])(?<![{TIME}{OTHER}]\s)\|\s?{TIME}\s?\|\s?{TIME}\s?\|)(?!\s?[{TIME}{OTHER}]\s?\|)"
    rf"|[\[({{]\s?{TIME}{_JOINED}{TIME}\s?[\])}}]",
    re.IGNORECASE,
)
_DRESSED = re.compile(
    rf"<\s?~?(?P<a>{TIME})\s?>|\"\s?(?P<b>{TIME})\s?\"|'\s?(?P<c>{TIME})\s?'"
    rf"|\(\s?~?(?P<d>{TIME})\s?\)|\[\s?(?P<e>{TIME})\s?\]|\{{\s?(?P<f>{TIME})\s?\}}"
)
FIRST_WORD = re.compile(r"\s(?!and\b|then\b)[^\W\d]", re.IGNORECASE)
#: A decimal point, comma or colon with a blank beside it may have broken one number in two.
_BREAK = re.compile(r"\s?[.,:]\s|\s[.,:]")
_OR = re.compile(r"\s?(?:or|oder|ou)\s?", re.IGNORECASE)
_GOES_ON = re.compile(rf"\s?(?:{TO}|{ALSO})", re.IGNORECASE)
_LABELLED = re.compile(
    rf"\b(?:{START}|{END})\w*[\"'\s:=]{{0,4}}(?:at|is|time)?[\"'\s:=]{{0,3}}\Z", re.IGNORECASE
)

_Read = TypeVar("_Read", bound="Skeleton")


class Skeleton(NamedTuple):
    """A plain text, its numbers, and its skeleton: each number one character in it."""

    plain: Plain
    numbers: list[Number]
    skeleton: str
    place: list[int]  # of every character of the skeleton in the plain text
    which: dict[int, int]  # the number at a place of the skeleton
    stamps: frozenset[int]  # numbers that stand in angle brackets

    @classmethod
    def of(cls: type[_Read], text: str) -> _Read:
        found = plain(text)
        numbers = list(read_numbers(found.text))
        place: list[int] = []
        pieces: list[str] = []
        last = 0
        which: dict[int, int] = {}
        for k, number in enumerate(numbers):
            pieces.append(found.text[last : number.begin])
            place += range(last, number.begin)
            which[len(place)] = k
            pieces.append(OTHER if number.seconds is None else TIME)
            place.append(number.begin)
            last = number.end
        pieces.append(found.text[last:])
        place += range(last, len(found.text) + 1)
        skeleton = "".join(pieces)
        stamps: set[int] = set()
        for _ in range(2):  # dress around a single time goes, and the next one around it
            skeleton, place, which = _undressed(skeleton, place, which, stamps, numbers)
        made = cls(found, numbers, skeleton, place, which, frozenset(stamps))
        broken = made.broken()
        for at in broken:
            numbers[which[at]] = numbers[which[at]]._replace(seconds=None)
        marked = "".join(OTHER if at in broken else sign for at, sign in enumerate(skeleton))
        return made._replace(skeleton=marked)

    def broken(self) -> set[int]:
        """Places of numbers that a blank broke in two: "12. 5 - 15. 0", "0: 12 - 0: 15".

        Between two ranges, before a word or in a longer list the mark is what it seems.
        """
        chains = [
            [at for at in range(*found.span()) if at in self.which]
            for found in CHAIN.finditer(self.skeleton)
        ]
        starts, ends = {at[0] for at in chains if at}, {at[-1] for at in chains if at}
        ats = sorted(self.which)
        marks = [self.skeleton[a + 1 : b] for a, b in pairwise(ats)]
        broken: set[int] = set()
        for k, (a, b) in enumerate(pairwise(ats)):
            one, two = self.numbers[self.which[a]], self.numbers[self.which[b]]
            if _OR.fullmatch(marks[k]) and (a in ends) != (b in starts):
                broken |= {a, b}  # "12 or 13 to 15 s"
            if not _BREAK.fullmatch(marks[k]) or (a in ends and b in starts):
                continue
            whole = two.kind in ("bare", "unit") and two.text.isdigit()
            open_end = one.kind == "bare" or (one.kind == "clock" and "." not in one.text)
            if one.seconds is None or two.seconds is None or not (whole and open_end):
                continue
            mark = marks[k].strip()
            word = FIRST_WORD.match(self.plain.text, two.end)
            if word and b not in starts and not _GOES_ON.match(self.plain.text, two.end):
                continue
            if mark != ":" and self.plain.text[two.end : two.end + 1] == ":":
                continue  # "5-9, 2: 12-15"
            around = marks[max(0, k - 1) : k] + marks[k + 1 : k + 2]
            if mark == "," and any(near.strip() == "," for near in around):
                continue  # a list
            if mark == ",":
                lone = a not in ends and b not in starts
                label = _LABELLED.search(self.skeleton[max(0, a - 24) : a])
                if lone and not label:
                    continue
            if mark == ":" and (b in starts or not re.fullmatch(r"[0-5]\d", two.text)):
                continue  # "1: 5-9", a line that is counted
            broken |= {a, b}
        return broken

    @property
    def points(self) -> bool:
        """Whether the text has decimal points: its commas are then none."""
        return any(n.kind == "point" or "." in n.text for n in self.numbers)

    def touched(self, at: int, way: int) -> bool:
        k = at + way
        while self.skeleton[k : k + 1] == " " and k > 0:
            k += way
        if k not in self.which:
            return False
        beside, this = self.numbers[self.which[k]], self.numbers[self.which[at]]
        one, two = (this, beside) if way > 0 else (beside, this)
        small = two.kind in ("bare", "point", "comma") and two.seconds is not None
        if one.kind in ("unit", "units"):  # "1 min 20"
            return one.scale >= 60 and (small or two.scale < one.scale)
        split = one.kind == "bare" and two.kind == "unit"  # "1 000 s"
        return abs(k - at) == 1 or (one.kind in ("bare", "point") and small) or split


def _undressed(
    skeleton: str,
    place: list[int],
    which: dict[int, int],
    stamps: set[int],
    numbers: Sequence[Number],
) -> tuple[str, list[int], dict[int, int]]:
    """A skeleton whose dressed times stand alone; numbers in angle brackets go to `stamps`."""
    pieces: list[str] = []
    places: list[int] = []
    last = 0
    for mark in _DRESSED.finditer(skeleton):
        at = mark.start(str(mark.lastgroup))
        if mark[0].startswith("<"):
            stamps.add(which[at])
        before = skeleton[last : mark.start()]
        again = before.rstrip() if mark["d"] else ""
        if again.endswith(TIME) and _alike(numbers, which, last + len(again) - 1, at):
            pieces.append(again)  # the same time in another form: "12.5 s (0:12)"
            places += place[last : last + len(again)]
            last = mark.end()
            continue
        pieces += (before, TIME)
        places += [*place[last : mark.start()], place[at]]
        last = mark.end()
    if not last:
        return skeleton, place, which
    number = {place[at]: k for at, k in which.items()}
    places += place[last:]
    moved = {at: number[p] for at, p in enumerate(places[:-1]) if p in number}
    return "".join(pieces) + skeleton[last:], places, moved


def _alike(numbers: Sequence[Number], which: dict[int, int], one: int, two: int) -> bool:
    first, second = numbers[which[one]].seconds, numbers[which[two]].seconds
    return first is not None and second is not None and abs(first - second) < 1
