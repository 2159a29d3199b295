"""Multiple-choice benchmarks: wrong files in one line, and subtitles in their time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_data_choice import MAKERS, SRT, write_json

from vidllm.errors import InputError
from vidllm.eval.tasks import get_task
from vidllm.eval.tasks.subtitles import (
    Cue,
    as_lines,
    read_json_subtitles,
    read_srt,
    seconds,
    within,
)

#: A file of each task that it cannot do without.
NEEDED = {
    "videomme": "videomme/test-00000-of-00001.parquet",
    "mlvu": "MLVU/json/3_ego.json",
    "longvideobench": "lvb_val.json",
    "egoschema": "subset_answers.json",
    "mvbench": "json/scene_transition.json",
    "nextqa": "nextqa/test.csv",
    "perceptiontest": "mc_question_valid.json",
}


def refused(name: str, data: Path) -> str:
    """The one line with which a task refuses a folder."""
    task = get_task(name)
    with pytest.raises(InputError) as error:
        task.items(data, task.splits[0])
    line = str(error.value)
    assert "\n" not in line and len(line) < 300
    return line


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    (tmp_path / NEEDED[name]).unlink()
    line = refused(name, tmp_path)
    assert Path(NEEDED[name]).name in line and get_task(name).home in line


Change = Callable[[Any], Any]


def without(field: str) -> Change:
    return lambda rows: [{k: v for k, v in row.items() if k != field} for row in rows]


def having(field: str, value: Any) -> Change:
    return lambda rows: [*rows[:-1], {**rows[-1], field: value}]


def in_question(field: str, value: Any) -> Change:
    def change(videos: dict[str, Any]) -> dict[str, Any]:
        videos["video_11"]["mc_question"][0][field] = value
        return videos

    return change


@pytest.mark.parametrize(
    ("name", "file", "change", "words"),
    [
        ("mlvu", "MLVU/json/3_ego.json", without("candidates"), "3_ego.json.*'candidates'"),
        ("mlvu", "MLVU/json/3_ego.json", having("answer", "Pink"), "3_ego.json.*'answer'.*Pink"),
        ("mlvu", "MLVU/json/3_ego.json", having("candidates", ["x"]), "'candidates'.*at least 2"),
        ("mlvu", "MLVU/json/3_ego.json", having("question_type", "x"), "'question_type'.*plotQA"),
        ("mlvu", "MLVU/json/3_ego.json", having("duration", "long"), "'duration'"),
        ("longvideobench", "lvb_val.json", having("correct_choice", 5), "'correct_choice'.*0 to 4"),
        ("longvideobench", "lvb_val.json", without("duration_group"), "'duration_group'"),
        ("longvideobench", "lvb_val.json", lambda rows: rows * 2, "two questions have the id"),
        ("longvideobench", "lvb_val.json", lambda rows: [], "no question"),
        ("longvideobench", "lvb_val.json", lambda rows: {"a": rows}, "lvb_val.json must hold a l"),
        ("egoschema", "questions.json", without("option 3"), "questions.json.*'option 3'"),
        ("egoschema", "subset_answers.json", lambda rows: {**rows, "zz": 1}, "zz is no q_uid"),
        (
            "egoschema",
            "subset_answers.json",
            lambda rows: dict.fromkeys(rows, 7),
            "subset_answers.json.*'answer'.*0 to 4",
        ),
        ("mvbench", "json/action_sequence.json", without("start"), "action_sequence.*'start'"),
        ("mvbench", "json/state_change.json", having("answer", "?"), "state_change.*'answer'"),
        ("perceptiontest", NEEDED["perceptiontest"], in_question("answer_id", 3), "video_11.*0 to"),
        ("perceptiontest", NEEDED["perceptiontest"], in_question("area", 2.5), "'area'.*text"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(
    name: str, file: str, change: Change, words: str, tmp_path: Path
) -> None:
    MAKERS[name](tmp_path)
    path = tmp_path / file
    write_json(path, change(json.loads(path.read_text(encoding="utf-8"))))
    assert re.search(words, refused(name, tmp_path))


def test_nextqa_names_line_and_column(tmp_path: Path) -> None:
    MAKERS["nextqa"](tmp_path)
    path = tmp_path / "nextqa/test.csv"
    right = path.read_text(encoding="utf-8")
    for old, new, words in (
        (",CH,", ",XX,", r"test.csv, line 2.*'type'.*CW.*'XX'"),
        (",0,6,", ",9,6,", r"test.csv, line 2.*'answer'.*0 to 4"),
        (",a4", ",b4", r"test.csv, line 2.*'a4' is missing"),
        (",pat with hand\n", "\n", r"test.csv, line 2.*columns"),
    ):
        path.write_text(right.replace(old, new, 1), encoding="utf-8")
        assert re.search(words, refused("nextqa", tmp_path))


def test_subtitles_that_are_not_there(tmp_path: Path) -> None:
    MAKERS["videomme-subtitles"](tmp_path)
    (tmp_path / "subtitle").rename(tmp_path / "elsewhere")
    assert "folder subtitle in" in refused("videomme-subtitles", tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "subtitles")
    (tmp_path / "subtitles/fFjv93ACGo8.srt").write_text("no times here\n", encoding="utf-8")
    assert "fFjv93ACGo8.srt, line 1" in refused("videomme-subtitles", tmp_path)
    MAKERS["longvideobench"](tmp_path)
    (tmp_path / "subtitles/bbb_en.json").unlink()
    line = refused("longvideobench-subtitles", tmp_path)
    assert "lvb_val.json" in line and "'subtitle_path'" in line and "bbb_en.json" in line
    write_json(tmp_path / "subtitles/bbb_en.json", [{"start": "1", "line": "x"}])
    assert re.search("bbb_en.json, subtitle 0", refused("longvideobench-subtitles", tmp_path))


def test_srt_is_read_with_its_times_and_without_mark_up(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text(SRT, encoding="utf-8")
    assert read_srt(path) == [
        Cue(0.24, 1.0, "now the lid comes off"),
        Cue(1.0, 2.0, "and & the soup is hot"),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + SRT.replace("\n", "\r\n").encode())
    assert len(read_srt(path)) == 2
    path.write_text(
        "2\n01:00:02.500 --> 01:00:03.000 X1:1\n{\\an8}<i>later</i>\n\n\n"
        "1\n00:01,000 --> 00:02,000\n42\n3\n00:00:03,000 --> 00:00:04,000\n\n",
        encoding="utf-8",
    )
    # In order of time; "42" is said, "3" is a number, and the last has no text.
    assert read_srt(path) == [Cue(1.0, 2.0, "42"), Cue(3602.5, 3603.0, "later")]
    path.write_text("\n", encoding="utf-8")
    assert read_srt(path) == []
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.srt: cannot be read"):
        read_srt(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_srt(tmp_path / "none.srt")


def test_subtitles_are_those_of_the_part_that_is_looked_at() -> None:
    cues = [Cue(0.0, 2.0, "a"), Cue(2.0, 4.0, "b"), Cue(3.0, 3.0, "c"), Cue(5.0, 9.0, "d")]
    assert within(cues) == cues
    assert within(cues, 2.0, 3.0) == [Cue(2.0, 3.0, "b")]  # one that ends as it starts is not shown
    assert within(cues, 3.0, 6.0) == [Cue(3.0, 4.0, "b"), Cue(3.0, 3.0, "c"), Cue(5.0, 6.0, "d")]
    assert within(cues, end=1.0) == [Cue(0.0, 1.0, "a")] and within(cues, 9.0) == []
    assert as_lines(cues[:2]) == "a\nb" and as_lines([]) == ""
    assert as_lines(cues[1:2], times=True) == "[2.0 s - 4.0 s] b"


def test_subtitles_of_longvideobench_move_to_the_clip(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"timestamp": [100.0, 104], "text": "early"},
        {"timestamp": [108.0, None], "text": "open"},
        {"start": "00:01:41.5", "end": "00:01:43.0", "line": "<b>middle</b>"},
    ]
    path = write_json(tmp_path / "s.json", rows)
    assert read_json_subtitles(path, 101.0, 8.0) == [
        Cue(0.0, 3.0, "early"),
        Cue(0.5, 2.0, "middle"),
        Cue(7.0, 8.0, "open"),
    ]
    assert read_json_subtitles(path, 90.0, 8.0) == []
    assert read_json_subtitles(path, 200.0, 8.0) == [Cue(0.0, 8.0, "open")]  # it never ends
    for wrong in ({"timestamp": [1.0], "text": "x"}, {"timestamp": ["a", 2], "text": "x"}, [], 3):
        write_json(path, [rows[0], wrong])
        with pytest.raises(InputError, match=r"s\.json, subtitle 1"):
            read_json_subtitles(path, 0.0, 8.0)
    for text in ("{", '{"a": 1}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"s\.json"):
            read_json_subtitles(path, 0.0, 8.0)
    assert seconds("01:02:03,5") == 3723.5 and seconds("02:03.25") == 123.25
    with pytest.raises(InputError, match="hh:mm:ss"):
        seconds("3.5")
