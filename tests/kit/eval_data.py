"""Miniature data sets in the official formats: `make("charades", folder)`, for every task.

Three tiny videos are shared by all; annotation files have the official names and fields, so that a
run on them goes through everything that a real run does. The makers of `eval_data_choice.py` are
taken over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from videos import write_video

Maker = Callable[[Path], None]
MAKERS: dict[str, Maker] = {}
#: Seconds of the three videos.
LENGTHS = (8.0, 12.0, 20.0)


def maker(*names: str) -> Callable[[Maker], Maker]:
    """Function decorator: what writes the data of the tasks `names` into a folder."""

    def add(make_one: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, make_one))
        return make_one

    return add


def make(task: str, folder: Path) -> None:
    """Write the annotation files of a task and the videos that they name.

    Raises:
        KeyError: a task without data here: write a maker for it.
    """
    _load_others()
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[task](folder)


def made_tasks() -> list[str]:
    """The tasks that have data."""
    _load_others()
    return sorted(MAKERS)


def write_videos(folder: Path, names: Sequence[str], below: str = "videos") -> None:
    """Videos of 8, 12 and 20 seconds in turn, by these names (".mp4" is put behind them)."""
    for k, name in enumerate(names):
        path = folder / below / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_video(k % len(LENGTHS)))


def write_text(folder: Path, name: str, text: str) -> None:
    """A text file, with its folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(folder: Path, name: str, value: Any) -> None:
    """A JSON file, with its folder."""
    write_text(folder, name, json.dumps(value))


