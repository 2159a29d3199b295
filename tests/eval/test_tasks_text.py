"""What models say about times, as it is read: honestly, and as the official scripts read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores.captions import Event
from vidllm.eval.tasks import Item, Response
from vidllm.eval.tasks.captions_text import (
    events,
    merge_alike,
    timechat_events,
    vtimellm_events,
)
from vidllm.eval.tasks.highlights_text import Marked, curve, official_curve, read_highlights
from vidllm.eval.tasks.spans_text import (
    all_spans,
    first_span,
    lita_span,
    one_time,
    percent_span,
    script_text,
    text_spans,
    timelens_span,
    tvg_span,
)
from vidllm.timecode import AbsoluteTime, RelativeTime

ITEM = Item("1", "v", "v", "?", None, duration=60.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The event happens in 12.3 - 15.0 seconds.", (12.3, 15.0)),
        ("From 12 to 15 seconds", (12, 15)),
        ("between 0:12 and 0:15.5", (12, 15.5)),
        ("00:00:05 - 00:01:00", (5, 60)),
        ("12s - 15s", (12, 15)),  # TimeChat's parser fails here
        ("It starts at 5 s and ends at 9.5 s.", (5, 9.5)),
        ("Start time: 5.2 seconds\nEnd time: 9 seconds", (5.2, 9)),
        ('{"start": 5, "end": 9.5}', (5, 9.5)),
        ("[5.0, 9.5]", (5, 9.5)),
        ("<5.0> <9.5> He falls.", (5, 9.5)),
        ("first at 5.0 s, gone by 9.5 s", (5, 9.5)),
        ("5, 9", (5, 9)),
        ("start 5 end 9", (5, 9)),
        ("15 - 12 seconds", (12, 15)),  # swapped
        ("50 - 80 seconds", (50, 60)),  # held in the video
        ("70 - 80 seconds", (60, 60)),
        ("2 people, from 5 s until 9 s", (5, 9)),
        ("At 12.5 seconds.", None),  # one time is no span
        ("The 2 men meet 3 others.", None),
        ("He does it twice.", None),
        ("", None),
    ],
)
def test_spans_of_a_text(text: str, expected: tuple[float, float] | None) -> None:
    found = first_span(ITEM, Response(text=text))
    assert found == (None if expected is None else pytest.approx(expected))


def test_all_spans_and_where_they_come_from() -> None:
    text = "1. 0 - 4 seconds\n2. 10.5 - 12 seconds"
    assert text_spans(text) == [(0, 4), (10.5, 12)]
    own = Response(text="5.0 s 9.0 s", raw="<t8> <t15>", spans=((9.0, 5.0), (70.0, 50.0)))
    assert all_spans(ITEM, own) == [(5.0, 9.0), (50.0, 60.0)]  # before what the text says
    assert first_span(ITEM, Response(text=text, error="broken")) is None
    short = Response(text="5 - 70 seconds", duration=8.0)  # the file, not the annotation
    assert first_span(ITEM, short) == (5.0, 8.0)
    assert text_spans("5 - 70 seconds") == [(5.0, 70.0)]  # nobody knows how long it is


def test_one_time() -> None:
    assert one_time(ITEM, Response(text="At 12.5 seconds.")) == 12.5
    assert one_time(ITEM, Response(text="10 - 20 seconds")) == 15.0
    assert one_time(ITEM, Response(text="01:10")) == 60.0
    assert one_time(ITEM, Response(text="17")) == 17.0
    assert one_time(ITEM, Response(text="the 2nd one")) is None
    assert one_time(ITEM, Response(text="3 people")) is None
    assert one_time(ITEM, Response(text="5 s", error="x")) is None


@pytest.mark.parametrize(
    ("text", "plain", "dashes"),
    [
        ("happens in the 24.3 - 30.4 seconds", (24.3, 30.4), (24.3, 30.4)),
        ("30 - 12", (12, 30), (12, 30)),
        ("from 12.0 to 15.0 seconds", None, (12, 15)),
        ("12s - 15s", None, None),
        ("Starting time: 0.8 s\nEnding time: 1.1 s", (0.8, 1.1), (0.8, 1.1)),
        ("It starts at 5 s and ends at 9 s", None, None),  # one sentence, one number
        ("starts at 00:00:18\nends at 00:00:23", (0, 0), (0, 0)),  # "00" is its first number
        ("5 - 9, then 1 - 2", (5, 9), (5, 9)),
        ("12..5 - 14", None, None),
        ("A specific example is : 20.8 - 30.0 seconds", None, None),
    ],
)
def test_tvg_scripts(text: str, plain: object, dashes: object) -> None:
    assert tvg_span(text) == plain
    assert tvg_span(text, dashes=True) == dashes


def test_a_golden_of_the_same_parser() -> None:
    """VTG-LLM's, but for its time tokens and the blanks that it takes out, which hide sentences."""
    data = np.load(Path(__file__).parents[1] / "goldens" / "vtgllm_parse_tvg.npz")
    compared = 0
    for text, spans in zip(data["texts"].tolist(), json.loads(str(data["spans"])), strict=True):
        if "<TIME_" in text or "Starts at 5" in text:
            continue
        assert tvg_span(text) == (tuple(spans[0]) if spans else None)
        compared += 1
    assert compared == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at 3 - 4 of 00:05 to 01:10", (5, 70)),  # clocks first
        ("00:01:00.5 and 00:02:00", (60.5, 120)),
        ("12.5 - 9 seconds", (12.5, 9)),  # stays reversed
        ("12 to 15", (12, 15)),
        ("2 people from 5 s until 9 s", (2, 5)),
        ("at 12 seconds", None),
    ],
)
def test_timelens_script(text: str, expected: object) -> None:
    assert timelens_span(text) == expected


