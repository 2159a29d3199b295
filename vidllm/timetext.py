"""Times and time ranges in free text: "12.3 - 15 seconds", "from 0:12 to 0:15", "starts at 5 s".

The one reader of times in words. Text comes in plain form (`vidllm.answertext.plain`), so that
thinking, dress and Unicode are gone before. Numbers are then read whole: a piece of a number, a
number with another unit, a count, a date, a score or a ratio is no time, and no range is made of
what is left of one. `vidllm.timecode` decides what a range, or none, means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vidllm.answertext import Plain, plain

_HOUR = r"hours?|hrs?\.?|h|stunden?|std\.?|heures?|horas?|\u043c?\u0447\u0430\u0441\w{0,2}|\u0447"
_MINUTE = (
    r"minutes?|mins?\.?|m|minuten?|minutos?|minuti?"
    r"|\u043c\u0438\u043d\u0443\u0442\w?|\u043c\u0438\u043d\.?"
)
_SECOND = (
    r"seconds?|secs?\.?|s|sekunden?|sek\.?|secondes?|segundos?|seg\.?|second[oi]"
    r"|\u0441\u0435\u043a\u0443\u043d\u0434\w?|\u0441\u0435\u043a\.?|\u0441"
)
_MILLI = r"milliseconds?|millis|msecs?|ms"
# Chinese, Japanese and Korean units need no end of a word.
_WIDE = {
    3600.0: "\u5c0f\u6642|\u5c0f\u65f6|\u6642\u9593|\u65f6|\u6642|\uc2dc\uac04",
    60.0: "\u5206\u949f|\u5206\u9418|\u5206\u9593|\u5206|\ubd84",
    1.0: "\u79d2\u949f|\u79d2\u9418|\u79d2\u9593|\u79d2|\ucd08",
    0.001: "\u6beb\u79d2|\u30df\u30ea\u79d2|\ubc00\ub9ac\ucd08",
}
_UNITS = {3600.0: _HOUR, 60.0: _MINUTE, 1.0: _SECOND, 0.001: _MILLI}
# A unit may be tied to its number ("the 12-second mark"), but then in full.
_UNIT = re.compile(
    r"\s?(?:-(?=(?:hour|minute|second)s?\b))?(?:"
    + "|".join(
        rf"(?P<{name}>(?:{_UNITS[scale]})(?![^\W\d_])|{_WIDE[scale]})"
        for name, scale in (("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0))
    )
    + ")",
    re.IGNORECASE,
)
_SCALE = {"ms": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}
_BLOB = re.compile(r"\d+(?:[.,:]\d+)*|(?<![.\d])\.\d+")
_CLOCK = re.compile(r"(?:\d+:\d{1,2}|\d{1,3}):\d{2}(?:\.\d+)?")
_PLAIN_NUMBER = re.compile(r"\d*\.?\d+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+\.\d+|\d{1,3}(?:,\d{3}){2,}")
_THOUSANDS_DOTS = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}")
_COMMA = re.compile(r"\d+,\d+")
_AND = re.compile(r"(?:,?\s?(?:and\s)?)(?=[\d.])", re.IGNORECASE)
#: What a number may not stand directly before: it is a piece of something else, or has a unit.
_GLUED = re.compile(
    r"[^\W\d_\u2e80-\uffff]|_|\s?[%\u2030\u00b0^*\u20ac\u00a3\u00a5]|\s?/\s?\d|/|\d|\.\d"
    r"|-(?!(?:to|until|till)\b)[^\W\d_]"
    r"|\s?-?(?:percent|fps|hz|khz|kg|g|km|cm|mm|meters?|metres?|miles?|feet|foot|ft|inch(?:es)?|px"
    r"|pixels?|dollars?|euros?|degrees?|points?|frames?|tokens?|times|years?|days?|weeks?|months?"
    r"|people|persons?|m[ea]n|women|woman|boys?|girls?|kids?|child|children|players?|dogs?|cats?"
    r"|cars?|balls?|birds?|horses?|steps?|items?|objects?|shots?|clips?|scenes?|moments?|events?"
    r"|highlights?|parts?|pieces?|goals?|rounds?|laps?|cups?|eggs?|slices?|others|more|of\s(?:them|"
    r"the\s(?:people|men|women|players))|out\sof|am|pm|a\.m|p\.m|o'clock"
    r"|jan(?:uary)?|feb(?:ruary)?|march|april|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b"
    r"|\s?(?:\u4eba|\u4e2a|\u500b|\u53ea|\u5e27|\u5e40|\u6b21|\u5e74|\u6708|\u65e5|\uba85|\uac1c)",
    re.IGNORECASE,
)
#: What a number may not stand directly behind.
_NAMED = re.compile(
    r"(?:[^\W\d_\u2e80-\uffff]|_|[/#$\u20ac\u00a3\u00a5^*&@\u00b0\\]|\d\s?/\s?"
    r"|\b(?:version|ver|v|score|scores|scored|scoring|ratio|aspect|frames?|pages?|pp?|chapters?|fig"
    r"|figures?|no|number|option|scene|shot|clip|room|level|season|episode|years?|channel|camera"
    r"|players?|step|event|segment|moment|highlight|part|caption|ages?|aged|win|won|lost|lead|led"
    r"|jan(?:uary)?|feb(?:ruary)?|march|april|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?|copyright)"
    r"(?:\s(?:is|was|of|by|the|final))*[.:#\"]?\s?\(?"
    r"|\u7b2c\s?)\Z",
    re.IGNORECASE,
)
#: Words before or behind a time that make it a length.
_FOR = re.compile(
    r"\b(?:for|lasts?|lasting|lasted|duration|takes?|took|within|every|per|of|length|total|in)"
    r"(?:\s(?:is|of|about|around|exactly|the|a|only|just))*[\":=]*\s?\Z",
    re.IGNORECASE,
)
_LONG = re.compile(
    r"\s?(?:-|\b)?(?:long|later|in\slength|duration|of\s|apart|ago)\b", re.IGNORECASE
)
_FIRST_WORD = re.compile(r"\s(?!and\b|then\b)[^\W\d]", re.IGNORECASE)

# In the skeleton a time is one character, and what only looks like one another.
_T, _X = "\ue000", "\ue001"
_TO = (
    r"-+>?|=+>|~+|\.{2,}|\bto\b|\buntil\b|\btill\b|\bthrough\b|\bthru\b|\bup\sto\b|\bbis\b|\bhasta\b"
    r"|\u00e0|\bjusqu'\u00e0|\b\u0434\u043e\b|\u5230|\u81f3|\u304b\u3089|\uc5d0\uc11c|\ubd80\ud130"
)
_AT = (
    r"(?:\s?(?:\b(?:at|around|about|approximately|roughly|nearly|ca|the|second|seconds|time|mark"
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
    rf"(?P<stamp><)\s?~?(?P<a>{_T})\s?>|\"\s?(?P<b>{_T})\s?\"|'\s?(?P<c>{_T})\s?'"
    rf"|\(\s?~?(?P<d>{_T})\s?\)|\[\s?(?P<e>{_T})\s?\]|\{{\s?(?P<f>{_T})\s?\}}"
)
_EDGES = re.compile(
    rf"\b(?P<start>(?:start|begin)\w*|from)\b|\b(?P<end>(?:end|finish|stop|until)\w*|to)\b"
    rf"|(?P<time>{_T})|(?P<odd>{_X})|(?P<cut>[{{}}])",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:^|(?<=\n))\s?(\d{1,3})[.)](?=\s\S)")
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


class _Number(NamedTuple):
    """A number in plain text: what it may mean as a time, None where it is none."""

    begin: int
    end: int
    seconds: float | None
    kind: str = "bare"  # bare, point, comma, clock, unit, units
    scale: float = 1.0
    text: str = ""
    after: int = 0  # the second number of "12,15" read as a list begins here
    length: bool = False

    @property
    def plainly(self) -> bool:
        return self.kind in ("point", "clock", "unit", "units")


def read_time(text: str) -> float | None:
    """Seconds of one time ("12.3", "12 s", "1 min 20 s", "01:20", "1:02:03.5"), or None."""
    found = plain(text)
    numbers = list(_numbers(found.text))
    if len(numbers) != 1 or numbers[0].seconds is None or numbers[0].seconds < 0:
        return None
    beside = found.text[: numbers[0].begin] + found.text[numbers[0].end :]
    return None if beside.strip(" \n\"'<>[]()~") else numbers[0].seconds


def find_ranges(text: str, *, loose: bool = True) -> list[TextRange]:
    """All ranges in a text, in order. The first way that finds any decides:

    1. joined times: "12 - 15.5 s", "from 0:12 to 0:15", "[12, 15]"; a joined third time
       ("5 - 9 - 12", a date) makes none of them a range;
    2. "starts at 5 s … ends at 9 s", {"start": 5, "end": 9};
    and where `loose`
    3. pairs of stamps in angle brackets: "<12.3> <15.0>";
    4. exactly two times with a unit, a colon or a decimal point: "at 12.0 s, over by 15.5 s";
    5. exactly two bare numbers with no words but those about time: "12, 15".

    A range of bare whole numbers before a word ("2 - 3 people") is left out when the text also
    has ranges that are plainly times: with a unit, a clock, a decimal point or a "from".

    Returns:
        Seconds as written: not in order, not held in the video, below 0 where a sign says so.
    """
    found = _Text.of(text)
    ranges = found.joined() or found.labelled()
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
    found = _Text.of(text)
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
    found = _Text.of(text)
    return [seconds for seconds, _, _ in found.lone()]


class _Text(NamedTuple):
    """A plain text, its numbers, and its skeleton: each number one character in it."""

    plain: Plain
    numbers: list[_Number]
    skeleton: str
    place: list[int]  # of every character of the skeleton in the plain text
    which: dict[int, int]  # the number at a place of the skeleton
    stamps: frozenset[int]  # numbers that stand in angle brackets

    @classmethod
    def of(cls, text: str) -> _Text:
        found = plain(text)
        numbers = list(_numbers(found.text))
        skeleton, place = "", []
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
        stamps = set()
        # Dress around a single time goes, all of it standing for the time.
        for _ in range(2):
            dressed = list(_DRESSED.finditer(skeleton))
            if not dressed:
                break
            pieces, places, moved, last = [], [], {}, 0
            for mark in dressed:
                at = mark.start(mark.lastgroup or 0)
                at = next(mark.start(name) for name in "abcdef" if mark[name] is not None)
                if mark["stamp"]:
                    stamps.add(which[at])
                pieces.append(skeleton[last : mark.start()])
                for old in range(last, mark.start()):
                    if old in which:
                        moved[len(places) + old - last] = which[old]
                places += place[last : mark.start()]
                moved[len(places)] = which[at]
                pieces.append(_T)
                places.append(place[at])
                last = mark.end()
            for old in range(last, len(skeleton)):
                if old in which:
                    moved[len(places) + old - last] = which[old]
            pieces.append(skeleton[last:])
            places += place[last:]
            skeleton, place, which = "".join(pieces), places, moved
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
            lead = found["lead"] or found["both"]
            one, two = (self.numbers[self.which[k]] for k in at)
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
        if not ranges:
            ranges = self.comma()
        return ranges

    def spoilt(self, first: int, last: int) -> bool:
        """Whether another number touches a range with nothing between: a piece of something."""
        before, behind = (
            self.skeleton[max(0, first - 2) : first],
            self.skeleton[last + 1 : last + 3],
        )
        return bool(
            (re.search(rf"[{_T}{_X}][\s,.:]?$", before) and self.touches(first, -1))
            or (re.match(rf"[{_X}{_T}]|\s[{_T}{_X}](?!\s?[-\w])", behind) and self.touches(last, 1))
        )

    def touches(self, at: int, way: int) -> bool:
        k = at + way
        while 0 <= k < len(self.skeleton) and self.skeleton[k] in " ":
            k += way
        if k not in self.which:
            return False
        beside, this = self.numbers[self.which[k]], self.numbers[self.which[at]]
        one, two = (this, beside) if way > 0 else (beside, this)
        return one.kind in ("unit", "units") and one.scale >= 60 and two.kind in ("bare", "point")

    def pair(self, one: _Number, two: _Number) -> tuple[float, float] | None:
        """Seconds of the ends of a range; None where they do not go together."""
        if one.seconds is None or two.seconds is None or two.seconds < 0:
            return None
        if "comma" in (one.kind, two.kind) and self.points:
            return None
        first, last = one.seconds, two.seconds
        single = two.kind == "unit" and two.scale != 1
        if one.kind in ("bare", "point", "comma") and one.scale == 1 and single:
            first *= two.scale  # "1 to 2 minutes": the first number borrows the unit
        if one.kind == "unit" and one.scale != 1 and two.kind in ("bare", "point", "comma"):
            return None  # "1 min - 20"
        if one.kind == "clock" and two.kind == "bare" and last < first:
            return None  # "1:05 - 20"
        return first, last

    def comma(self) -> list[tuple[float, float, int, int]]:
        """ "[12,15]": pairs in brackets that look like decimal commas."""
        ranges = []
        for k in sorted(self.which):
            number = self.numbers[self.which[k]]
            if number.kind != "comma" or not number.after:
                continue
            before, behind = self.plain.text[: number.begin][-1:], self.plain.text[number.end :][:1]
            if before in ("[", "(", "{") and behind in ("]", ")", "}"):
                one, two = number.text.split(",")
                ranges.append((float(one), float(two), number.begin - 1, number.end + 1))
        return ranges

    def labelled(self) -> list[tuple[float, float, int, int]]:
        """ "starts at A … ends at B", also as JSON and the other way round within braces."""
        ranges: list[tuple[float, float, int, int]] = []
        label, since = "", -1
        held: dict[str, tuple[float, int, int, int]] = {}
        for mark in _EDGES.finditer(self.skeleton):
            if mark["cut"]:
                held, label = {}, ""
            elif mark["odd"]:
                label = ""
            elif mark["time"]:
                number = self.numbers[self.which[mark.start()]]
                if not label or mark.start() - since > 40 or number.seconds is None:
                    label = ""
                    continue
                if label == "end" and "start" not in held and not self.braced(mark.start()):
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

    def braced(self, at: int) -> bool:
        return "{" in self.skeleton[max(0, at - 60) : at]

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
        (first, begin, _), (last, _, end) = found
        return [(first, last, begin, end)]

    def lone(self) -> list[tuple[float, int, int]]:
        """Times by themselves with their places; see `lone_times`."""
        known = [n for n in self.numbers if n.seconds is not None and n.seconds >= 0]
        plainly = [n for n in known if n.plainly and not n.length]
        if plainly:
            return [(n.seconds or 0.0, n.begin, n.end) for n in plainly]
        words = set(re.findall(r"[^\W\d_]+", self.plain.text.lower()))
        if len(known) == len(self.numbers) and words <= _TIME_WORDS:
            return [time for n in known for time in self.listed(n)]
        return []

    def listed(self, number: _Number) -> Iterator[tuple[float, int, int]]:
        """A number's times: two for "2,4", which is a list where its comma is no decimal one."""
        if number.seconds is None:
            return
        if number.kind == "comma" and number.after:
            one, two = number.text.split(",")
            yield float(one), number.begin, number.after - 1
            yield float(two), number.after, number.end
        else:
            yield number.seconds, number.begin, number.end


