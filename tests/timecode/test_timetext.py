"""Times in words: each wording with its spans, or with nothing where there is none to be read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from wordings import DURATION, TABLE

from vidllm.ask.moments import pieces
from vidllm.eval.tasks import Item, Response
from vidllm.eval.tasks.captions_text import events
from vidllm.eval.tasks.highlights_text import read_highlights
from vidllm.eval.tasks.needle import action_in
from vidllm.eval.tasks.spans_text import all_spans
from vidllm.timecode import (
    AbsoluteTime,
    RelativeTime,
    TextTime,
    answer_text,
    find_times,
    plain,
    read_time,
    unfinished,
)


def flat(spans: object) -> list[float]:
    return [float(t) for span in spans for t in span[:2]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("answer", "spans"), TABLE, ids=range(len(TABLE)))
def test_every_wording_is_read_alike_by_all(answer: str, spans: list[tuple[float, float]]) -> None:
    expected = pytest.approx(flat(spans))
    assert flat(TextTime().parse(answer, DURATION).spans) == expected
    assert flat(AbsoluteTime().parse(answer, DURATION).spans) == expected
    item = Item("1", "v", "v", "?", None, duration=DURATION)
    assert flat(all_spans(item, Response(text=answer))) == expected
    assert "".join(piece.text for piece in pieces(answer, DURATION)) == answer


def test_there_are_enough_wordings() -> None:
    assert len(TABLE) >= 120 and len({text for text, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    "answer",
    [
        "00:00 - 00:05: A man enters.\n00:05 - 00:12: He waves.",
        "Two:\n1. **0:00 - 0:05**: A man enters.\n2. **0:05 - 0:12**: He waves.\n\nIn all, two.",
        "A man enters (0:00 - 0:05).\nHe waves (0:05 - 0:12).",
        "A man enters: 0:00 - 0:05.\nHe waves: 0:05 - 0:12.\nThat is all.",
        "Event 1: 0 - 5 s: A man enters.\nEvent 2: 5 - 12 s: He waves.",
        "[00:00 - 00:05] A man enters.\n[00:05 - 00:12] He waves.",
        "0.0s – 5.0s — A man enters.\n5.0s – 12.0s — He waves.",
        "### 0:00-0:05\nA man enters.\n\n### 0:05-0:12\nHe waves.",
        "<0.0 seconds> - <5.0 seconds>: A man enters. <5.0 seconds> - <12.0 seconds>: He waves.",
        "0:00-0:05：A man enters。\n0:05-0:12：He waves。",
        "| 0:00 | 0:05 | A man enters |\n| 0:05 | 0:12 | He waves |",
        "<think>0 - 3: nobody</think>0 - 5 s: A man enters.\n5 - 12 s: He waves.",
        "0 - 5 A man enters. 5 - 12 He waves.",
        "0:00-0:05:A man enters.0:05-0:12:He waves.",
        "1) 0,0 - 5,0 s: A man enters.\n2) 5,0 - 12,0 s: He waves.",
        "- A man enters from 0 s to 5 s.\n- He waves from 5 s to 12 s.",
        "Start: 0.0, End: 5.0, Caption: A man enters.\nStart: 5.0, End: 12.0, Caption: He waves.",
        '{"events": [{"start": 0, "end": 5, "caption": "A man enters."},'
        ' {"start": "0:05", "end": "0:12", "caption": "He waves."}]}',
        '[{"timestamp": [0, 5], "sentence": "A man enters."},'
        ' {"timestamp": "5 - 12", "sentence": "He waves."}, {"timest',  # cut off
        "[{'start_time': '0:00', 'end_time': '0:05', 'event': 'A man enters.'},"
        " {'start_time': '0:05', 'end_time': '0:12', 'event': 'He waves.'}]",
    ],
)
def test_sentences_go_with_their_spans(answer: str) -> None:
    said = [(s.start, s.end, w.rstrip(".。")) for s, w in TextTime().captions(answer, 60.0)]
    assert said == [(0, 5, "A man enters"), (5, 12, "He waves")]
    item = Item("1", "v", "v", "?", None, duration=60.0)
    found = events(item, Response(text=answer, raw=answer))
    assert [(e.start, e.end, e.sentence.rstrip(".。")) for e in found] == said


def test_two_lone_times_are_no_caption() -> None:
    assert TextTime().captions("At 0:00 a man enters.\nAt 0:05 he waves.", 60.0) == []


def test_places_are_those_of_the_reply() -> None:
    reply = "<think>1 s - 2 s</think>**从12.5秒** → １５秒, at 0:20"
    found = [(p.text, p.seconds) for p in pieces(reply, 60.0) if p.seconds is not None]
    assert found == [("12.5秒", 12.5), ("１５秒", 15.0), ("0:20", 20.0)]
    assert [reply[t.begin : t.end] for t in find_times(reply)] == [text for text, _ in found]
    shown = plain(reply)
    assert [reply[shown.place[k]] for k in (shown.text.index("15"),)] == ["１"]


def test_one_time_is_read_whole_or_not_at_all() -> None:
    right = {
        "12.3": 12.3,
        "12 s": 12,
        "1:20": 80,
        "１２．５秒": 12.5,
        "**1m5s**": 65,
        "<12.5>": 12.5,
    }
    assert {text: read_time(text) for text in right} == right
    for text in ("", "soon", "1 - 2", "12 men", "1.2.3", "-3", "5 s or so", "12½", "9" * 400):
        assert read_time(text) is None


def test_the_codes_with_tokens_read_the_answer_alone() -> None:
    relative = RelativeTime()
    thought = "<think><t10> <t20></think> from <t30> to <t40> it spins"
    assert flat(relative.parse(thought, 99.0).spans) == [30, 40]
    assert relative.captions(thought, 99.0)[0][1] == "it spins"
    assert relative.parse("<think><t10> <t20>", 99.0).failed
    assert flat(RelativeTime(faithful=True).parse(thought, 99.0).spans) == [10, 20]  # as LITA's
    digits = AbsoluteTime().encode
    said = f"<think>{digits(1, 0)} - {digits(2, 0)}</think>{digits(3, 0)} - {digits(4, 0)}"
    assert flat(AbsoluteTime().parse(said, 60.0).spans) == [3, 4]
    assert AbsoluteTime().parse("<TIME_ONE>" * 500, 60.0).failed


def test_a_thinking_without_an_end_says_so() -> None:
    assert unfinished("<think>from 3 to 5") and answer_text("<think>from 3 to 5") == ""
    assert not unfinished("<think>x</think>3 - 5") and answer_text("</think> 3 ") == "3"
    assert "still thinking" in unfinished("<think>")[0]


def test_highlights_and_actions_come_from_the_answer() -> None:
    said = "<think>5 s, score 3</think>**2.5s** → **4s**, score 4"
    assert [tuple(m) for m in read_highlights(said)] == [(2.5, 4.0, 4.0)]
    assert [m.start for m in read_highlights("The 2,4,6 seconds. Scores: 1.3, 1.7, 2.3")] == [
        2,
        4,
        6,
    ]
    assert action_in("<think>it spins?</think>It jumps.") == "jumps"
    assert action_in("<think>It jumps") is None


HEAVY = [
    *("5 - ", "1,", "12:", "from ", "starts at 5 end ", "<", "<think>", "**5", "[5,", '"5"', " "),
    *("-", "5 min ", "the second ", "{", "A,", "answer is ", "!", "\\text{", "<TIME_ONE>", "秒5"),
]

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # seconds of this process's own work
from vidllm.eval.scores.letters import read_letter
from vidllm.timecode import AbsoluteTime
for unit in sys.argv[1:]:
    for end in ("", "x"):
        answer = (unit * 100_000)[:100_000] + end
        read_letter(answer, "ABCD", ["x", "A man", "dogs", "3"])
        if end:
            AbsoluteTime().captions(answer, 60.0)
"""


def test_a_long_answer_takes_work_in_proportion_to_its_length() -> None:
    """A square of 100,000 characters would take this process minutes; its limit ends it."""
    done = subprocess.run([sys.executable, "-c", LIMITED, *HEAVY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