def test_hundredths_and_stamps() -> None:
    assert percent_span("From 12 to 45.", 60.0) == pytest.approx((7.2, 27.0))
    assert percent_span("from 5 to 45", 60.0) is None  # two digits each
    for text in ("from 12 to 45 seconds", "from 12 to 45.5", "00:12 to 00:45", "12 to 45s"):
        assert percent_span(text, 60.0) is None
    assert percent_span("From 12 to 45.", None) is None
    assert lita_span(Response(raw="At <20.0> then <3.0> and <9.0>"), 30.0) == (3.0, 20.0)
    assert lita_span(Response(raw="<5.0> only"), 30.0) is None
    tokens = Response(raw="<t10> <t20>", spans=((3.0, 6.0),))
    assert lita_span(tokens, 30.0) == (3.0, 6.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The highlight timestamps are in the 2, 4, 6 seconds. "
            "Their saliency scores are 1.3, 1.7, 2.3.",
            [(2, 2, 1.3), (4, 4, 1.7), (6, 6, 2.3)],
        ),
        ("2 - 6 seconds, score 4.5\n8 s: saliency 3", [(2, 6, 4.5), (8, 8, 3.0)]),
        ("score 4.5 at 2 - 6 seconds", [(2, 6, 4.5)]),
        ("At 2 s and 6 - 8 s. Scores: 4/5, 2/5", [(2, 2, 4.0), (6, 8, 2.0)]),
        ("There are 3 highlights: 2, 4, 6 seconds", [(2, 2, 1), (4, 4, 1), (6, 6, 1)]),
        ("2, 4, 6 seconds, scores 3.0, 2.0", [(2, 2, 3.0), (4, 4, 2.0), (6, 6, 2.0)]),
        ("2 and 4 seconds, score 3.0 on a scale from 1 to 5", [(2, 2, 3.0), (4, 4, 3.0)]),
        ("1. 2 s\n2. 00:06", [(2, 2, 1), (6, 6, 1)]),
        ("nothing", []),
    ],
)
def test_highlights_of_a_text(text: str, expected: list[tuple[float, ...]]) -> None:
    assert read_highlights(text) == [Marked(*row) for row in expected]


def test_a_curve_over_clips() -> None:
    item = Item("1", "v", "v", "?", None, duration=8.0)
    ranges = Response(text="2 - 6 seconds, score 4\n3 s, score 5", duration=8.0)
    assert curve(item, ranges, 4) == [0.0, 5.0, 4.0, 0.0]
    assert curve(item, Response(text="at 8 seconds"), 4) == [0.0, 0.0, 0.0, 1.0]
    assert curve(item, Response(text="at 9 seconds"), 4) is None  # behind the video
    tokens = Response(text="1.0 s 3.0 s", raw="<t1> <t3>", spans=((1.0, 3.0),))
    assert curve(item, tokens, 4) == [1.0, 1.0, 0.0, 0.0]
    assert curve(item, Response(text="at 3 s, score 0"), 4) == [0.0] * 4  # said, and no failure
    assert curve(item, Response(text="at 3 s", error="x"), 4) is None


def test_timesuites_highlights() -> None:
    listed = "highlight timestamps are in the 3, 4, 5 seconds. Their saliency scores are 1.3, 2.0"
    assert official_curve(listed, 8.0, 4) == [0.0, pytest.approx(3.3 / 2), 0.0, 0.0]  # 5 → (5−1)/2
    assert official_curve(listed.replace(", 2.0", ", 2"), 8.0, 4) == [
        0.0,
        pytest.approx(0.65),  # whole numbers are no scores
        0.0,
        0.0,
    ]
    assert official_curve("at 3 seconds", 8.0, 4) is None  # no word "score"
    lines = "\n".join(f"second {t}: score {s}" for t, s in ((4, 1.5), (20, 2.5), (30, 3.5)))
    found = official_curve(lines, 40.0, 20)
    assert found is not None and found[9] == 1.5 and found[14] == 2.5  # shifted: 4 s is lost