def _numbers(text: str) -> Iterator[_Number]:
    """All numbers of a plain text, each whole, with its sign and its units."""
    at, bullets = 0, {mark.start(1): mark.end() for mark in _BULLET.finditer(text)}
    points = re.search(r"\d\.\d", text) is not None
    behind = 0  # where the last number ended
    while mark := _BLOB.search(text, at):
        begin, end = mark.span()
        if begin in bullets:
            at = bullets[begin]
            continue
        for number in _read(text, begin, end, behind, points):
            at = behind = number.end
            yield number


def _read(text: str, begin: int, end: int, behind: int, points: bool) -> Sequence[_Number]:
    blob = text[begin:end]
    if "," in blob and not _COMMA.fullmatch(blob) and not _grouped(blob):
        parts = blob.split(",")
        if ":" in blob and len(parts) == 2 and re.fullmatch(r"\d{1,3}", parts[1]):
            blob = blob.replace(",", ".")  # "00:00:12,500"
        else:  # a list without blanks: "82,84,86", "0:05,0:09"
            return _list(text, begin, parts, behind)
    return [_one(text, begin, end, blob, behind, points)]


def _list(text: str, begin: int, parts: Sequence[str], behind: int) -> Sequence[_Number]:
    found = []
    for k, part in enumerate(parts):
        end = begin + len(part)
        if k < len(parts) - 1:
            value = _value(part)
            kind = "clock" if ":" in part else "point" if "." in part else "bare"
            bad = value is None or (k == 0 and _bad_before(text, begin, behind))
            found.append(_Number(begin, end, None if bad else value, kind, text=part))
        else:
            found.append(_one(text, begin, end, part, begin, "." in part))
        begin = end + 1
    if any(n.seconds is None for n in found):
        found = [n._replace(seconds=None) for n in found]
    return found


