"""Miniature multiple-choice benchmarks in their official formats, with videos of a few frames.

`MAKERS[task](folder)` writes all that `--data folder` needs: annotation files under their official
names, subtitles, and videos. The questions are made up.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from videos import write_video

from vidllm.eval.tasks.mlvu import FOLDERS
from vidllm.eval.tasks.mvbench import SOURCES

SRT = """1
00:00:00,240 --> 00:00:01,000
<font color="white" size=".72c">now the lid comes off</font>

2
00:00:01,000 --> 00:00:02,000
<font color="white" size=".72c">and &amp; the soup
is hot</font>
"""


def write_json(path: Path, value: Any) -> Path:
    """A JSON file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A parquet file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A csv file with a header, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_videos(folder: Path, names: Iterable[str]) -> None:
    """The same two seconds under every name, e.g. "a/b.mp4"."""
    first: Path | None = None
    for name in dict.fromkeys(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if first is None:
            first = write_video(path, 8, fps=4, size=(64, 48))
        else:
            shutil.copyfile(first, path)


def videomme_rows() -> list[dict[str, Any]]:
    """Two videos, one short and one long, with three and one questions."""
    about = {
        "fFjv93ACGo8": ("001", "short", "Knowledge", "Geography"),
        "N1cdUjctpG8": ("601", "long", "Life Record", "Food"),
    }
    asked = [
        ("fFjv93ACGo8", "001-1", "Counting Problem", "How many pots are there?", "C"),
        ("fFjv93ACGo8", "001-2", "Action Recognition", "What comes off first?", "A"),
        ("fFjv93ACGo8", "001-3", "OCR Problems", "What is written on the lid?", "D"),
        ("N1cdUjctpG8", "601-1", "Counting Problem", "How many people eat?", "B"),
    ]
    texts = ["A. A man.", "B. Two.", "C. Three pots.", "D. Nothing."]
    rows = []
    for vid, number, kind, question, answer in asked:
        video, duration, domain, sub = about[vid]
        rows.append(
            {
                "video_id": video,
                "duration": duration,
                "domain": domain,
                "sub_category": sub,
                "url": f"https://www.youtube.com/watch?v={vid}",
                "videoID": vid,
                "question_id": number,
                "task_type": kind,
                "question": question,
                "options": texts,
                "answer": answer,
            }
        )
    return rows


def videomme(folder: Path) -> None:
    """The hub's parquet; videos as its zip files unpack, in `data`; subtitles of one video."""
    write_parquet(folder / "videomme/test-00000-of-00001.parquet", videomme_rows())
    make_videos(folder / "data", ("fFjv93ACGo8.mp4", "N1cdUjctpG8.mp4"))
    (folder / "subtitle").mkdir(exist_ok=True)
    (folder / "subtitle/fFjv93ACGo8.srt").write_text(SRT, encoding="utf-8")


def mlvu_rows(task: str) -> list[dict[str, Any]]:
    """Two questions about plots and one of every other task."""
    video = {"ego": "ego_2.mp4", "needle": "needle_32.mp4"}.get(task, f"{task}_66.mp4")
    row = {
        "video": video,
        "duration": 246 if task == "ego" else 467.98,
        "question": f"What matters for {task}?",
        "candidates": ["Yellow", "A red one", "Green", "Blue"],
        "answer": "A red one",
        "question_type": "findNeedle" if task == "needle" else task,
    }
    return [row, {**row, "answer": "Yellow"}] if task == "plotQA" else [row]


def mlvu(folder: Path) -> None:
    """The seven official files, and the videos in their folders."""
    for task, name in FOLDERS.items():
        rows = mlvu_rows(task)
        write_json(folder / f"MLVU/json/{name}.json", rows)
        make_videos(folder / f"MLVU/video/{name}", {row["video"] for row in rows})


def longvideobench_rows() -> list[dict[str, Any]]:
    """Three questions; the second video was cut out of a longer one at 10 seconds."""
    base = {
        "question_wo_referring_query": "What happens?",
        "position": [0, 4],
        "topic_category": "LC-Life-Cooking",
        "level": "L2-Relation",
        "view_count": 3,
    }
    asked = [
        ("aaa", 0, 0, 2.0, 15, "S2E", ["He sits", "A cup falls", "He is shirtless."], 2),
        ("aaa", 1, 0, 2.0, 15, "TAA", ["Red", "Blue"], 0),
        ("bbb", 0, 10, 2.0, 3600, "TAA", ["One", "Two", "Three", "Four", "Five"], 1),
    ]
    return [
        {
            **base,
            "id": f"{vid}_{k}",
            "video_id": vid,
            "video_path": f"{vid}.mp4",
            "subtitle_path": f"{vid}_en.json",
            "question": f"What happens when the subtitle says 'now', question {k}?",
            "candidates": candidates,
            "correct_choice": right,
            "question_category": category,
            "duration_group": group,
            "starting_timestamp_for_subtitles": start,
            "duration": duration,
        }
        for vid, k, start, duration, group, category, candidates, right in asked
    ]


def longvideobench(folder: Path) -> None:
    """`lvb_val.json`, videos, and subtitles in both official forms."""
    write_json(folder / "lvb_val.json", longvideobench_rows())
    make_videos(folder / "videos", ("aaa.mp4", "bbb.mp4"))
    lines = [{"start": "00:00:00.500", "end": "00:00:01.250", "line": "now look"}]
    write_json(folder / "subtitles/aaa_en.json", lines)
    spoken = [
        {"timestamp": [8.0, 9.5], "text": "before the clip"},
        {"timestamp": [9.5, 10.5], "text": "into the clip"},
        {"timestamp": [11.5, None], "text": "the end"},
    ]
    write_json(folder / "subtitles/bbb_en.json", spoken)


def egoschema(folder: Path) -> None:
    """Three questions, two of them with a public answer."""
    uids = ["001934bb-81bd", "00faf954-74f7", "011b8b73-0ce4"]
    texts = ["C cleans.", "C cooks a meal.", "A man talks to c.", "C reads.", "C sleeps."]
    rows = [
        {
            "q_uid": uid,
            "google_drive_id": "15yG",
            "question": f"What is the aim of c in video {k}?",
            **{f"option {n}": text for n, text in enumerate(texts)},
        }
        for k, uid in enumerate(uids)
    ]
    write_json(folder / "questions.json", rows)
    write_json(folder / "subset_answers.json", {uids[2]: 3, uids[1]: 0})
    make_videos(folder / "videos", (f"{uid}.mp4" for uid in uids))


def mvbench(folder: Path) -> None:
    """The twenty official files, one question each, two for Action Sequence."""
    names = []
    for task, source in SOURCES.items():
        row: dict[str, Any] = {
            "video": "166583.webm" if task == "action_antonym" else "ZS9XR.mp4",
            "question": f"What happened in {task}?",
            "candidates": ["Ate the medicine.", "A blanket.", "Took the box."],
            "answer": "Took the box.",
        }
        if source.cut:
            row |= {"start": 0.5, "end": 1.5}
        more = {**row, "answer": "Ate the medicine.", "candidates": row["candidates"][::-1]}
        rows = [row, more] if task == "action_sequence" else [row]
        write_json(folder / f"json/{task}.json", rows)
        place = source.cut if task == "episodic_reasoning" else source.whole
        names.append(f"{place}/{row['video']}")
    make_videos(folder / "video", names)


def nextqa_rows() -> list[dict[str, Any]]:
    """Four questions about two videos."""
    asked = [
        ("4010069381", 6, "CH", "how do the two man play the instrument", 0),
        ("4010069381", 7, "TP", "what did the man do before sitting down", 4),
        ("7508439506", 4, "DL", "where is this video taken", 2),
        ("7508439506", 1, "TN", "what does the dog do after that", 1),
    ]
    texts = ["roll the handle", "tap their feet", "a field", "hit with sticks", "pat with hand"]
    return [
        {
            "video": vid,
            "frame_count": 369,
            "width": 640,
            "height": 480,
            "question": question,
            "answer": answer,
            "qid": qid,
            "type": kind,
            **{f"a{k}": text for k, text in enumerate(texts)},
        }
        for vid, qid, kind, question, answer in asked
    ]


def nextqa(folder: Path) -> None:
    """The official csv files, and videos in VidOR's folders by the official map."""
    write_csv(folder / "nextqa/test.csv", nextqa_rows())
    write_csv(folder / "nextqa/val.csv", nextqa_rows()[:2])
    places = {"4010069381": "1164/4010069381", "7508439506": "0079/7508439506"}
    write_json(folder / "nextqa/map_vid_vidorID.json", places)
    make_videos(folder / "videos", (f"{place}.mp4" for place in places.values()))


def perceptiontest(folder: Path) -> None:
    """`mc_question_valid.json`: two videos with two and one questions."""
    question = {
        "question": "Is the lamp lit?",
        "options": ["Yes", "No", "A lamp is not there"],
        "answer_id": 1,
        "area": "physics",
        "reasoning": "descriptive",
        "tag": ["state", "object recognition"],
    }
    asked = {"video_8": [{"id": 0}, {"id": 3, "area": "memory", "answer_id": 2}], "video_11": [{}]}
    value = {
        vid: {
            "metadata": {"video_id": vid, "frame_rate": 4.0, "num_frames": 8, "split": "valid"},
            "mc_question": [{"id": 0, **question, **row} for row in rows],
        }
        for vid, rows in asked.items()
    }
    write_json(folder / "mc_question_valid.json", value)
    make_videos(folder / "videos", ("video_8.mp4", "video_11.mp4"))


#: Writes a task's miniature data set into a folder.
MAKERS: dict[str, Callable[[Path], None]] = {
    "videomme": videomme,
    "videomme-subtitles": videomme,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
    "longvideobench-subtitles": longvideobench,
    "egoschema": egoschema,
    "mvbench": mvbench,
    "nextqa": nextqa,
    "perceptiontest": perceptiontest,
}