@pytest.mark.parametrize(
    "text",
    [
        "1 - 4 seconds, spread butter.\n5 - 8 seconds, fry it.",
        "1.0 - 4.0 seconds: spread butter\n\n5.0 - 8.0 seconds: fry it",
        "1. 1 - 4 seconds, spread butter.\n2. 5 - 8 seconds, fry it.",
        "- **1s - 4s**: spread butter\n- **5s - 8s**: fry it",
        "From 0:01 to 0:04, spread butter. From 0:05 to 0:08, fry it.",
        '[{"start": 1, "end": 4, "caption": "spread butter"},'
        ' {"start": 5, "end": 8, "caption": "fry it"}]',
        '```json\n[{"timestamp": [1, 4], "sentence": "spread butter"},'
        ' {"timestamp": "0:05 - 0:08", "sentence": "fry it"}]\n```',
        "spread butter from 1 s to 4 s. fry it from 5 s to 8 s",
    ],
)
def test_events_of_a_text(text: str) -> None:
    found = events(ITEM, Response(text=text, raw=text))
    plain = [(e.start, e.end, e.sentence.rstrip(".").lower()) for e in found]
    assert plain == [(1.0, 4.0, "spread butter"), (5.0, 8.0, "fry it")]


def test_events_of_time_tokens() -> None:
    spans = ((1.0, 4.0), (5.0, 8.0))
    raw = "<t2> <t7> spread butter . <t8> <t13> fry it .<|end|>"
    found = events(ITEM, Response(text="1.0 s 4.0 s spread …", raw=raw, spans=spans))
    assert found == [Event(1.0, 4.0, "spread butter"), Event(5.0, 8.0, "fry it")]
    digits = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")

    def absolute(number: int) -> str:
        code = "".join(f"<TIME_{digits[int(c)]}>" for c in f"{number:04d}")
        return code + "<TIME_DOT><TIME_ZERO>"

    raw = f"{absolute(1)} - {absolute(4)} seconds, spread butter."
    assert events(ITEM, Response(raw=raw, spans=spans)) == [Event(1.0, 4.0, "spread butter")]
    assert events(ITEM, Response(raw=raw, error="x")) == []
    assert events(ITEM, Response(text="A man fries butter.")) == []


def test_scripts_are_given_digits_for_digit_tokens() -> None:
    code = AbsoluteTime()
    raw = f"{code.encode(12.3, 0.0)} - {code.encode(15.0, 0.0)} seconds.<|im_end|>"
    response = Response(text=code.readable(raw, 60.0), raw=raw)
    assert tvg_span(response.text) is None  # "12.3 s - 15.0 s": a unit before the dash
    assert script_text(response) == "0012.3 - 0015.0 seconds."
    assert tvg_span(script_text(response)) == timelens_span(script_text(response)) == (12.3, 15.0)
    assert script_text(Response(text="5 - 9", raw="5 - 9</s>")) == "5 - 9"


@pytest.mark.parametrize(
    "raw", ["<t12> <t15>", "from <t12> to <t15> he waves .", "At <t12> - <t15>"]
)
def test_scripts_are_given_the_seconds_of_relative_tokens(raw: str) -> None:
    code = RelativeTime()
    spans = tuple((s.start, s.end) for s in code.parse(raw, 198.0).spans)
    said = script_text(Response(text=code.readable(raw, 198.0), raw=raw, spans=spans))
    assert tvg_span(said) == timelens_span(said) == (24.0, 30.0)
    with pytest.raises(InputError, match="without their seconds"):
        script_text(Response(text=code.readable(raw, 198.0), raw=raw))
    assert script_text(Response(text="2.0 s", raw="<t1>")) == "2.0 s"  # one time is no pair


def test_what_captioning_scripts_read() -> None:
    text = "1 - 4 seconds, spread Butter.\n5 - 8 seconds, fry it."
    assert timechat_events(text) == [(1, 4, "spread butter."), (5, 8, "fry it.")]
    led = "Here are the steps: " + text  # shifts all captions by one
    assert timechat_events(led)[0] == (1, 4, "here are the steps:")
    short = "1 - 4 seconds, fry.\n5 - 8 seconds, cut the bread."  # ", fry." is short enough to go
    assert timechat_events(short)[0][:2] == (1, 4)
    told = "Start time: 1 s\nEnd time: 4\nDescription: spread butter"
    assert timechat_events(told) == [(1, 4, "spread butter")]
    assert timechat_events("nothing at all") == []
    answer = (
        '[{"event": "a man runs", "timestamps": "from 00 to 20"},'
        ' {"event": "a man runs", "timestamps": "from 21 to 49"},'
        ' {"event": "he sits", "timestamps": "from 50 to 99"}]'
    )
    assert vtimellm_events(answer, 200.0) == [(0, 100, "a man runs"), (100, 200, "he sits")]
    assert vtimellm_events("1 - 4 seconds, x", 200.0) is None
    assert vtimellm_events('[{"event": "x"}]', 200.0) is None
    rows = [Event(0, 2, "a dog"), Event(2, 4, "a dog"), Event(9, 10, "a dog")]
    assert merge_alike(rows, gap=1) == [Event(0, 4, "a dog"), Event(9, 10, "a dog")]
