"""Times in words: each wording with its spans, or with nothing where there is none to be read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from wordings import DURATION, TABLE, UNREAD
from wordings_more import READ
from wordings_unread import NOT_READ

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


WORDINGS = [*TABLE, *READ, *((text, UNREAD) for text in NOT_READ)]


@pytest.mark.parametrize(("answer", "spans"), WORDINGS, ids=range(len(WORDINGS)))
def test_every_wording_is_read_alike_by_all(answer: str, spans: list[tuple[float, float]]) -> None:
    expected = pytest.approx(flat(spans))
    assert flat(TextTime().parse(answer, DURATION).spans) == expected
    assert flat(AbsoluteTime().parse(answer, DURATION).spans) == expected
    item = Item("1", "v", "v", "?", None, duration=DURATION)
    assert flat(all_spans(item, Response(text=answer))) == expected
    assert "".join(piece.text for piece in pieces(answer, DURATION)) == answer


def test_there_are_enough_wordings() -> None:
    assert len(WORDINGS) >= 700 and len({text for text, _ in WORDINGS}) == len(WORDINGS)


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


@pytest.mark.parametrize(
    "answer",
    [
        "De 0 à 5 secondes, A man enters. De 5 à 12 secondes, He waves.",
        "0秒から5秒まで、A man enters。\n5秒から12秒まで、He waves。",
        "A man enters（0秒から5秒まで）。\nHe waves（5秒から12秒まで）。",
        "0초부터 5초까지 A man enters. 5초부터 12초까지 He waves.",
        "在0秒到5秒之间，A man enters。在5秒到12秒之间，He waves。",
        "- 从0秒开始，到5秒结束：A man enters\n- 从5秒开始，到12秒结束：He waves",
        "A man enters entre 0 et 5 s.\nHe waves entre 5 et 12 s.",
        "A man enters zwischen 0 und 5 Sekunden. He waves zwischen 5 und 12 Sekunden.",
        "A man enters de 0 a 5 segundos. He waves de 5 a 12 segundos.",
        "Da 0 a 5 secondi, A man enters. Da 5 a 12 secondi, He waves.",
        "С 0 до 5 секунд A man enters. С 5 по 12 секунду He waves.",
        "Van 0 tot 5 seconden A man enters. Van 5 tot 12 seconden He waves.",
        "1) A man enters (during 0 - 5 s)\n2) He waves (during 5 - 12 s)",
        "| # | Start | End | Event |\n|---|---|---|---|\n| 1 | 0.0 | 5.0 | A man enters |\n"
        "| 2 | 5.0 | 12.0 | He waves |",
        '{"events": [{"time": {"start": 0, "end": 5}, "text": "A man enters"},'
        ' {"time": {"start": 5, "end": 12}, "text": "He waves"}]}',
        '[{"start_ms": 0, "end_ms": 5000, "caption": "A man enters"},'
        ' {"start_ms": 5000, "end_ms": 12000, "caption": "He waves"}]',
    ],
)
def test_words_of_a_range_are_no_part_of_its_sentence(answer: str) -> None:
    said = [(s.start, s.end, w.rstrip("。")) for s, w in TextTime().captions(answer, 60.0)]
    assert said == [(0, 5, "A man enters"), (5, 12, "He waves")]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "12.5秒から15秒まで",
            "12秒と15秒の間に",
            "12秒から15秒にかけて",
            "「12.5秒から15秒まで」",
        ),
        *(
            "12.5초부터 15초까지",
            "12초에서 15초 사이에",
            "从12.5秒到15秒",
            "在12秒和15秒之间",
            "约12秒到15秒",
        ),
        *(
            "自12秒起至15秒止",
            "大约从12秒开始，到15秒结束",
            "de 12,5 à 15 secondes",
            "entre 12 et 15 s",
        ),
        *("de la seconde 12 à la seconde 15", "von 12,5 bis 15 Sekunden", "ab 12 s bis 15 s"),
        *("zwischen 0:12 und 0:15", "desde 12,5 hasta 15 segundos", "de 12 a 15 segundos"),
        *("entre los 12 y los 15 segundos", "da 12,5 a 15 secondi", "tra 12 e 15 secondi"),
        *("dalle 0:12 alle 0:15", "de 12,5 até 15 segundos", "с 12,5 до 15 секунд", "с 12 по 15 с"),
        *("от 12 до 15 секунд", "van 12,5 tot 15 seconden", "tussen 12 en 15 seconden"),
        *("from 12 s until 15 s", "between 12 and 15 s", "at 12 - 15 s", "During 12 - 15 s"),
        *("from 12s up to 15s", "from 12 to 15 seconds of the video", "Start: 12, End: 15"),
        *("The event happens in 12 - 15 seconds.", "It starts at 12 s and ends at 15 s."),
    ],
)
def test_a_range_alone_has_no_sentence(answer: str) -> None:
    assert len(TextTime().parse(answer, 60.0).spans) == 1
    assert TextTime().captions(answer, 60.0) == []


def test_tokens_have_no_sentence_either() -> None:
    a, b = (AbsoluteTime().encode(t, 0) for t in (12.5, 15))
    for form in ("de {} à {} secondes", "{}秒から{}秒まで", "从{}秒到{}秒", "between {} and {}"):
        assert AbsoluteTime().captions(form.format(a, b), 60.0) == []
        assert RelativeTime().captions(form.format("<t10>", "<t20>"), 60.0) == []


def test_what_counts_frames_is_no_caption() -> None:
    said = '[{"start_frame": 0, "end_frame": 50, "caption": "A man enters"}]'
    assert TextTime().captions(said, 60.0) == []


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
    *("12. ", "5, 5 - ", "|5|6", "|-|\n|--|\n|5|6|\n", "no such 5 - 6. ", '{"a":}', "1. 5 ", "0: "),
    *("de de x 5 - 6 ", "(5) ", "5 or ", "not ", "\nfinal answer:", "1 200 s ", "start (5) "),
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


@pytest.mark.parametrize("part", range(4))
def test_a_long_answer_takes_work_in_proportion_to_its_length(part: int) -> None:
    """A square of 100,000 characters would take this process minutes; its limit ends it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *HEAVY[part::4]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
