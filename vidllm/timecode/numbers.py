"""Numbers in plain text, each read whole, and what each may mean as a time.

A number has its sign, its decimals and its units: "1:02:03.5", "12,5 s", "1 h 2 min". One that is a
piece of something else, has another unit, is counted, or is a date, a score or a version has no
seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from typing import NamedTuple

_HOUR = r"hours?|hrs?\.?|h|stunden?|std\.?|heures?|horas?|\u043c?\u0447\u0430\u0441\w{0,2}|\u0447"
_MINUTE = (
    r"minutes?|mins?\.?|m|minuten?|minutos?|minuti?"
    r"|\u043c\u0438\u043d\u0443\u0442\w{0,3}|\u043c\u0438\u043d\.?"
)
_SECOND = (
    r"seconds?|secs?\.?|s|sekunden?|sekund\w?|sek\.?|secondes?|seconden|segundos?|seg\.?"
    r"|second[oi]|\u0441\u0435\u043a\u0443\u043d\u0434\w{0,3}|\u0441\u0435\u043a\.?|\u0441"
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
_BLOB = re.compile(r"\d+(?:[.,:]\d+)*|(?<![.\w])\.\d+(?!:)")
_CLOCK = re.compile(r"(?:\d+:\d{1,2}|\d{1,3}):\d{2}(?:\.\d+)?")
_PLAIN_NUMBER = re.compile(r"\d*\.?\d+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+\.\d+|\d{1,3}(?:,\d{3}){2,}")
_THOUSANDS_DOTS = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}")
_COMMA = re.compile(r"\d+,\d+")
_AND = re.compile(r"(?:,?\s?(?:and\s)?|:\s?)(?=[\d.])", re.IGNORECASE)
#: Thousands apart: "1 200 s"; without a unit it may as well be two numbers.
_SPACED = re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d{1,2})?(?![\d.,:]*\d)")
_MONTH = (
    r"jan(?:uary)?|feb(?:ruary)?|march|april|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?|enero|febrero|marzo|abril|mayo|junio|julio|agosto|octubre"
    r"|(?:sept|nov|dic)iembre|janvier|f\u00e9vrier|mars|avril|mai|juin|juillet|ao\u00fbt"
    r"|(?:sept|nov|d\u00e9c)embre|octobre|januar|februar|m\u00e4rz|juni|juli|oktober|dezember"
)
#: What no time may stand directly before or behind: it would be a piece of something else.
_GLUED = re.compile(
    r"[^\W\d_\u2e80-\uffff]|_|[%\u2030\u00b0^*/]|\s?/\s?\d|\d|\.\d|\s\.\s?\d"
    r"|['·\u2027\u2022\u2219\u22c5]\d|\s?\u00d7|\s?(?:\u00b1|\+/?-)\s?\d"
    r"|-(?!(?:to|until|till)\b)[^\W\d_]",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?:[^\W\d_\u2e80-\uffff]|[_/#$\u20ac\u00a3\u00a5^*&@\u00b0\\]|\d\s?/\s?|\d\s\.\s?"
    r"|:\d\d;|\d[:'·\u2027\u2022\u2219\u22c5]|\u00d7\s?|\u00b1\s?|\+/?-)\Z"
)
#: What makes a number without a unit a count, a date or a measure.
_COUNTED = re.compile(
    r"\s?[%\u2030\u00b0\u20ac\u00a3\u00a5]|\s?-?(?:per\s?cent|prozent|pour\s?cent|por\s?cien?to"
    r"|\u043f\u0440\u043e\u0446\u0435\u043d\u0442\w{0,3}|[kmgt]i?b(?:ps)?|[kmg]?bits?|[br]pm|dpi|db"
    r"|mah|lbs?|oz|ml|fps|k?hz|kg|g|km|cm|mm|kmh|mph|meters?|metres?"
    r"|miles?|feet|foot|ft|inch(?:es)?|px|pixels?|dollars?|euros?|degrees?|points?|frames?|tokens?"
    r"|times|years?|days?|weeks?|months?|people|persons?|m[ea]n|wom[ea]n|boys?|girls?|kids?"
    r"|child(?:ren)?|players?|dogs?|cats?|cars?|balls?|birds?|horses?|steps?|items?|objects?|shots?"
    r"|clips?|scenes?|moments?|events?|highlights?|parts?|pieces?|goals?|rounds?|laps?|cups?|eggs?"
    r"|slices?|others|more|victory|win|loss|defeat|draw|lead|of\s(?:them|\d|the\s(?:people|men|women"
    rf"|players))|out\sof|may\s\d+|am|pm|a\.m|p\.m|gmt|utc|o'clock|(?:de\s)?(?:{_MONTH}))\b"
    r"|\s?(?:\u4eba|\u4e2a|\u500b|\u53ea|\u5e27|\u5e40|\u6b21|\u5e74|\u6708|\u65e5|\uba85|\uac1c)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?:\b(?:version|ver|v|scor(?:e|es|ed|ing)|scoreboard|ratio|aspect|lines?|pages?|pp?|fig"
    r"|chapters?|figures?|no|numbers?|level|season|episode|years?|channel|ages?|aged|copyright"
    r"|resolution|size|confidence|probability|likelihood|iou|speed|bit\s?rate|iso|ind(?:ex|ices)"
    r"|idx|tokens?|tied|drew|trail(?:s|ed|ing)?)"
    r"(?:\s(?:is|was|of|by|the|final|numbers?|at|shows?|reads?|stands|now))*[.:#\"]{0,2}\s?\(?"
    r"|\b(?:options?|scenes?|shots?|clip|rooms?|camera|players?|steps?|event|segment|moment"
    r"|highlight|parts|part|caption|items?|questions?|rows?|columns?|images?|pictures?|photos?"
    r"|slides?|tables?|sections?|bild(?:er)?|fotogramas?|cuadros?|cadres?|quadros?"
    r"|\u043a\u0430\u0434\u0440\w{0,3}|win|won|wins|lost|lead|leads|led|may"
    rf"|{_MONTH})\s#?"
    r"|\bframes?\w{0,12}(?:\s(?:numbers?|from|between|idx|ind(?:ex|ices)))*[\s.:=#\"']{0,4}[\[(]?"
    r"|(?:\b|_)(?:scores?|confidences?|probabilit\w{1,3}|likelihoods?|ious?|ratings?|bbox\w{0,3}|box(?:es)?"
    r"|size|resolution|points?|coord\w{0,8}|fps)[\"']?\s?[:=]\s?\[{1,3}\s?"
    r"|(?:\u7b2c|\u5e27|\u5e40|\u30d5\u30ec\u30fc\u30e0|\ud504\ub808\uc784|\u767e\u5206\u4e4b)\s?"
    r"|\A\s(?:out\s)?of\s)\Z",
    re.IGNORECASE,
)
_FRAME = re.compile(r";\d\d(?![\d:.,])")
#: The same for what looks like a clock.
_DAYTIME = re.compile(r"\s?(?:am|pm|a\.m|p\.m|gmt|utc|o'clock|uhr)\b", re.IGNORECASE)
_DATED = re.compile(r"\d{4}-\d\d-\d\d,?[T\s]\Z")
_RATIO = re.compile(
    r"\b(?:scor(?:e|es|ed|ing)|ratio|aspect|won|lost|beat|lead|led|result)"
    r"(?:\s(?:is|was|of|by|the|final|at|stands))*:?\s?\Z",
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
_PRIMES = re.compile(r"'\s?(\d{1,2}(?:\.\d+)?)(?:\"|'')")
_RUN = re.compile(r"[\w.,:/]*")
_PART = re.compile(r"\d+(?:[.,]\d+)?|\.\d+")
_CLOSED = frozenset(("", *'-~[(<,;"|0123456789\n'))
_BULLET = re.compile(r"(?:^|(?<=\n))\s?(\d{1,3})([.)])(?=\s\S)(?=(\s[-+~]?\d{1,6}(?![\d.:]*\d))?)")
_INLINE = re.compile(_BULLET.pattern.replace(r"(?:^|(?<=\n))\s?", r"(?<=[.;!?]\s)"))


class Number(NamedTuple):
    """A number in plain text: what it may mean as a time, None where it is none."""

    begin: int
    end: int
    seconds: float | None
    kind: str = "bare"  # bare, point, comma, clock, unit, units
    scale: float = 1.0
    text: str = ""
    after: int = 0  # the second number of "12,15" read as a list begins here

    @property
    def plainly(self) -> bool:
        return self.kind in ("point", "clock", "unit", "units")


def read_numbers(text: str) -> Iterator[Number]:
    """All numbers of a plain text, each whole, with its sign and its units."""
    at, bullets = 0, list_markers(text)
    points = re.search(r"\d\.\d", text) is not None
    behind = 0  # where the last number ended
    while mark := _BLOB.search(text, at):
        begin, end = mark.span()
        if begin in bullets:
            at = bullets[begin]
            continue
        if spaced := _SPACED.match(text, begin):
            unit = _UNIT.match(text, spaced.end())
            end = spaced.end() if unit and unit.lastgroup == "s" else end
        for number in _read(text, begin, end, behind, points):
            at = behind = number.end
            yield number


def list_markers(text: str) -> dict[int, int]:
    """The numbers that count the lines of a list, "1." and "2)": where each begins and ends.

    "12. 5 - 15" is no twelfth line without eleven before it: it may be a broken 12.5.
    """
    marks = list(_BULLET.finditer(text))
    told = {int(mark[1]) for mark in marks}
    top = len(list(takewhile(told.__contains__, count(1))))  # 1, 2, … without a gap
    if top:
        for mark in _INLINE.finditer(text):
            if int(mark[1]) == top + 1:
                top += 1
                marks.append(mark)
    return {
        mark.start(1): mark.end()
        for mark in marks
        if mark[2] == ")" or not mark[3] or 1 <= int(mark[1]) <= top
    }


def _read(text: str, begin: int, end: int, behind: int, points: bool) -> Sequence[Number]:
    blob = text[begin:end]
    if " " in blob:
        one = _one(text, begin, end, blob.replace(" ", ""), behind, points)
        return [one._replace(text=blob)]
    comma = _COMMA.fullmatch(blob)
    beside = text[max(0, begin - 1) : begin] + text[end : end + 1]
    if comma and (beside in ("[]", "()", "{}") or _between(text, begin, end)):
        return _list(text, begin, blob.split(","), behind)
    if "," in blob and not comma and not _grouped(blob):
        parts = blob.split(",")
        if ":" in blob and len(parts) == 2 and re.fullmatch(r"\d{1,3}", parts[1]):
            blob = blob.replace(",", ".")  # "00:00:12,500"
        else:  # a list without blanks: "82,84,86", "0:05,0:09"
            return _list(text, begin, parts, behind)
    return [_one(text, begin, end, blob, behind, points)]


def _between(text: str, begin: int, end: int) -> bool:
    """Whether "9,12" is the end of one range and the start of the next: "5-9,12-15"."""
    before = re.search(r"(\d{1,6})\s?(?:-|to)\s?\Z", text[max(0, begin - 12) : begin])
    behind = re.match(r"\s?(?:-|to)\s?(\d{1,6})", text[end : end + 12])
    if end - begin > 13 or not before or not behind:
        return False
    one, two = (int(part) for part in text[begin:end].split(","))
    return int(before[1]) < one <= two < int(behind[1])


def _list(text: str, begin: int, parts: Sequence[str], behind: int) -> Sequence[Number]:
    found = []
    for k, part in enumerate(parts):
        end = begin + len(part)
        if k < len(parts) - 1:
            value = _value(part)
            kind = "clock" if ":" in part else "point" if "." in part else "bare"
            bad = value is None or (k == 0 and _bad_before(text, begin))
            found.append(Number(begin, end, None if bad else value, kind, text=part))
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


def _one(text: str, begin: int, end: int, blob: str, behind: int, points: bool) -> Number:
    value = _value(blob)
    kind = (
        "clock" if ":" in blob else "comma" if "," in blob else "point" if "." in blob else "bare"
    )
    if "," in blob and _grouped(blob):
        kind = "point"
    start = begin
    minus = False
    # Behind another number a dash joins the two.
    if begin and text[begin - 1] in "+-" and (not behind or text[behind : begin - 1].strip(" ")):
        before = text[max(0, begin - 2) : begin - 1]
        if not before or before in " \n([{<\"':=,;":
            start, minus = begin - 1, text[begin - 1] == "-"
    bad = value is None or _bad_before(text, start)
    if start == begin and begin and text[begin - 1] == "-" and behind < begin - 1:
        bad = bad or text[max(0, begin - 2) : begin - 1].isalnum()
    scale, after = 1.0, begin + blob.find(",") + 1 if kind == "comma" else 0
    # Most numbers have nothing beside them that could be a unit or a name: that is seen at once.
    open_end = _beside(text[end : end + 2])
    unit = _UNIT.match(text, end) if open_end else None
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
    elif open_end and kind == "bare" and (prime := _PRIMES.match(text, end)):
        value, kind, end = (value or 0.0) * 60 + float(prime[1]), "units", prime.end()
    if kind == "clock":
        bad = bad or bool(_DAYTIME.match(text, end) or _FRAME.match(text, end))
        bad = bad or bool(_DATED.search(text[max(start - 14, 0) : start]))
        bad = bad or bool(_RATIO.search(text[max(behind, start - 32, 0) : start]))
    elif kind in ("bare", "point", "comma"):
        bad = bad or (open_end and bool(_COUNTED.match(text, end)))
        bad = bad or bool(_NAMED.search(text[max(behind, start - 32, 0) : start]))
    if (open_end or unit) and _GLUED.match(text, end):
        bad = True
        run = _RUN.match(text, end)
        if run and not text[end].isspace():
            end += len(run[0].rstrip(".,:/"))
    if minus and value is not None:
        value = -value
    return Number(start, end, None if bad else value, kind, scale, blob, after)


def _beside(behind: str) -> bool:
    """Whether what stands behind a number may belong to it, by the next two characters."""
    if not behind or behind[0] in '\n,:)]}"':
        return False
    return behind[0] != " " or behind[1:] not in _CLOSED


def is_length(text: str, number: Number) -> bool:
    """Whether the words beside a number make it a length: "for 5 s", "5 s long"."""
    before = text[max(0, number.begin - 40) : number.begin]
    return bool(_FOR.search(before) or _LONG.match(text, number.end))


def _compound(text: str, total: float, scale: float, end: int) -> tuple[float, int, str, bool]:
    """What follows a number with a unit and belongs to it: "1 h 2 min 3 s", "1m05"."""
    kind = "unit"
    while scale >= 60:
        glued = text[end : end + 1].isdigit()
        link = _AND.match(text, end)
        mark = None if link is None else _PART.match(text, link.end())
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
            return total + float(mark[0].replace(",", ".")) * scale / 60, mark.end(), "units", True
        smaller = _SCALE[str(unit.lastgroup)]
        if smaller >= scale:
            break
        total, scale, end, kind = (
            total + float(mark[0].replace(",", ".")) * smaller,
            smaller,
            unit.end(),
            "units",
        )
    return total, end, kind, not text[end : end + 1].isdigit()


def _bad_before(text: str, begin: int) -> bool:
    """Whether what stands directly before a number makes it something else."""
    if text[begin] == "." and text[max(0, begin - 2) : begin - 1].isdigit():
        return True  # "12 .5"
    return bool(_BEHIND.search(text[max(begin - 4, 0) : begin]))
