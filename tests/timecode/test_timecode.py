"""Time codes: what they write, what they read, and what an answer without a time means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from authors.lita import explanation

from vidllm.errors import InputError
from vidllm.timecode import (
    AbsoluteTime,
    RelativeTime,
    Span,
    TextTime,
    TimeCode,
    get_timecode,
    number_to_token,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
RELATIVE, ABSOLUTE, TEXT = RelativeTime(), AbsoluteTime(), TextTime()


def digits(seconds: float) -> str:
    return ABSOLUTE.encode(seconds, 0.0)


def ends(code: TimeCode, answer: str, duration: float) -> list[tuple[float, float]]:
    return [(span.start, span.end) for span in code.parse(answer, duration).spans]


def test_relative_tokens_are_litas() -> None:
    encode = np.load(GOLDENS / "lita_time_encode.npz")
    rows = zip(encode["timestamps"], encode["duration"], encode["token_ids"], strict=True)
    for times, duration, ids in rows:
        assert [RELATIVE.index(float(t), float(duration)) for t in times] == ids.tolist()
    for duration, index, seconds in np.load(GOLDENS / "lita_time_decode.npz")["dur_idx_time"]:
        assert RELATIVE.seconds(int(index), float(duration)) == pytest.approx(seconds, abs=1e-9)


def test_relative_answers_are_read_as_litas() -> None:
    data = np.load(GOLDENS / "lita_parse_iou.npz")
    for text, duration, sentence, span in zip(
        data["texts"], data["durations"], data["sentences"], data["spans"], strict=True
    ):
        for code in (RELATIVE, RelativeTime(faithful=True)):
            assert ends(code, str(text), float(duration)) == [tuple(span)]
        assert explanation(str(text)) == str(sentence)
    for (one, two), iou in zip(data["pairs"], data["iou"], strict=True):
        assert Span(*map(float, one)).iou(Span(*map(float, two))) == pytest.approx(iou)


@pytest.mark.parametrize("duration", [0.3, 1.0, 9.99, 83.736, 3600.0, 86400.0])
@pytest.mark.parametrize("n", [2, 100, 1000])
def test_relative_tokens_come_back(duration: float, n: int) -> None:
    code = RelativeTime(n)
    for k in range(n):
        assert code.index(code.seconds(k, duration), duration) == k
        assert code.decode(f"<t{k}>", duration) == code.seconds(k, duration)
    assert len(code.special_tokens) == n


def test_relative_clamps_unless_faithful() -> None:
    assert RELATIVE.encode(61, 60) == "<t99>" and RELATIVE.encode(-1, 60) == "<t0>"
    assert RelativeTime(faithful=True).encode(61, 60) == "<t101>"
    assert RELATIVE.encode(0, 0) == "<t0>" and RELATIVE.seconds(7, 0) == 0.0
    assert RELATIVE.parse("<t0> <t500>", 99).spans == (Span(0.0, 99.0),)


def test_relative_reads_pairs_anywhere_and_writes_seconds() -> None:
    parsed = RELATIVE.parse("It spins from <t20> to <t10> , then from <t50> to <t60> .", 99.0)
    assert [tuple(s) for s in parsed.spans] == [(10, 20, 1), (50, 60, 1)]
    assert parsed.text == "It spins from 20.0 s to 10.0 s , then from 50.0 s to 60.0 s ."
    assert not parsed.failed


def test_relative_lone_token_does_not_shift_the_pairs() -> None:
    assert ends(RELATIVE, "after <t5> from <t10> to <t20>", 99.0) == [(10, 20)]
    assert ends(RELATIVE, "<t10> <t20> text <t30>", 99.0) == [(10, 20)]
    assert ends(RelativeTime(faithful=True), "<t1> <t2> a <t3> <t4>", 99.0) == [(1, 2)]


@pytest.mark.parametrize("answer", ["", "no idea", "<t5> alone", "5 seconds"])
def test_a_failed_answer_is_the_whole_video_for_lita_and_a_miss_elsewhere(answer: str) -> None:
    whole = RELATIVE.parse(answer, 30.0)
    assert whole.failed and whole.spans == (Span(0.0, 30.0),)
    for code in (ABSOLUTE, TEXT):
        miss = code.parse(answer, 30.0)
        assert miss.failed and miss.spans == ()


def test_digit_tokens_are_vtg_llms() -> None:
    data = np.load(GOLDENS / "vtgllm_number_to_token.npz")
    for number, tokens in zip(data["numbers"], data["tokens"], strict=True):
        assert number_to_token(str(number)) == str(tokens)
    with pytest.raises(InputError):
        number_to_token("1.2.3")


def test_digit_answers_are_read_as_vtg_llms_when_faithful() -> None:
    data = np.load(GOLDENS / "vtgllm_parse_tvg.npz")
    for text, spans in zip(data["texts"], json.loads(str(data["spans"])), strict=True):
        found = ends(AbsoluteTime(faithful=True), str(text), 60.0)
        assert [list(span) for span in found] == spans


def test_digit_answers_are_read_right_by_default() -> None:
    texts = [str(text) for text in np.load(GOLDENS / "vtgllm_parse_tvg.npz")["texts"]]
    expected = [[(2.5, 10)], [(24.3, 30.4)], [(5, 9.5)], [(18, 23)], [(20, 30), (1, 2)], [], []]
    assert [ends(ABSOLUTE, text, 60.0) for text in texts] == expected


def test_digit_tokens_round_pad_and_grow() -> None:
    assert digits(12.96) == number_to_token("13.0") and digits(7) == number_to_token("7.0")
    for seconds in (0.0, 0.5, 99.9, 1234.5, 9999.9, 12345.6):
        assert ABSOLUTE.decode(digits(seconds), 0.0) == seconds
        assert digits(seconds).count("<") == (6 if seconds < 10000 else 7)
    assert AbsoluteTime(faithful=True).encode(12345.6, 0.0) == number_to_token("12345.6")
    with pytest.raises(InputError):
        digits(-1.0)


def test_digit_answers_hold_several_spans_and_read_well() -> None:
    parsed = ABSOLUTE.parse(
        f"{digits(2.5)} - {digits(10)} seconds and {digits(12)}-{digits(99)}", 60
    )
    assert parsed.spans == (Span(2.5, 10.0), Span(12.0, 60.0))
    assert parsed.text == "2.5 s - 10.0 s and 12.0 s-99.0 s"
    spaced = digits(3.5).replace("><", "> <")
    assert ends(ABSOLUTE, f"from {spaced} to {digits(4)} .", 60) == [(3.5, 4.0)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12.3 - 15 seconds", [(12.3, 15)]),
        ("from 12s to 15s", [(12, 15)]),
        ("12s - 15s", [(12, 15)]),
        ("From 12 s until 15 s.", [(12, 15)]),
        ("between 12 and 15 seconds", [(12, 15)]),
        ("[12.3, 15.0]", [(12.3, 15)]),
        ("00:12 to 01:15", [(12, 75)]),
        ("00:00:18-00:00:23", [(18, 23)]),
        ("1:00:02.5 – 1:00:05", [(3602.5, 3605)]),
        ("1 min 5 s to 2 minutes and 3.5 seconds", [(65, 123.5)]),
        ("1 to 2 minutes", [(60, 120)]),
        ("1 hour 2 minutes - 1 hour 3 minutes", [(3720, 3780)]),
        ("Starts at 5 seconds.\nIt ends at 9.5 seconds", [(5, 9.5)]),
        ("It begins at 00:00:18 and ends at 00:00:23.", [(18, 23)]),
        ("15 - 12", [(12, 15)]),
        ("5.0 - 9.0, 12.5 - 14.0 and 20 - 21", [(5, 9), (12.5, 14), (20, 21)]),
        ("2 - 3 people dance from 5 to 10 s", [(5, 10)]),
        ("0 - 99999", [(0, 4000)]),
        ("on 2024-05-06", []),
        ("version 1.2.3 to 4", []),
        ("at 3 seconds", []),
        ("a 4-year-old", []),
        ("5", []),
    ],
)
def test_text_answers(answer: str, expected: list[tuple[float, float]]) -> None:
    parsed = TEXT.parse(answer, 4000.0)
    found = [time for span in parsed.spans for time in (span.start, span.end)]
    assert found == pytest.approx([time for pair in expected for time in pair])
    assert parsed.failed == (not expected) and parsed.text == answer.strip()


def test_text_times() -> None:
    assert TEXT.encode(12.34, 60) == "12.3" and TEXT.stamps([0, 1.26], 60) == ["0.0s", "1.3s"]
    for code, seconds in {"12.3": 12.3, "12 s": 12, "01:20": 80, "1:02:03.5": 3723.5}.items():
        assert TEXT.decode(code, 60) == pytest.approx(seconds)


CAPTIONS = [(Span(0.0, 9.0), "the red star spins"), (Span(10.0, 20.5), "it leaves, then blinks")]


FORMS = [
    "from {a} to {b} {x} . from {c} to {d} {y}.",
    "{x} from {a} to {b} . {y} from {c} to {d} .",
    "{x} from {a} to {b}. {y} from {c} to {d}.",
    "{a} - {b} seconds, {x}. {c} - {d} seconds, {y}.",
]


@pytest.mark.parametrize(
    ("code", "form"),
    [
        (RelativeTime(1000), "{a} {b} {x} . {c} {d} {y} ."),
        (RelativeTime(1000), "{a} {b} {x}. {c} {d} {y}."),
        *((code, form) for code in (RelativeTime(1000), ABSOLUTE, TEXT) for form in FORMS),
    ],
)
def test_dense_captions(code: TimeCode, form: str) -> None:
    duration = 99.9
    a, b, c, d = (code.encode(t, duration) for span, _ in CAPTIONS for t in span[:2])
    answer = form.format(a=a, b=b, c=c, d=d, x=CAPTIONS[0][1], y=CAPTIONS[1][1])
    assert code.captions(answer, duration) == CAPTIONS
    assert ends(code, answer, duration) == [(0, 9), (10, 20.5)]


def test_captions_of_nothing_are_none() -> None:
    assert RELATIVE.captions("no times here", 10.0) == []
    assert RELATIVE.captions("<t1> <t2>", 10.0) == []


def test_stamps_are_one_part_a_frame() -> None:
    assert RELATIVE.stamps(np.array([0.0, 30.0, 60.0]), 60.0) == ["<t0>", "<t50>", "<t99>"]
    assert ABSOLUTE.stamps([1.0], 60.0) == [number_to_token("1.0")]


def test_codes_are_found_by_name_and_refuse_what_they_do_not_know() -> None:
    assert get_timecode("relative", n=10).special_tokens[-1] == "<t9>"
    assert get_timecode("absolute") == ABSOLUTE and get_timecode("text") == TEXT
    for wrong, message in (("relativ", "did you mean relative"), ("zzz", "did you mean")):
        with pytest.raises(InputError, match=message):
            get_timecode(wrong)
    with pytest.raises(InputError, match="no option 'm'"):
        get_timecode("relative", m=3)
    with pytest.raises(InputError, match="at least 2"):
        RelativeTime(1)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="duration"):
            RELATIVE.parse("<t1> <t2>", bad)
        with pytest.raises(InputError, match="time"):
            TEXT.encode(float("nan"), 1.0)
    for code in (RELATIVE, ABSOLUTE, TEXT):
        with pytest.raises(InputError):
            code.decode("soon", 10.0)
