"""Times in words: each wording with its spans, or with nothing where there is none to be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vidllm.answertext import answer_text, plain, unfinished
from vidllm.eval.tasks import Item, Response
from vidllm.eval.tasks.captions_text import events
from vidllm.eval.tasks.highlights_text import read_highlights
from vidllm.eval.tasks.needle import action_in
from vidllm.eval.tasks.spans_text import all_spans
from vidllm.moments import pieces
from vidllm.timecode import AbsoluteTime, RelativeTime, TextTime
from vidllm.timetext import find_times, read_time

#: Of all videos here, in seconds.
DURATION = 4000.0
UNREAD: list[tuple[float, float]] = []

CLOCKS = [
    ("00:12 - 01:15", [(12, 75)]),
    ("00:12 to 01:15", [(12, 75)]),
    ("0:05–0:09", [(5, 9)]),
    ("00:00:18-00:00:23", [(18, 23)]),
    ("1:00:02.5 – 1:00:05", [(3602.5, 3605)]),
    ("00:00:12,500 --> 00:00:15,250", [(12.5, 15.25)]),  # subtitles
    ("[00:05 --> 00:12]", [(5, 12)]),
    ("(00:05 - 00:12)", [(5, 12)]),
    ("[00:05] - [00:12]", [(5, 12)]),
    ("[0:05, 0:12]", [(5, 12)]),
    ("It begins at 00:00:18 and ends at 00:00:23.", [(18, 23)]),
    ("between 0:12 and 0:15.5", [(12, 15.5)]),
    ("0:05,0:09", [(5, 9)]),
    ("The event is at 00:05 and over by 00:09.", [(5, 9)]),
    ("00:00 - 00:05: A man enters.\n00:05 - 00:12: He waves.", [(0, 5), (5, 12)]),
    ("00:05-00:09; he waves", [(5, 9)]),
    ("00:05-00:09) he waves", [(5, 9)]),
    ("00:05-00:09.", [(5, 9)]),
    ("00:05-00:09\nhe waves", [(5, 9)]),
    ("1:02 - 10:03", [(62, 603)]),
    ("1'05\" - 1'20\"", [(65, 80)]),
    ("1′05″ – 1′20″", [(65, 80)]),
    ("100:00 - 100:30", [(4000, 4000)]),  # held in the video
]
UNITS = [
    ("5.0 - 12.0: A man waves.", [(5, 12)]),
    ("5.0 - 12.0. A man waves.", [(5, 12)]),
    ("5.0 - 12.0, a man waves.", [(5, 12)]),
    ("5.0 - 12.0- a man waves.", [(5, 12)]),
    ("5.0 - 12.0) a man waves.", [(5, 12)]),
    ("5.0 - 12.0; a man waves.", [(5, 12)]),
    ("5.0 - 12.0\na man waves.", [(5, 12)]),
    ("time: 5.0 - 12.0", [(5, 12)]),
    ("12.3 - 15 seconds", [(12.3, 15)]),
    ("from 12s to 15s", [(12, 15)]),
    ("12s - 15s", [(12, 15)]),
    ("12s-15s: he waves", [(12, 15)]),
    ("12.5sec–15.0sec.", [(12.5, 15)]),
    ("12 secs to 15 secs", [(12, 15)]),
    ("1m5s-1m20s", [(65, 80)]),
    ("0m12s - 0m15s", [(12, 15)]),
    ("1m05 - 1m20", [(65, 80)]),
    ("1h02m - 1h05m", [(3720, 3900)]),
    ("1h 2m 3s to 1h 2m 5.5s", [(3723, 3725.5)]),
    ("1 min 5 s to 2 minutes and 3.5 seconds", [(65, 123.5)]),
    ("1 hour 2 minutes - 1 hour 3 minutes", [(3720, 3780)]),
    ("1 to 2 minutes", [(60, 120)]),
    ("1.5-2 min", [(90, 120)]),
    ("12500 ms - 15000 ms", [(12.5, 15)]),
    ("12500 - 15000 milliseconds", [(12.5, 15)]),
    ("From the 12-second mark to the 15-second mark", [(12, 15)]),
    ("from 12.5 Sekunden bis 15 Sekunden", [(12.5, 15)]),
    ("von 12,5 bis 15,0 Sekunden", [(12.5, 15)]),
    ("entre 12,5 et 15 secondes", [(12.5, 15)]),
    ("с 12 до 15 секунд", [(12, 15)]),
    ("15 - 12", [(12, 15)]),
    ("approximately 12.5s to approximately 15s", [(12.5, 15)]),
    ("~12.5s - ~15s", [(12.5, 15)]),
    ("12.5s ... 15s", [(12.5, 15)]),
    ("12.5..15.0", [(12.5, 15)]),
    ("12.5s -> 15s", [(12.5, 15)]),
    ("12.5s => 15s", [(12.5, 15)]),
    ("12.5s up to 15s", [(12.5, 15)]),
    ("-1.0 - 15.0", [(0, 15)]),
    ("from -0.5 to 3.0 s", [(0, 3)]),
    ("+1.0 - +15.0", [(1, 15)]),
    ("1,234.5 - 1,240.0 seconds", [(1234.5, 1240)]),
    ("12,5 - 15,0 s", [(12.5, 15)]),
    ("12,5 s bis 15 s", [(12.5, 15)]),
    ("[12,5; 15,0]", [(12.5, 15)]),
    ("[12,15]", [(12, 15)]),
    ("(12,15)", [(12, 15)]),
    ("[12.3, 15.0]", [(12.3, 15)]),
    ("0 - 99999", [(0, 4000)]),
]
UNICODE = [
    ("12.5s → 15s", [(12.5, 15)]),
    ("12.5s ⇒ 15s", [(12.5, 15)]),
    ("12.5s ➔ 15s", [(12.5, 15)]),
    ("12.5s ~ 15s", [(12.5, 15)]),
    ("12.5s～15s", [(12.5, 15)]),
    ("12.5s〜15s", [(12.5, 15)]),
    ("12.5s — 15s", [(12.5, 15)]),
    ("12.5s―15s", [(12.5, 15)]),
    ("12.5‑15.0", [(12.5, 15)]),
    ("12.5−15.0", [(12.5, 15)]),
    ("12.5－15.0", [(12.5, 15)]),
    ("12.5s…15s", [(12.5, 15)]),
    ("１２．５－１５．０", [(12.5, 15)]),
    ("１２：３０ － １２：４５", [(750, 765)]),
    ("١٢ - ١٥", [(12, 15)]),
    ("१२.५ - १५", [(12.5, 15)]),
    ("从12.5秒到15秒", [(12.5, 15)]),
    ("從12.5秒至15秒", [(12.5, 15)]),
    ("12.5秒到15秒：一个人走进来。", [(12.5, 15)]),
    ("在12秒和15秒之间", [(12, 15)]),
    ("1分5秒到1分20秒", [(65, 80)]),
    ("1分05秒-1分20秒", [(65, 80)]),
    ("1小时2分到1小时3分", [(3720, 3780)]),
    ("12.5秒から15秒まで", [(12.5, 15)]),
    ("12.5초에서 15초까지", [(12.5, 15)]),
    ("12.5\u00a0s\u2009–\u200915\u00a0s", [(12.5, 15)]),
    ("12.\u200b5 - 15", [(12.5, 15)]),
    ("【12.5秒 - 15秒】", [(12.5, 15)]),
    ("“12.5” – “15.0”", [(12.5, 15)]),
    ("12½ - 15", UNREAD),  # a piece would be left over
    ("12² - 15", UNREAD),
]
DRESS = [
    ("**12.5s** to **15.0s**", [(12.5, 15)]),
    ("**12.5s to 15.0s**: he waves", [(12.5, 15)]),
    ("*12.5* - *15.0*", [(12.5, 15)]),
    ("__12.5__ - __15.0__", [(12.5, 15)]),
    ("`12.5` - `15.0`", [(12.5, 15)]),
    ("```\n12.5 - 15.0\n```", [(12.5, 15)]),
    ("from <12.5 seconds> to <15.0 seconds>", [(12.5, 15)]),
    ("<12.5s> - <15.0s>", [(12.5, 15)]),
    ("<5.0> <9.5> He falls.", [(5, 9.5)]),
    ("<b>12.5</b> - <b>15.0</b>", [(12.5, 15)]),
    ("<start>12.5</start><end>15.0</end>", [(12.5, 15)]),
    ("(12.5s) to (15.0s)", [(12.5, 15)]),
    ("\"12.5\" to '15.0'", [(12.5, 15)]),
    (r"$12.5$ to $15.0$", [(12.5, 15)]),
    (r"\boxed{12.5 - 15.0}", [(12.5, 15)]),
    (r"$12.5\,\text{s} \to 15.0\,\text{s}$", [(12.5, 15)]),
    ("- 12.5 - 15.0", [(12.5, 15)]),
    ("| 0:05 | 0:09 | he waves |", [(5, 9)]),
    ("12.5 - 15.0<|im_end|>", [(12.5, 15)]),
    ("12.5 - 15.0</s>", [(12.5, 15)]),
]
JSON = [
    ('{"relevant_windows": [["12.5", "15.0"], ["20.0", "30.0"]]}', [(12.5, 15), (20, 30)]),
    ('{"relevant_windows": [[12.5, 15.0], [20, 30]]}', [(12.5, 15), (20, 30)]),
    ("[[12.5, 15.0],[20,30]]", [(12.5, 15), (20, 30)]),
    ('```json\n{"start": 12.5, "end": 15}\n```', [(12.5, 15)]),
    ('{"start_time": "00:05", "end_time": "00:09"}', [(5, 9)]),
    ('{"start": "5s", "end": "9.5s"}', [(5, 9.5)]),
    ('{"end": 9, "start": 5}', [(5, 9)]),
    ('{"from": 5, "to": 9}', [(5, 9)]),
    ('[{"start": 5, "end": 9}, {"start": 12, "end": 15}]', [(5, 9), (12, 15)]),
    ("{'start': 5.0, 'end': 9.0}", [(5, 9)]),
    ('{"timestamps": [5.0, 9.0]}', [(5, 9)]),
    ('{"span": "5.0 - 9.0"}', [(5, 9)]),
    ('{"answer": "from 5 to 9 seconds"}', [(5, 9)]),
]
SEVERAL = [
    ("5.0 - 9.0, 12.5 - 14.0 and 20 - 21", [(5, 9), (12.5, 14), (20, 21)]),
    ("1. 0 - 4 seconds\n2. 10.5 - 12 seconds", [(0, 4), (10.5, 12)]),
    ("- 0:00-0:04: he sits\n- 0:04-0:09: he stands", [(0, 4), (4, 9)]),
    ("From 1 to 4 s and from 6 to 9 s.", [(1, 4), (6, 9)]),
    ("between 1 and 4 and between 6 and 9", [(1, 4), (6, 9)]),
    ("1s-4s/6s-9s", UNREAD),
    ("2 - 3 people dance from 5 to 10 s", [(5, 10)]),
    ("2 people, from 5 s until 9 s", [(5, 9)]),
    ("Scene 1: 0 - 4 s. Scene 2: 4 - 9 s.", [(0, 4), (4, 9)]),
    ("Starts at 5 seconds.\nIt ends at 9.5 seconds", [(5, 9.5)]),
    ("Start: 5.2\nEnd: 9", [(5.2, 9)]),
    ("start 5 end 9", [(5, 9)]),
    ("first at 5.0 s, gone by 9.5 s", [(5, 9.5)]),
    ("5, 9", [(5, 9)]),
    ("5.0, 9.5", [(5, 9.5)]),
]
THINKING = [
    ("<think>He enters from 3.0 to 5.0 s</think><answer>12.54 to 17.83</answer>", [(12.54, 17.83)]),
    ("<think>3 - 5</think>\n12 - 15", [(12, 15)]),
    ("3 - 5, no.</think>\n\n12 - 15", [(12, 15)]),
    ("<think>3 - 5</think> 6 - 7 <think>8 - 9</think> 12 - 15", [(12, 15)]),
    ("<thinking>3 - 5</thinking>12 - 15", [(12, 15)]),
    ("<THINK>3 - 5</THINK >12 - 15", [(12, 15)]),
    ("[THINK]3 - 5[/THINK]12 - 15", [(12, 15)]),
    ("◁think▷3 - 5◁/think▷12 - 15", [(12, 15)]),
    ("<answer>3 - 5</answer> or rather <answer>12 - 15</answer> of 60 - 70", [(12, 15)]),
    ("12 - 15</answer>", [(12, 15)]),
    ("<answer>12 - 15", [(12, 15)]),
    ("It is 3 - 5.\n<answer>\n12 - 15\n</answer>", [(12, 15)]),
    ("<think>He enters from 3.0 to 5.0 s, so", UNREAD),
    ("<think>3 - 5</think>", UNREAD),
    ("<think>3 - 5</think><answer></answer>", UNREAD),
    ("<think>3 - 5</think> 6 - 7 <think> 8 - 9", UNREAD),
]
NOTHING = [
    "",
    "no idea",
    "5",
    "at 3 seconds",
    "At 12.5 seconds.",
    "on 2024-05-06",
    "05/06/2024 - 07/06/2024",
    "5.6.2024 - 7.6.2024",
    "5 - 9 May 2024",
    "May 5 - 9",
    "from 10:30 am to 11:15 am",
    "The score is 3 - 2.",
    "They won 3-2.",
    "It stands 21 - 19 points.",
    "score: 4 - 5",
    "The score was 21:19.",
    "16:9 to 4:3",
    "a ratio of 16:9",
    "ratio 4 - 3",
    "version 1.2.3 to 4",
    "version 1.2 to 1.4",
    "v1.2 - v1.4",
    "a 4-year-old",
    "4-5-year-olds play",
    "2 - 3 people",
    "between 20 and 30 people",
    "from 2 to 3 dogs",
    "The 2 men meet 3 others.",
    "rises from 20% to 40%",
    "20 - 40 %",
    "frames 12 - 15",
    "from frame 12 to frame 15",
    "pages 5 - 9",
    "covid-19 to 20",
    "A12 - A15",
    "5 - 9 - 12",
    "1 - 5 kg",
    "5km - 9km",
    "$5 - $9",
    "5th to 9th",
    "720p - 1080p",
    "4/5 - 5/5",
    "5 m/s to 9 m/s",
    "1.2.3 - 4.5.6",
    "00:00:12:05 - 00:00:15:10",
    "1,234 - 1,240",  # thousands or thousandths
    "1 min - 20",
    "12.5s15.0s",
    "1m5 s2 - 1m20s",
    "5 - X",
    "from the start to the end",
    "twelve to fifteen",
    "10.0.0.1 - 10.0.0.9",
    "#5 - #9",
    "+49 30 1234-5678",
]
TABLE = [
    *CLOCKS, *UNITS, *UNICODE, *DRESS, *JSON, *SEVERAL, *THINKING, *((t, UNREAD) for t in NOTHING)
]  # fmt: skip


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
