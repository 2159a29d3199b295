"""How times are told to a model and read from its answers: the time codes.

A code writes seconds as text or special tokens, reads the spans of an answer, and says what an
answer without a span means. `get_timecode("relative" | "absolute" | "text")` finds one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean

from .base import Found, Parsed, Span, TimeCode, check_duration, clamped_span
from .captions import listed_captions, sentences
from .joints import widened
from .reader import find_ranges, read_time
from .reply import answer_part

__all__ = [
    "AbsoluteTime",
    "Found",
    "Parsed",
    "RelativeTime",
    "Span",
    "TextTime",
    "TimeCode",
    "get_timecode",
    "number_to_token",
]

_DIGIT_WORDS = (
    "ZERO",
    "ONE",
    "TWO",
    "THREE",
    "FOUR",
    "FIVE",
    "SIX",
    "SEVEN",
    "EIGHT",
    "NINE",
    "DOT",
)


@dataclass(frozen=True)
class RelativeTime(TimeCode):
    """One of n ordinary tokens "<t0>".."<t99>" a time, relative to the duration (LITA).

    index = round_half_even((n - 1) t / duration); the error of a time is at most
    duration / (2 (n - 1)). Source: LITA (arXiv 2403.19046) and its code.

    Attributes:
        n: number of time tokens.
        faithful: as the authors' code: encoding does not clamp, so a time after the end of the
            video gives a token that does not exist ("<t101>"), and only the first two times of
            an answer are read. By default times are clamped and all pairs are read.
    """

    n: int = 100
    faithful: bool = False

    name = "relative"
    failure = "whole"

    def __post_init__(self) -> None:
        if self.n < 2:
            raise InputError(f"relative time needs at least 2 tokens, not {self.n}")
        tokens = tuple(f"<t{k}>" for k in range(self.n))
        object.__setattr__(self, "special_tokens", tokens)

    def index(self, seconds: float, duration: float) -> int:
        """The token number of a time; 0 for a video without length.

        Raises:
            InputError: seconds or a duration that are not finite, or a negative duration.
        """
        if not math.isfinite(seconds):
            raise InputError(f"a time must be finite seconds, not {seconds}")
        if check_duration(duration) == 0:
            return 0
        k = round((self.n - 1) * seconds / duration)
        return k if self.faithful else min(max(k, 0), self.n - 1)

    def seconds(self, index: int, duration: float) -> float:
        """The seconds of a token number, clamped to [0, duration], rounded to hundredths.

        Where the tokens are closer together than a hundredth more decimals stay, so that
        index(seconds(k)) is k for every video.
        """
        if check_duration(duration) == 0:
            return 0.0
        digits = max(2, 1 - math.floor(math.log10(duration / (self.n - 1))))
        return round(min(max(index * duration / (self.n - 1), 0.0), duration), digits)

    def encode(self, seconds: float, duration: float) -> str:
        """ "<t12>" for a time."""
        return f"<t{self.index(seconds, duration)}>"

    def decode(self, code: str, duration: float) -> float:
        """Seconds of "<t12>", or of a stamp "<12.34>" that was decoded before."""
        found = _MARK.fullmatch(code.strip())
        if found is None:
            raise InputError(f"{code!r} is not a time token: expected <t0> to <t{self.n - 1}>")
        return self._value(found, duration)

    def find(self, answer: str, duration: float) -> list[Found]:
        """Pairs of time tokens in order, the smaller time first.

        The first with the second, the third with the fourth; an odd one out at the end is left.
        When the number of tokens is odd and some stand joined ("<t1> <t9>", "<t1> to <t9>"),
        only the joined pairs count, so that a lone time does not shift all that follow.
        """
        found = []
        for one, two in self._pairs(answer):
            times = self._value(one, duration), self._value(two, duration)
            place = widened(answer, one.start(), two.end())
            found.append(Found(clamped_span(*times, duration), *place))
        return found

    def _pairs(self, answer: str) -> list[tuple[re.Match[str], re.Match[str]]]:
        # The authors' script reads the whole reply.
        begin, end = (0, len(answer)) if self.faithful else answer_part(answer)[:2]
        marks = list(_MARK.finditer(answer, begin, end))
        pairs = list(zip(marks[::2], marks[1::2], strict=False))
        if self.faithful:
            return pairs[:1]
        return (_joined(answer, marks) or pairs) if len(marks) % 2 else pairs

    def count(self, answer: str) -> int:
        """How many times a reply writes, in what it thinks too."""
        return len(_MARK.findall(answer))

    def token_pairs(self, answer: str) -> list[tuple[int, int]]:
        """The ends of the spans of `find`, each as its number among the times of the reply."""
        number = {mark.start(): k for k, mark in enumerate(_MARK.finditer(answer))}
        return [(number[one.start()], number[two.start()]) for one, two in self._pairs(answer)]

    def joined(self, answer: str) -> bool:
        """Whether the first two times stand joined ("<t1> to <t9>"): then they are a span."""
        marks = list(_MARK.finditer(answer))[:2]
        return bool(_joined(answer, marks))

    def readable(self, answer: str, duration: float) -> str:
        """Every time token as "12.3 s"."""
        return _MARK.sub(lambda mark: f"{self._value(mark, duration):.1f} s", answer).strip()

    def _value(self, mark: re.Match[str], duration: float) -> float:
        if mark["index"] is not None:
            return self.seconds(int(mark["index"]), duration)
        return min(max(float(mark["stamp"]), 0.0), duration)


@dataclass(frozen=True)
class AbsoluteTime(TimeCode):
    """Seconds as digit tokens, "0012.3" in six of eleven tokens (VTG-LLM, arXiv 2405.13382).

    Attributes:
        faithful: as the authors' code, with its defects: decimals after the first are cut, not
            rounded; whole numbers are not padded; above 9,999.9 s the decimal is lost (the
            value is cut to six tokens); an answer gives its first "A - B" alone, is not clamped
            to the video, "starts at A, ends at B" is not read, and hh:mm:ss is read as (0, 0).
            By default times are rounded and padded, longer ones take a seventh token, and all
            that `TextTime` reads is read.
    """

    faithful: bool = False

    name = "absolute"
    special_tokens = tuple(f"<TIME_{word}>" for word in _DIGIT_WORDS)

    def encode(self, seconds: float, duration: float) -> str:
        """Six digit tokens for a time rounded to a tenth of a second."""
        if not math.isfinite(seconds) or (seconds < 0 and not self.faithful):
            raise InputError(f"a time must be finite seconds from 0 on, not {seconds}")
        if self.faithful:
            return number_to_token(str(round(seconds, 1)))
        return _digit_tokens(f"{seconds:06.1f}")

    def decode(self, code: str, duration: float) -> float:
        """Seconds of one run of digit tokens."""
        value = read_time(self._digits(code))
        if value is None or "<TIME_" not in code:
            raise InputError(f"{code!r} is not a time in digit tokens")
        return value

    def find(self, answer: str, duration: float) -> list[Found]:
        """Spans of the answer; places refer to the answer as given."""
        plain, place = self._plain(answer)
        if self.faithful:
            return self._find_faithful(plain, place)
        return [
            Found(
                clamped_span(found.first, found.last, duration),
                place[found.begin],
                place[found.end],
            )
            for found in find_ranges(plain)
        ]

    def readable(self, answer: str, duration: float) -> str:
        """Every run of digit tokens as "12.3 s"."""

        def told(run: re.Match[str]) -> str:
            value = read_time(self._digits(run[1]))
            return run[0] if value is None else f"{value:.1f} s"  # too long for a time

        return _DIGIT_RUN_UNIT.sub(told, answer).strip()

    def in_digits(self, answer: str) -> str:
        """The answer with its digit tokens as digits, blanks inside a number taken out."""
        return self._plain(answer)[0]

    def _digits(self, text: str) -> str:
        for digit, token in zip("0123456789.", self.special_tokens, strict=True):
            text = text.replace(token, digit)
        return re.sub(r"\s+", "", text)

    def _plain(self, answer: str) -> tuple[str, list[int]]:
        """The answer with digits for tokens, and for every place in it the place it came from."""
        text, last = "", 0
        place: list[int] = []
        for run in _DIGIT_RUN.finditer(answer):
            text += answer[last : run.start()]
            place += range(last, run.start())
            digits = self._digits(run[0])
            follows = answer[run.end() : run.end() + 1]
            text += digits
            place += [run.start()] * len(digits)
            if follows and not follows.isspace():  # two runs may touch
                text += " "
                place.append(run.end())
            last = run.end()
        return text + answer[last:], [*place, *range(last, len(answer) + 1)]

    def _find_faithful(self, plain: str, place: list[int]) -> list[Found]:
        number = r"(\d+(?:\.\d+)?)"
        found = re.search(rf"{number}\s*-\s*{number}", plain)
        if found:
            first, last = sorted((float(found[1]), float(found[2])))
            return [Found(Span(first, last), place[found.start()], place[found.end()])]
        clock = re.search(r"\d\d:\d\d:\d\d", plain)
        if clock:
            return [Found(Span(0.0, 0.0), place[clock.start()], place[clock.end()])]
        return []


def number_to_token(number: str) -> str:
    """VTG-LLM's digit tokens of a number string, as the authors' code gives them.

    With a dot: the whole part padded to four digits, the dot, the decimals; without: the digits,
    then ".0"; cut to six tokens in both cases. Defects: see `AbsoluteTime.faithful`.

    Raises:
        InputError: a string that is not digits with at most one dot.
    """
    if not re.fullmatch(r"\d*\.?\d*", number) or not re.search(r"\d", number):
        raise InputError(f"{number!r} is not a plain decimal number")
    whole, dot, decimals = number.partition(".")
    text = f"{whole:0>4}.{(decimals or '0')[:1]}" if dot else f"{whole}.0"
    return _digit_tokens(text[:6])


@dataclass(frozen=True)
class TextTime(TimeCode):
    """Plain seconds with one decimal (TimeSuite, arXiv 2410.19702; also TimeChat's answers).

    Reads "12.3 - 15 seconds", "from 12s to 15s", "between 12 and 15", "[12.3, 15.0]", mm:ss,
    hh:mm:ss, "1 min 5 s", and "starts at 5 s ... ends at 9 s". The authors' parser fails on a
    unit before the dash ("12s - 15s") and reads one span; both are put right here.
    """

    name = "text"

    def encode(self, seconds: float, duration: float) -> str:
        """ "12.3" for a time."""
        if not math.isfinite(seconds):
            raise InputError(f"a time must be finite seconds, not {seconds}")
        return f"{seconds:.1f}"

    def decode(self, code: str, duration: float) -> float:
        """Seconds of one time in any of the forms above."""
        value = read_time(code)
        if value is None:
            raise InputError(f"{code!r} is not a time: write seconds such as 12.3, or mm:ss")
        return value

    def stamps(self, seconds: Iterable[float], duration: float) -> list[str]:
        """ "12.3s" a frame."""
        return [self.encode(float(t), duration) + "s" for t in seconds]

    def find(self, answer: str, duration: float) -> list[Found]:
        """Every range of the answer."""
        return self._found(answer, duration, loose=True)

    def captions(self, answer: str, duration: float) -> list[tuple[Span, str]]:
        """As of every code; a JSON list of objects is read too, two lone times are no range."""
        listed = listed_captions(answer)
        if listed is not None:
            return [(clamped_span(c.first, c.last, duration), c.sentence) for c in listed]
        begin, end, _ = answer_part(answer)
        found = self._found(answer, check_duration(duration), loose=False)
        words = sentences(answer, [(item.begin, item.end) for item in found], begin, end)
        return [(item.span, text) for item, text in zip(found, words, strict=True) if text]

    def _found(self, answer: str, duration: float, *, loose: bool) -> list[Found]:
        return [
            Found(clamped_span(found.first, found.last, duration), found.begin, found.end)
            for found in find_ranges(answer, loose=loose)
        ]


_CODES: dict[str, type[TimeCode]] = {
    code.name: code for code in (RelativeTime, AbsoluteTime, TextTime)
}
_MARK = re.compile(r"<(?:t(?P<index>\d+)|(?P<stamp>\d+\.?\d*|\.\d+))>")
_JOIN = re.compile(r"\s*(?:-|–|to)?\s*", re.IGNORECASE)
_TOKEN = rf"<TIME_(?:{'|'.join(_DIGIT_WORDS[:-1])})>"
_DIGIT_RUN = re.compile(rf"(?:{_TOKEN}\s*)*{_TOKEN}(?:\s*<TIME_DOT>\s*{_TOKEN})?")
_DIGIT_RUN_UNIT = re.compile(
    rf"({_DIGIT_RUN.pattern})(?:\s*(?:seconds?|secs?|s)\b)?", re.IGNORECASE
)


def get_timecode(name: str, **options: Any) -> TimeCode:
    """The code called "relative", "absolute" or "text", with its fields as options.

    Raises:
        InputError: no code or no option of that name.
    """
    if name not in _CODES:
        raise InputError(f"no time code {name!r}: {did_you_mean(name, _CODES, n=1)}")
    code = _CODES[name]
    known = list(getattr(code, "__dataclass_fields__", {}))
    for option in options:
        if option not in known:
            raise InputError(f"time code {name!r} has no option {option!r}: it takes {known}")
    return code(**options)


def _joined(answer: str, marks: list[re.Match[str]]) -> list[tuple[re.Match[str], re.Match[str]]]:
    pairs, k = [], 0
    while k + 1 < len(marks):
        one, two = marks[k : k + 2]
        if _JOIN.fullmatch(answer, one.end(), two.start()):
            pairs.append((one, two))
            k += 1
        k += 1
    return pairs


def _digit_tokens(text: str) -> str:
    return "".join(AbsoluteTime.special_tokens["0123456789.".index(c)] for c in text)