def _grouped(blob: str) -> bool:
    return bool(_THOUSANDS.fullmatch(blob) or _THOUSANDS_DOTS.fullmatch(blob))


def _value(blob: str) -> float | None:
    """Seconds of a clock or a number without a unit; None for anything else."""
    if len(blob) > 40:
        return None
    if _CLOCK.fullmatch(blob):
        total = 0.0
        for part in blob.split(":"):
            total = total * 60 + float(part)
        return total
    if _PLAIN_NUMBER.fullmatch(blob):
        return float(blob)
    if _THOUSANDS.fullmatch(blob):
        return float(blob.replace(",", ""))
    if _THOUSANDS_DOTS.fullmatch(blob):
        return float(blob.replace(".", "").replace(",", "."))
    if _COMMA.fullmatch(blob):
        # "1,234" may be either; "12,5" cannot be twelve hundred.
        whole, part = blob.split(",")
        group = len(part) == 3 and len(whole) <= 3 and whole[0] != "0"
        return None if group else float(f"{whole}.{part}")
    return None


def _one(text: str, begin: int, end: int, blob: str, behind: int, points: bool) -> _Number:
    value = _value(blob)
    kind = (
        "clock" if ":" in blob else "comma" if "," in blob else "point" if "." in blob else "bare"
    )
    if _grouped(blob):
        kind = "point"
    start = begin
    minus = False
    # Behind another number a dash joins the two.
    if begin and text[begin - 1] in "+-" and (not behind or text[behind : begin - 1].strip(" ")):
        before = text[max(0, begin - 2) : begin - 1]
        if not before or before in " \n([{<\"':=,;":
            start, minus = begin - 1, text[begin - 1] == "-"
    bad = value is None or _bad_before(text, start, behind)
    if start == begin and begin and text[begin - 1] == "-" and behind < begin - 1:
        bad = bad or text[max(0, begin - 2) : begin - 1].isalnum()
    scale, after = 1.0, begin + blob.find(",") + 1 if kind == "comma" else 0
    unit = _UNIT.match(text, end)
    if unit and not (kind == "clock" and unit.lastgroup == "ms"):
        after = 0
        if points and kind == "comma":
            bad = True
        if kind == "clock":
            end = unit.end()
        else:
            scale = _SCALE[str(unit.lastgroup)]
            total, end, kind, ok = _compound(text, (value or 0.0) * scale, scale, unit.end())
            value, bad = total, bad or not ok
            if kind == "units":
                scale = 60.0
    else:
        prime = re.compile(r"'\s?(\d{1,2}(?:\.\d+)?)(?:\"|'')").match(text, end)
        if prime and kind == "bare":
            value, kind, end = (value or 0.0) * 60 + float(prime[1]), "units", prime.end()
    glued = _GLUED.match(text, end)
    if glued:
        bad = True
        run = re.compile(r"[\w.,:/]*").match(text, end)
        if run and not text[end].isspace():
            stop = run.end()
            while stop > end and text[stop - 1] in ".,:/":
                stop -= 1
            end = max(end, stop)
    length = bool(_FOR.search(text[max(0, start - 40) : start]) or _LONG.match(text, end))
    if minus and value is not None:
        value = -value
    return _Number(start, end, None if bad else value, kind, scale, blob, after, length)