def write_jsonl(folder: Path, name: str, rows: Sequence[Any]) -> None:
    """A file with one JSON value a line."""
    write_text(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


@cache
def _video(number: int) -> bytes:
    """A video as bytes: encoded once a process; about 20 KB, a frame each quarter of a second."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        frames = int(LENGTHS[number] * 4)
        return write_video(path, frames, fps=4, size=(64, 48), gop=8).read_bytes()


def _load_others() -> None:
    import importlib
    import importlib.util

    if importlib.util.find_spec("eval_data_choice") is not None:
        MAKERS.update(importlib.import_module("eval_data_choice").MAKERS)


@maker("charades")
def _charades(folder: Path) -> None:
    lines = [
        "AAAAA 1.0 4.5##person turn a light on.",
        "AAAAA 5.0 8.0##a person is putting a book on a shelf.",
        "BBBBB 0.0 6.3##person opens the door.",
    ]
    write_text(folder, "charades_sta_test.txt", "\n".join(lines) + "\n")
    write_videos(folder, ("AAAAA", "BBBBB"))


@maker("activitynet", "activitynet-dense")
def _activitynet(folder: Path) -> None:
    first = {
        "v_aaaa": {
            "duration": 8.0,
            "timestamps": [[0.0, 3.0], [3.5, 8.0]],
            "sentences": ["A man waxes his car.", " He wipes it with a cloth. "],
        },
        "v_bbbb": {
            "duration": 12.0,
            "timestamps": [[0, 12]],
            "sentences": ["Two girls are dancing in a room."],
        },
    }
    second = {
        "v_aaaa": {
            "duration": 8.0,
            "timestamps": [[0.5, 7.5]],
            "sentences": ["A man is cleaning a red car outside."],
        },
        "v_cccc": {
            "duration": 20.0,
            "timestamps": [[2.0, 11.0], [12.0, 10.0]],
            "sentences": ["A dog runs after a ball.", "It brings the ball back."],
        },
    }
    write_json(folder, "val_1.json", first)
    write_json(folder, "val_2.json", second)
    write_videos(folder, ("v_aaaa", "v_bbbb", "v_cccc"))


@maker("activitynet-rtl")
def _rtl(folder: Path) -> None:
    rows = [
        {
            "vid": "aaaa",
            "question_id": 1,
            "question": "When does the man finish cleaning?",
            "answer": "<3.50> <8.00> He puts the cloth away.",
            "duration": 8.0,
        },
        {
            "vid": "aaaa",
            "question_id": 2,
            "question": "When is the car dirty?",
            "answer": "<0.0> <3.0> It has not been wiped yet.",
            "duration": 8.0,
        },
        {
            "vid": "cccc",
            "question_id": 3,
            "question": "When does the dog obey?",
            "answer": "<10> <20.0> It brings the ball back.",
            "duration": 20.0,
        },
    ]
    write_json(folder, "annot_val_1_q229.json", rows)
    write_videos(folder, ("v_aaaa", "v_bbbb", "v_cccc"))


@maker("nextgqa")
def _nextgqa(folder: Path) -> None:
    head = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    rows = [
        "111,240,64,48,why did the boy run,see the dog,1,CW,eat,see the dog,sleep,sing,play ball",
        '111,240,64,48,"what did he do then, at once",sit down,2,TN,sit down,jump,wave,cry,go',
        "222,360,64,48,how does the cat get up,by jumping,0,CH,fly,swim,by jumping,crawl,roll",
        "222,360,64,48,where is this,kitchen,5,DL,kitchen,park,beach,car,school",
    ]
    places = {
        "111": {"duration": 8, "location": {"1": [[1.0, 4.0]], "2": [[4.0, 6.0], [7, 8]]}},
        "222": {"duration": 12, "location": {"0": [[3.0, 9.0]]}, "fps": 4},
    }
    for name in ("val", "test"):
        write_text(folder, f"{name}.csv", "\n".join([head, *rows]) + "\n")
        write_json(folder, f"gsub_{name}.json", places)
    write_json(folder, "map_vid_vidorID.json", {"111": "1000/111", "222": "1001/222"})
    write_videos(folder, ("1000/111", "1001/222"))


@maker("timelens")
def _timelens(folder: Path) -> None:
    for name in ("charades", "activitynet", "qvhighlights"):
        table = {
            "one": {
                "duration": 8.0,
                "queries": ["A man opens a box.", "He looks into it."],
                "spans": [[0.0, 3.0], [3.0, 7.5]],
            },
            "two": {"duration": 12.0, "queries": ["Snow falls"], "spans": [[2, 9]]},
        }
        write_json(folder, f"{name}-timelens.json", table)
        write_videos(folder, (f"{name}/one", f"{name}/two"))


@maker("qvhighlights-moments", "qvhighlights-highlights")
def _qvhighlights(folder: Path) -> None:
    rows = [
        {
            "qid": 8737,
            "query": "A family is playing basketball.",
            "duration": 8,
            "vid": "bP5KfdFJzC4_660.0_810.0",
            "relevant_windows": [[0, 4]],
            "relevant_clip_ids": [0, 1],
            "saliency_scores": [[4, 1, 1], [4, 4, 2]],
        },
        {
            "qid": 8738,
            "query": "Snow on a roof",
            "duration": 12,
            "vid": "xxxxxxxxxxx_0.0_150.0",
            "relevant_windows": [[0, 2], [8, 12]],
            "relevant_clip_ids": [0, 4, 5],
            "saliency_scores": [[3, 3, 3], [4, 4, 4], [2, 2, 1]],
        },
    ]
    for name in ("highlight_val_release", "highlight_test_with_gt"):
        write_jsonl(folder, f"{name}.jsonl", rows)
    write_videos(folder, [str(row["vid"]) for row in rows])


@maker("tvsum")
def _tvsum(folder: Path) -> None:
    lines = []
    for vid, category, seconds in (("AwmHb44_ouw", "VT", 8), ("xwqBXPGE9pQ", "GA", 12)):
        for rater in range(20):
            shots = [1 + (k * 7 + rater % 3 + k * rater) % 5 for k in range(seconds // 2)]
            frames = ",".join(str(shots[min(f // 8, len(shots) - 1)]) for f in range(seconds * 4))
            lines.append(f"{vid}\t{category}\t{frames}")
    write_text(folder, "ydata-tvsum50-anno.tsv", "\n".join(lines) + "\n")
    info = [
        "category\tvideo_id\ttitle\turl\tlength",
        'VT\tAwmHb44_ouw\t#1 How to change tyres "fast"\thttps://youtu.be/AwmHb44_ouw\t0:08',
        "GA\txwqBXPGE9pQ\tGrooming a dog\thttps://youtu.be/xwqBXPGE9pQ\t0:12",
    ]
    write_text(folder, "ydata-tvsum50-info.tsv", "\n".join(info) + "\n")
    write_videos(folder, ("AwmHb44_ouw", "xwqBXPGE9pQ"))


@maker("youcook2")
def _youcook2(folder: Path) -> None:
    step = {"segment": [1, 4], "id": 0, "sentence": "spread butter on two slices of bread"}
    other = {"segment": [5, 8], "id": 1, "sentence": "put the bread into a hot pan"}
    more = {"segment": [2, 11], "id": 0, "sentence": "cut the onion and fry it"}
    video = {"recipe_type": "101", "video_url": "https://youtu.be/x"}
    table = {
        "train1": {"duration": 9.5, "subset": "training", **video, "annotations": [step]},
        "GLd3aX16zBg": {
            "duration": 8.0,
            "subset": "validation",
            **video,
            "annotations": [step, other],
        },
        "sJFBs0Fl7sY": {"duration": 12.0, "subset": "validation", **video, "annotations": [more]},
    }
    write_json(folder, "youcookii_annotations_trainval.json", {"database": table})
    write_videos(folder, ("GLd3aX16zBg", "sJFBs0Fl7sY"))


@maker("htm-align")
def _htm_align(folder: Path) -> None:
    table = {
        "-3CEg4y7mQM": [
            [0, 0.5, 2.0, "hi everyone welcome back"],
            [1, 2.739, 5.535, "add extra virgin olive oil and garlic"],
            [1, 6.0, 8.0, "stir it"],
        ],
        "abcdefghijk": [[1, 1.2, 3.9, "cut the bread"]],
    }
    write_json(folder, "htm_align.json", table)
    write_videos(folder, list(table))


@maker("msrvtt")
def _msrvtt(folder: Path) -> None:
    head = "key,vid_key,video_id,sentence"
    told = ["a person is connecting something", "a dog runs", 'a man says "hello, you"']
    rows = [
        f'ret{k},msr{7010 + k},video{7010 + k},"{text.replace(chr(34), chr(34) * 2)}"'
        for k, text in enumerate(told)
    ]
    write_text(folder, "MSRVTT_JSFUSION_test.csv", "\n".join([head, *rows]) + "\n")
    names = [f"video{7010 + k}" for k in range(3)]
    splits = ("test", "test", "train")
    table = {
        "info": {},
        "videos": [
            {"video_id": name, "split": split, "category": 9}
            for name, split in zip(names, splits, strict=True)
        ],
        "sentences": [
            {"video_id": name, "caption": f"{text} {k}", "sen_id": k}
            for name, text in zip(names, told, strict=True)
            for k in range(2)
        ],
    }
    write_json(folder, "MSRVTT_data.json", table)
    write_videos(folder, names)
