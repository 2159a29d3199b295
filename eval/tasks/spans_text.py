"""Times in what a model says: the honest reading, and the parsers of official scripts.

Honest (`first_span`, `all_spans`): the spans that the model's own time code found, else what the
text plainly says in seconds or as a clock. Ends in the wrong order are swapped, and all is held
within the video. Nothing is guessed: where no time can be read the answer is None.

Official (`tvg_span`, `timelens_span`, `percent_span`, `lita_span`): what a released script reads
from the same text, with its gaps; written from the scripts' behaviour.
"""

from __future__ import annotations

import re

from vidllm.errors import InputError
from vidllm.timecode import AbsoluteTime, RelativeTime, answer_text, find_ranges, lone_times

from ..scores.common import Interval
from .base import Item, Response

_STAMP = re.compile(r"<\s*(\d+\.?\d*|\.\d+)\s*>")


def first_span(item: Item, response: Response) -> Interval | None:
    """The first span that a response names, in seconds; None for none, or a failed run."""
    found = all_spans(item, response)
    return found[0] if found else None


def all_spans(item: Item, response: Response) -> list[Interval]:
    """All spans that a response names, in the order in which they are written."""
    if response.error is not None:
        return []
    duration = length(item, response)
    if response.spans:
        return [held(span, duration) for span in response.spans]
    return text_spans(response.text, duration)


def one_time(item: Item, response: Response) -> float | None:
    """The one second that a response names: the middle of its first span, or its first time."""
    if (found := first_span(item, response)) is not None:
        return (found[0] + found[1]) / 2
    if response.error is not None:
        return None
    times = lone_times(response.text)
    return held((times[0], times[0]), length(item, response))[0] if times else None


def text_spans(text: str, duration: float | None = None) -> list[Interval]:
    """Spans of a text in seconds, see `vidllm.timecode.reader.find_ranges`.

    Args:
        duration: of the video; spans are held within it. None where it is not known.
    """
    return [held((found.first, found.last), duration) for found in find_ranges(text)]


def held(span: tuple[float, float], duration: float | None) -> Interval:
    """A span with its ends in order and within the video."""
    start, end = sorted((float(span[0]), float(span[1])))
    if duration is None:
        return max(start, 0.0), max(end, 0.0)
    return min(max(start, 0.0), duration), min(max(end, 0.0), duration)


def length(item: Item, response: Response) -> float | None:
    """Seconds of the video: of the file that was read, else as the annotations say."""
    return item.duration if response.duration is None else response.duration


def script_text(response: Response) -> str:
    """What an official script is given: seconds in digits, "0012.3 - 0015.0 seconds".

    Digit tokens become digits, as VTG-LLM's decoding gives them. LITA's tokens are unknown to the
    scripts of the benchmarks: pairs are written as the seconds that the model's code read.
    The text for people, "12.3 s - 15.0 s", would hide a range from the scripts.

    Raises:
        InputError: pairs of LITA's tokens whose seconds are not in the response.
    """
    if "<TIME_" in response.raw:
        digits = AbsoluteTime().in_digits(response.raw)
        return re.sub(r"<\|\w{1,20}\|>|</s>", "", digits).strip()
    written = tokens_as_seconds(response)
    if written is None and RelativeTime().find(response.raw, 1.0):
        raise InputError(
            "an answer is in time tokens (<t12>) without their seconds, which official scripts "
            "cannot read: run the model with its own time code"
        )
    return response.text if written is None else written.strip()


def tokens_as_seconds(response: Response) -> str | None:
    """LITA's tokens as "12.300 - 15.000 seconds"; None without a pair, or with other spans.

    Only the model's own code knows how long a token is: its spans are put where the tokens stand.
    """
    if not re.search(r"<t\d+>", response.raw):
        return None
    raw = answer_text(response.raw)
    found = RelativeTime().find(raw, 1.0)
    if not found or len(found) != len(response.spans):
        return None
    text, last = "", 0
    for (_, begin, end), (first, final) in zip(found, response.spans, strict=True):
        text += f"{raw[last:begin]} {first:.3f} - {final:.3f} seconds "
        last = end
    return re.sub(r"</?\w+>|<\|\w+\|>", " ", text + raw[last:])


def tvg_span(text: str, *, dashes: bool = False) -> Interval | None:
    """As the scripts of TimeChat and TimeSuite read a grounding answer.

    The first "number - number" (a unit before the dash hides it); else the first number of each
    sentence that says start, end or happen, the first two of them; else hh:mm:ss in such
    sentences. Sentences end at "!", "?" and new lines. Swapped if reversed, not clipped.

    Args:
        dashes: "to" becomes a dash first, as lmms-eval's charades_sta does: "12.0 to 15.0" is
            read as well.
    """
    said = text.lower().replace("a specific example is : 20.8 - 30.0 seconds", "")
    said = said.replace("to", "-") if dashes else said
    if found := re.search(r"(\d+\.*\d*)\s*-\s*(\d+\.*\d*)", said):
        return _ordered(found[1], found[2])
    told = [part for part in re.split(r"[!?\n]", said) if re.search(r"start|end|happen", part)]
    for pattern in (r"\b(\d+\.\d+\b|\b\d+)\b", r"\b(\d{1,2}:\d{2}:\d{2})\b"):
        first = [found[1] for part in told if (found := re.search(pattern, part))]
        if len(first) >= 2:
            return _ordered(first[0], first[1])
    return None


def timelens_span(text: str) -> Interval | None:
    """As the script of TimeLens-Bench (also in lmms-eval) reads an answer.

    Clocks (hh:mm:ss or mm:ss) anywhere, paired in order; else the first "a - b"; else the first
    "a to b"; else all numbers, paired in order, so that "2 people from 5 s until 9 s" is (2, 5).
    Reversed ends stay so and earn 0; nothing is clipped.
    """
    said = text.lower()
    clocks = re.findall(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b", said)
    if len(clocks) >= 2:
        return _seconds(clocks[0]), _seconds(clocks[1])
    for pattern in (r"(\d+\.?\d*)\s*-\s*(\d+\.?\d*)", r"(\d+\.?\d*)\s+to\s+(\d+\.?\d*)"):
        if found := re.search(pattern, said):
            return float(found[1]), float(found[2])
    numbers = re.findall(r"\b\d+\.?\d*\b", said)
    return (float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else None


def percent_span(text: str, duration: float | None) -> Interval | None:
    """As VTimeLLM's script: "from 12 to 45" are hundredths of the video, two digits each.

    That is how this family of models answers; a text that says seconds, or a decimal fraction,
    is not in its form, and None here.
    """
    if duration is None or re.search(r"\d\.\d|sec|\d\s*s\b|:", text.lower()):
        return None
    found = re.search(r"(\d{2}) (?:to|and) (\d{2})", text)
    return (int(found[1]) / 100 * duration, int(found[2]) / 100 * duration) if found else None


def lita_span(response: Response, duration: float | None) -> Interval | None:
    """As LITA's script: the first two "<12.34>" stamps, clamped to the video, in order.

    Of an answer in time tokens it is the model's first span: which second a token stands for is
    the model's own.
    """
    if response.spans and re.search(r"<t\d+>", response.raw):
        return held(response.spans[0], duration)
    stamps = [float(mark[1]) for mark in _STAMP.finditer(response.raw or response.text)]
    return held((stamps[0], stamps[1]), duration) if len(stamps) >= 2 else None


def _ordered(one: str, two: str) -> Interval | None:
    try:
        start, end = sorted((_seconds(one), _seconds(two)))
    except ValueError:  # "12..5", which the script's own pattern lets through
        return None
    return start, end


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total
