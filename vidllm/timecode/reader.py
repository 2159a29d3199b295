"""Times and time ranges in free text: "12.3 - 15 seconds", "from 0:12 to 0:15", "starts at 5 s".

The one reader of times in words. Text comes in plain form (`vidllm.timecode.reply.plain`), so that
thinking, dress and Unicode are gone before. Numbers are then read whole: a piece of a number, a
number with another unit, a count, a date, a score or a ratio is no time, and no range is made of
what is left of one. `vidllm.timecode` decides what a range, or none, means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .numbers import Number, is_length, read_numbers
from .reply import Plain, plain

_FIRST_WORD = re.compile(r"\s(?!and\b|then\b)[^\W\d]", re.IGNORECASE)

_MEASURE = re.compile(
    r"\b(?:scores?|temperature|price|count|number|value|speed|volume|size)\s(?:\w+\s){0,2}\Z",
    re.IGNORECASE,
)
# In the skeleton a time is one character, and what only looks like one another.
_T, _X = "\ue000", "\ue001"
_TO = (
    r"-+>?|=+>|~+|\.{2,}|\bto\b|\buntil\b|\btill\b|\bthrough\b|\bthru\b|\bup\sto\b|\bbis\b|\bhasta\b"
    r"|\u00e0|\bjusqu'\u00e0|\b\u0434\u043e\b|\u5230|\u81f3|\u304b\u3089|\uc5d0\uc11c|\ubd80\ud130"
)
_AT = (
    r"(?:\s?(?:\b(?:at|around|about|approximately|roughly|nearly|ca|t|the|second|seconds|time|mark"
    r"|is|was|timestamp)\b|[:=~]))*\s?"
)
_LEAD = (
    r"\b(?:from|between|von|zwischen|desde|entre|\u043e\u0442|\u0441)\b|\u4ece|\u5f9e|\u81ea|\u5728"
)
_JOINED = rf"\s?(?:{_TO}){_AT}"
_ALSO = r"\b(?:and|und|et|y|e)\b|\u548c|\u4e0e|\u8207"
_CHAIN = re.compile(
    rf"(?P<both>{_LEAD}){_AT}{_T}\s?(?:{_ALSO}){_AT}{_T}(?!{_JOINED}[{_T}{_X}])"
    rf"|(?:(?P<lead>{_LEAD}){_AT})?{_T}(?:{_JOINED}[{_T}{_X}])+"
    rf"|[\[({{|]\s?{_T}\s?[,;|]\s?{_T}\s?[\])}}|]"
    rf"|[\[({{]\s?{_T}{_JOINED}{_T}\s?[\])}}]",
    re.IGNORECASE,
)
_DRESSED = re.compile(
    rf"<\s?~?(?P<a>{_T})\s?>|\"\s?(?P<b>{_T})\s?\"|'\s?(?P<c>{_T})\s?'"
    rf"|\(\s?~?(?P<d>{_T})\s?\)|\[\s?(?P<e>{_T})\s?\]|\{{\s?(?P<f>{_T})\s?\}}"
)
_EDGES = re.compile(
    rf"\b(?P<start>(?:start|begin)\w*|from)\b|\b(?P<end>(?:end|finish|stop|until)\w*|to)\b"
    rf"|(?P<time>{_T})|(?P<odd>{_X})|(?P<cut>[{{}}])",
    re.IGNORECASE,
)
#: Words that may stand beside bare numbers which are times all the same.
_TIME_WORDS = frozenset(
    (
        *("s", "sec", "secs", "second", "seconds", "time", "times", "timestamp", "timestamps"),
        *("start", "starts", "starting", "begin", "begins", "end", "ends", "ending", "stop"),
        *("until", "from", "to", "and", "at", "in", "of", "the", "a", "an", "is", "it", "about"),
        *("around", "approximately", "event", "happens", "answer", "video"),
    )
)


class TextRange(NamedTuple):
    """Two times in seconds as written, and where the range stands in the text."""

    first: float
    last: float
    begin: int
    end: int


class TextPoint(NamedTuple):
    """One time in seconds as written, where it stands, and whether it is plainly a time.

    `said`: a clock, or with a unit. `plainly`: this, or with a decimal point.
    """

    seconds: float
    begin: int
    end: int
    said: bool
    plainly: bool


def read_time(text: str) -> float | None:
    """Seconds of one time ("12.3", "12 s", "1 min 20 s", "01:20", "1:02:03.5"), or None."""
    found = plain(text)
    numbers = list(read_numbers(found.text))
    if len(numbers) != 1 or numbers[0].seconds is None or numbers[0].seconds < 0:
        return None
    beside = found.text[: numbers[0].begin] + found.text[numbers[0].end :]
    return None if beside.strip(" \n\"'<>[]()~") else numbers[0].seconds


def find_ranges(text: str, *, loose: bool = True) -> list[TextRange]:
    """All ranges in a text, in order. The first way that finds any decides:

    1. an object with a start and an end, {"start": 5, "end": 9}; else
       joined times: "12 - 15.5 s", "from 0:12 to 0:15", "[12, 15]"; a joined third time
       ("5 - 9 - 12", a date) makes none of them a range;
    2. "starts at 5 s … ends at 9 s";
    and where `loose`
    3. pairs of stamps in angle brackets: "<12.3> <15.0>";
    4. exactly two times with a unit, a colon or a decimal point: "at 12.0 s, over by 15.5 s";
    5. exactly two bare numbers with no words but those about time: "12, 15".

    A range of bare whole numbers before a word ("2 - 3 people") is left out when the text also
    has ranges that are plainly times: with a unit, a clock, a decimal point or a "from".

    Returns:
        Seconds as written: not in order, not held in the video, below 0 where a sign says so.
    """
    found = _analysed(text)
    ranges = found.labelled(braced=True) or found.joined() or found.labelled()
    if not ranges and loose:
        ranges = found.stamped() or found.two()
    return [
        TextRange(first, last, found.plain.place[begin], found.plain.end(end))
        for first, last, begin, end in ranges
    ]


def find_times(text: str) -> list[TextPoint]:
    """All times of a text by themselves, in order; the ends of ranges are among them.

    Bare numbers are here too, as not plainly times; numbers that are something else are not.
    """
    found = _analysed(text)
    times = []
    for number in found.numbers:
        for seconds, begin, end in found.listed(number):
            if seconds >= 0:
                place, last = found.plain.place[begin], found.plain.end(end)
                said = number.plainly and number.kind != "point"
                times.append(TextPoint(seconds, place, last, said, number.plainly))
    return times


def lone_times(text: str) -> list[float]:
    """Times that stand by themselves, in order; bare numbers only where no other words are."""
    found = _analysed(text)
    return [seconds for seconds, _, _ in found.lone()]


@lru_cache(maxsize=8)
def _analysed(text: str) -> _Text:
    # Kept for a moment: readers ask for the ranges and the times of the same answer.
    return _Text.of(text)


class _Text(NamedTuple):
    """A plain text, its numbers, and its skeleton: each number one character in it."""

    plain: Plain
    numbers: list[Number]
    skeleton: str
    place: list[int]  # of every character of the skeleton in the plain text
    which: dict[int, int]  # the number at a place of the skeleton
    stamps: frozenset[int]  # numbers that stand in angle brackets

    @classmethod
    def of(cls, text: str) -> _Text:
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
            pieces.append(_X if number.seconds is None else _T)
            place.append(number.begin)
            last = number.end
        pieces.append(found.text[last:])
        place += range(last, len(found.text) + 1)
        skeleton = "".join(pieces)
        stamps: set[int] = set()
        for _ in range(2):  # dress around a single time goes, and the next one around it
            skeleton, place, which = _undressed(skeleton, place, which, stamps)
        return cls(found, numbers, skeleton, place, which, frozenset(stamps))

    @property
    def points(self) -> bool:
        """Whether the text has decimal points: its commas are then none."""
        return any(n.kind == "point" or "." in n.text for n in self.numbers)

    def joined(self) -> list[tuple[float, float, int, int]]:
        """Ranges whose ends are joined."""
        ranges, plainly, doubtful = [], [], []
        for found in _CHAIN.finditer(self.skeleton):
            at = [k for k in range(found.start(), found.end()) if k in self.which]
            if len(at) != 2:
                continue
            one, two = (self.numbers[self.which[k]] for k in at)
            lead = found["lead"] or found["both"]
            if lead and not (one.plainly or two.plainly) and self.measured(found.start()):
                continue
            pair = self.pair(one, two)
            if pair is None or self.spoilt(at[0], at[1]):
                continue
            begin = self.place[found.start()]
            if lead is None and self.skeleton[found.start()] == _T:
                begin = one.begin
            end = two.end if found.end() == at[1] + 1 else self.place[found.end() - 1] + 1
            ranges.append((*pair, begin, end))
            plainly.append(bool(lead) or one.plainly or two.plainly)
            bare = not plainly[-1]
            doubtful.append(bare and bool(_FIRST_WORD.match(self.plain.text, two.end)))
        if any(plainly):
            ranges = [found for found, odd in zip(ranges, doubtful, strict=True) if not odd]
        return ranges

    def measured(self, at: int) -> bool:
        """Whether "from 3 to 5" at a place of the skeleton is what a score or a speed does."""
        return _MEASURE.search(self.skeleton[max(0, at - 40) : at]) is not None

    def spoilt(self, first: int, last: int) -> bool:
        """Whether a number beside a range is a piece of one of its ends: nothing between them."""
        return self.touched(first, -1) or self.touched(last, 1)

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

    def pair(self, one: Number, two: Number) -> tuple[float, float] | None:
        """Seconds of the ends of a range; None where they do not go together."""
        if one.seconds is None or two.seconds is None or two.seconds < 0:
            return None
        if "comma" in (one.kind, two.kind) and self.points:
            return None
        first, last = one.seconds, two.seconds
        if two.text[0] == "0" and 1900 <= first <= 2100 and one.kind == two.kind == "bare":
            return None  # "2024-05"
        single = two.kind == "unit" and two.scale != 1
        if one.kind in ("bare", "point", "comma") and one.scale == 1 and single:
            first *= two.scale  # "1 to 2 minutes": the first number borrows the unit
        if one.kind == "unit" and one.scale != 1 and two.kind in ("bare", "point", "comma"):
            return None  # "1 min - 20"
        if one.kind == "clock" and two.kind == "bare" and last < first:
            return None  # "1:05 - 20"
        return first, last

    def labelled(self, *, braced: bool = False) -> list[tuple[float, float, int, int]]:
        """ "starts at A … ends at B", also as JSON and the other way round within braces."""
        ranges: list[tuple[float, float, int, int]] = []
        label, since = "", -1
        held: dict[str, tuple[float, int, int, int]] = {}
        if braced and "{" not in self.skeleton:
            return []
        inside = False
        for mark in _EDGES.finditer(self.skeleton):
            if mark["cut"]:
                held, label, inside = {}, "", mark[0] == "{"
            elif braced and not inside:
                continue
            elif mark["odd"]:
                label = ""
            elif mark["time"]:
                number = self.numbers[self.which[mark.start()]]
                if not label or mark.start() - since > 40 or number.seconds is None:
                    label = ""
                    continue
                if label == "end" and "start" not in held and not inside:
                    label = ""
                    continue
                if label == "start" and "start" in held and "end" not in held:
                    held = {}
                if label == "end" and "start" in held and since - held["start"][3] > 82:
                    held, label = {}, ""
                    continue
                held[label] = (number.seconds, number.begin, number.end, mark.start())
                label = ""
                if len(held) == 2:
                    one, two = held["start"], held["end"]
                    if two[0] >= 0:
                        edges = sorted((one[1], one[2], two[1], two[2]))
                        ranges.append((one[0], two[0], edges[0], edges[-1]))
                    held = {}
            else:
                word = "start" if mark["start"] else "end"
                bare = mark[0].lower() in ("from", "to")
                if bare and self.skeleton[mark.end() : mark.end() + 1] != '"':
                    continue  # "from" and "to" are labels as keys only
                label, since = word, mark.end()
        return ranges

    def stamped(self) -> list[tuple[float, float, int, int]]:
        """Stamps in angle brackets, two by two."""
        found = [self.numbers[k] for k in sorted(self.stamps)]
        return [
            (one.seconds or 0.0, two.seconds or 0.0, one.begin, two.end)
            for one, two in zip(found[::2], found[1::2], strict=False)
        ]

    def two(self) -> list[tuple[float, float, int, int]]:
        """A text with exactly two times by themselves."""
        found = self.lone()
        if len(found) != 2:
            return []
        places = {begin for _, begin, _ in found}
        kinds = set()
        for at, k in self.which.items():
            number = self.numbers[k]
            if number.begin in places:
                kinds.add(number.kind)
                beside = self.touched(at, 1) or self.touched(at, -1)
                if number.plainly and beside and len(self.numbers) > 2:
                    return []
            elif number.seconds is None and number.kind in ("clock", "unit", "units"):
                return []
        known = [number for number in self.numbers if number.seconds is not None]
        if len(known) == 2 and self.pair(known[0], known[1]) is None:
            return []
        if kinds == {"point"} and len(known) > 2:  # "[5, 9, 0.8], [12, 15, 0.5]"
            return []
        (first, begin, _), (last, _, end) = found
        return [(first, last, begin, end)]

    def lone(self) -> list[tuple[float, int, int]]:
        """Times by themselves with their places; see `lone_times`."""
        known = [n for n in self.numbers if n.seconds is not None and n.seconds >= 0]
        said = self.plain.text
        plainly = [n for n in known if n.plainly and not is_length(said, n)]
        if plainly:
            return [(n.seconds or 0.0, n.begin, n.end) for n in plainly]
        words = set(re.findall(r"[^\W\d_]+", self.plain.text.lower()))
        if len(known) == len(self.numbers) and words <= _TIME_WORDS:
            return [time for n in known for time in self.listed(n)]
        return []

    def listed(self, number: Number) -> Iterator[tuple[float, int, int]]:
        """A number's times: two for "2,4", which is a list where its comma is no decimal one."""
        if number.seconds is None:
            return
        if number.kind == "comma" and number.after:
            one, two = number.text.split(",")
            yield float(one), number.begin, number.after - 1
            yield float(two), number.after, number.end
        else:
            yield number.seconds, number.begin, number.end


def _undressed(
    skeleton: str, place: list[int], which: dict[int, int], stamps: set[int]
) -> tuple[str, list[int], dict[int, int]]:
    """A skeleton whose dressed times stand alone; numbers in angle brackets go to `stamps`."""
    pieces: list[str] = []
    places: list[int] = []
    last = 0
    for mark in _DRESSED.finditer(skeleton):
        at = mark.start(str(mark.lastgroup))
        if mark[0].startswith("<"):
            stamps.add(which[at])
        pieces += (skeleton[last : mark.start()], _T)
        places += [*place[last : mark.start()], place[at]]
        last = mark.end()
    if not last:
        return skeleton, place, which
    number = {place[at]: k for at, k in which.items()}
    places += place[last:]
    moved = {at: number[p] for at, p in enumerate(places[:-1]) if p in number}
    return "".join(pieces) + skeleton[last:], places, moved