def _compound(text: str, total: float, scale: float, end: int) -> tuple[float, int, str, bool]:
    """What follows a number with a unit and belongs to it: "1 h 2 min 3 s", "1m05"."""
    kind = "unit"
    while scale >= 60:
        glued = text[end : end + 1].isdigit()
        link = _AND.match(text, end)
        mark = None if link is None else re.compile(r"\d+(?:\.\d+)?|\.\d+").match(text, link.end())
        if link is None or mark is None:
            break
        unit = _UNIT.match(text, mark.end())
        if unit is None:
            if not glued:
                break
            if re.match(r"[\d.:,/]*\d|\s?[^\W\d_]", text[mark.end() : mark.end() + 8]) and (
                text[mark.end() : mark.end() + 1] not in (" ", "\n")
            ):
                return total, mark.end(), "units", False
            return total + float(mark[0]) * scale / 60, mark.end(), "units", True
        smaller = _SCALE[str(unit.lastgroup)]
        if smaller >= scale:
            break
        total, scale, end, kind = total + float(mark[0]) * smaller, smaller, unit.end(), "units"
    return total, end, kind, not text[end : end + 1].isdigit()


def _bad_before(text: str, begin: int, behind: int) -> bool:
    """Whether what stands directly before a number makes it something else."""
    return bool(_NAMED.search(text[max(behind, begin - 24, 0) : begin]))
