"""Times and time ranges in free text: "12.3 - 15 seconds", "from 0:12 to 0:15", "starts at 5 s".

The one reader of times in words. Text comes in plain form (`vidllm.timecode.reply.plain`), so that
thinking, dress and Unicode are gone before. Numbers are then read whole: a piece of a number, a
number with another unit, a count, a date, a score or a ratio is no time, and no range is made of
what is left of one. `vidllm.timecode` decides what a range, or none, means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .joints import WEAK
from .labels import END, START, seconds_each
from .numbers import Number, is_length, list_markers, read_numbers
from .refusals import Refusals
from .reply import plain
from .skeleton import CHAIN, FIRST_WORD, OTHER, TIME, Skeleton
from .tables import has_header, table_ranges

_MEASURE = re.compile(
    r"\b(?:scores?|temperature|price|count|number|value|speed|volume|size)\s(?:\w+\s){0,2}\Z",
    re.IGNORECASE,
)
_EDGES = re.compile(
    rf"\b(?P<start>(?:{START})\w*(?:\s?\([^()\n]{{1,12}}\))?|from)(?!\w)"
    rf"|\b(?P<end>(?:{END})\w*(?:\s?\([^()\n]{{1,12}}\))?|to)(?!\w)"
    rf"|(?P<time>{TIME})|(?P<odd>{OTHER})|(?P<cut>[{{}}])",
    re.IGNORECASE,
)
#: Words before a range that make it a length; behind one, see `numbers.is_length`.
_LASTING = re.compile(
    r"\b(?:for|lasts?|lasting|lasted|takes?|took|every|duration\sof)"
    r"(?:\s(?:about|around|exactly|only|just|roughly|approximately|between))*\s?\Z",
    re.IGNORECASE,
)
_LONG = re.compile(r"\s?(?:long|later|apart|ago|in\slength|in\sduration|each)\b", re.IGNORECASE)
_UNIT_ELSE = re.compile(r"\bunits?[\"']?\s?[:=]\s?[\"']?(?:frame|percent|%|frac|ratio|norm)", re.I)
_SHARE = re.compile(
    r"\s?of\s(?:the|its|this)\s(?:total\s|whole\s)?(?:video|clip|duration|length|footage)\b",
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
    ranges = table_ranges(found.plain.text, found.numbers) or found.labelled(braced=True)
    ranges = ranges or found.joined() or found.labelled()
    if not ranges and loose:
        ranges = found.stamped() or found.two()
    refused = Refusals(found.plain.text)
    ranges = [spot for spot in ranges if not refused.covers(spot[2], spot[3])]
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


def named_times(text: str) -> list[TextPoint]:
    """The times that a text names as such, in order: clocks, with a unit, or ends of a range."""
    ranges = [(found.begin, found.end) for found in find_ranges(text)]
    named, at = [], 0
    for time in find_times(text):
        while at < len(ranges) and ranges[at][1] < time.end:
            at += 1
        if time.said or (at < len(ranges) and ranges[at][0] <= time.begin):
            named.append(time)
    return named


def lone_times(text: str) -> list[float]:
    """Times that stand by themselves, in order; bare numbers only where no other words are."""
    found = _analysed(text)
    return [seconds for seconds, _, _ in found.lone()]


@lru_cache(maxsize=8)
def _analysed(text: str) -> _Text:
    # Kept for a moment: readers ask for the ranges and the times of the same answer.
    return _Text.of(text)


class _Text(Skeleton):
    """What may be read of a text."""

    def joined(self) -> list[tuple[float, float, int, int]]:
        """Ranges whose ends are joined."""
        ranges, plainly, doubtful = [], [], []
        headed = has_header(self.plain.text)
        for found in CHAIN.finditer(self.skeleton):
            at = [k for k in range(found.start(), found.end()) if k in self.which]
            if len(at) != 2 or (headed and found["cells"]):
                continue
            one, two = (self.numbers[self.which[k]] for k in at)
            lead = found["lead"] or found["both"]
            pair = self.pair(one, two)
            if pair is None or self.spoilt(at[0], at[1]):
                continue
            if not self.is_range(found, at, pair):
                continue
            begin = self.place[found.start()]
            if lead is None and self.skeleton[found.start()] == TIME:
                begin = one.begin
            end = two.end if found.end() == at[1] + 1 else self.place[found.end() - 1] + 1
            ranges.append((*pair, begin, end))
            plainly.append(bool(lead) or one.plainly or two.plainly)
            bare = not plainly[-1]
            doubtful.append(bare and bool(FIRST_WORD.match(self.plain.text, two.end)))
        if any(plainly):
            ranges = [found for found, odd in zip(ranges, doubtful, strict=True) if not odd]
        return ranges

    def is_range(self, found: re.Match[str], at: Sequence[int], pair: tuple[float, float]) -> bool:
        """Whether two joined times are a stretch: no score, years, length, share or measure."""
        one, two = (self.numbers[self.which[k]] for k in at)
        lead = found["lead"] or found["both"]
        said = any(n.kind in ("clock", "unit", "units") for n in (one, two))
        dashed = found[0][0] == TIME
        joint = self.skeleton[at[0] + 1 : at[1]]
        if joint.strip().lower() in WEAK and not (lead or said):
            return False
        if not lead or lead.lower() == "between":
            length = _LASTING.search(self.skeleton[max(0, found.start() - 40) : found.start()])
            if said and (length or (not lead and _LONG.match(self.plain.text, two.end))):
                return False
        if said:
            return True
        if self.measured(found.start()):
            return False
        if max(pair) <= 1 and _SHARE.match(self.plain.text, two.end):
            return False
        if one.kind != "bare" or two.kind != "bare":
            return True
        if (dashed or lead) and all(1900 <= time <= 2100 for time in pair):
            return False  # years
        if lead and lead.lower() not in ("from", "between"):
            return not FIRST_WORD.match(self.plain.text, two.end)
        if dashed and pair[0] > pair[1]:  # "3-0" is a score
            return " " in joint and self.only_time_words()
        return True

    def only_time_words(self) -> bool:
        words = set(re.findall(r"[^\W\d_]+", self.plain.text.lower()))
        return words <= _TIME_WORDS

    def measured(self, at: int) -> bool:
        """Whether "from 3 to 5" at a place of the skeleton is what a score or a speed does."""
        return _MEASURE.search(self.skeleton[max(0, at - 40) : at]) is not None

    def spoilt(self, first: int, last: int) -> bool:
        """Whether a number beside a range is a piece of one of its ends: nothing between them."""
        return self.touched(first, -1) or self.touched(last, 1)

    def pair(self, one: Number, two: Number) -> tuple[float, float] | None:
        """Seconds of the ends of a range; None where they do not go together."""
        if one.seconds is None or two.seconds is None or two.seconds < 0:
            return None
        if " " in one.text + two.text and one.seconds > two.seconds:
            return None  # no thousands: "event 1 200 s - 300 s"
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
        label, since, said, each = "", -1, 0, 1.0
        held: dict[str, tuple[float, int, int, int]] = {}
        if braced and "{" not in self.skeleton:
            return []
        inside = False
        if _UNIT_ELSE.search(self.plain.text):
            return []
        for mark in _EDGES.finditer(self.skeleton):
            if mark["cut"]:
                held, label, inside = {}, "", mark[0] == "{"
            elif braced and not inside:
                continue
            elif mark["odd"]:
                label = ""
            elif mark["time"]:
                number = self.numbers[self.which[mark.start()]]
                seconds = number.seconds
                if not label or mark.start() - since > 40 or seconds is None:
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
                apart = _LONG.match(self.plain.text, number.end)  # "ends 4 seconds later"
                if apart or self.touched(mark.start(), 1) or self.touched(mark.start(), -1):
                    held, label = {}, ""
                    continue
                seconds *= each if number.kind in ("bare", "point", "comma") else 1.0
                held[label] = (seconds, said, number.end, mark.start())
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
                each = seconds_each(mark[0]) or 0.0
                label, since = word if each else "", mark.end()
                said = self.place[mark.start()]
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
        said = self.plain.text
        if len(found) != 2 or len(list_markers(said)) > 1 or _UNIT_ELSE.search(said):
            return []
        places = {begin for _, begin, _ in found}
        spots = sorted(at for at, k in self.which.items() if self.numbers[k].begin in places)
        if any(m.start() <= at < m.end() for m in CHAIN.finditer(self.skeleton) for at in spots):
            return []  # joined, but no range: "12-13 s to 15-16 s", years
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
        if last < first and kinds == {"bare"}:
            return []
        return [(first, last, begin, end)]

    def lone(self) -> list[tuple[float, int, int]]:
        """Times by themselves with their places; see `lone_times`."""
        known = [n for n in self.numbers if n.seconds is not None and n.seconds >= 0]
        said = self.plain.text
        plainly = [n for n in known if n.plainly and not is_length(said, n)]
        if plainly:
            return [(n.seconds or 0.0, n.begin, n.end) for n in plainly]
        if len(known) == len(self.numbers) and self.only_time_words():
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
