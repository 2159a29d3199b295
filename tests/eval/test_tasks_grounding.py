"""Grounding, highlights and alignment: scores by hand, where official scripts differ, goldens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import eval_data
import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.tasks import Item, Response, Task, get_task

GOLDENS = Path(__file__).parents[1] / "goldens"


def approx(value: object) -> Any:
    return pytest.approx(value, abs=1e-9)


def load(name: str, folder: Path, split: str | None = None) -> tuple[Task, list[Item]]:
    task = get_task(name)
    eval_data.make(name, folder)
    return task, task.items(folder, split or task.splits[0])


def answers(*texts: str, duration: float | None = None) -> list[Response]:
    return [Response(text=text, raw=text, duration=duration) for text in texts]


def test_charades_by_hand(tmp_path: Path) -> None:
    task, items = load("charades", tmp_path)  # 1–4.5, 5–8, 0–6.3
    said = answers("1.0 - 4.5 seconds", "from 5 s to 6.5 s", "0 to 2.1 seconds")
    scores = task.scores(items, said)
    assert scores["mIoU"] == approx((1 + 0.5 + 2.1 / 6.3) / 3)
    assert [scores[f"R1@{m}"] for m in (0.3, 0.5, 0.7)] == approx([1.0, 2 / 3, 1 / 3])
    assert scores["parse_failures"] == 0.0
    assert [task.value(i, r) for i, r in zip(items, said, strict=True)] == approx([1, 0.5, 1 / 3])
    # lmms-eval's parser does not read units before the dash, but does read "to".
    official = task.scores(items, said, official=True)
    assert official["mIoU"] == approx((1 + 0 + 1 / 3) / 3)
    assert official["parse_failures"] == approx(1 / 3)
    tokens = Response(text="1.0 s 4.5 s", raw="<t10> <t50>", spans=((1.0, 4.5),))
    assert task.read(items[0], tokens) == [1.0, 4.5]
    assert [item.groups["span"] for item in items] == ["under 5 s", "under 5 s", "under 15 s"]


@pytest.mark.parametrize("name", ["timesuite_tvg_iou", "lita_parse_iou"])
def test_golden_ious_through_the_task(name: str) -> None:
    data = np.load(GOLDENS / f"{name}.npz")
    task = get_task("charades")
    for (one, two), expected in zip(data["pairs"].tolist(), data["iou"], strict=True):
        start, end = sorted(two)
        item = Item("1", "v", "v", "?", [float(start), float(end)])
        response = Response(spans=((float(one[0]), float(one[1])),))
        if one[0] > one[1]:  # a reversed prediction is swapped here, and 0 in the golden file
            assert task.value(item, response) == approx(1.0) and expected == 0.0
        else:
            assert task.value(item, response) == approx(expected)


def test_activitynet_rounds_only_when_official(tmp_path: Path) -> None:
    task, items = load("activitynet", tmp_path)
    item = Item("1", "v", "v", "?", [0.0, 10.0], duration=100.0)
    near = answers("0.0 - 6.96")
    assert task.scores([item], near)["R1@0.7"] == 0.0
    assert task.scores([item], near, official=True)["R1@0.7"] == 1.0
    hundredths = answers("From 00 to 10.")
    assert task.scores([item], hundredths)["mIoU"] == approx(1.0)  # seconds, by chance
    long = Item("2", "v", "v", "?", [0.0, 30.0], duration=300.0)
    assert task.scores([long], hundredths)["mIoU"] == approx(1 / 3)
    assert task.scores([long], hundredths, official=True)["mIoU"] == approx(1.0)
    assert len(items) == 3 and items[0].duration == 8.0
    both = task.items(tmp_path, "both")
    assert len({i.id for i in both}) == 6 and both[-1] == items[-1]


def test_rtl_by_video_and_litas_goldens(tmp_path: Path) -> None:
    task, items = load("activitynet-rtl", tmp_path)  # a: 3.5–8, 0–3; c: 10–20
    said = answers("3.5 - 8.0 seconds, he stops", "I cannot tell", "10 - 15 seconds")
    scores = task.scores(items, said)
    assert scores["mIoU"] == approx(((1 + 0) / 2 + 0.5) / 2)
    assert scores["P@0.5"] == approx((0.5 + 1) / 2) and scores["parse_failures"] == approx(1 / 3)
    stamped = answers("<3.5> <8.0> he stops", "I cannot tell", "<10> <15> x")
    official = task.scores(items, stamped, official=True)  # no time is the whole video: 3 of 8 s
    assert official["mIoU"] == approx(((1 + 3 / 8) / 2 + 0.5) / 2)
    assert task.scores(items, stamped)["mIoU"] == scores["mIoU"]
    # Text in seconds is not LITA's format: its script takes the whole video.
    assert task.scores(items, said, official=True)["mIoU"] == approx(
        ((4.5 / 8 + 3 / 8) / 2 + 0.5) / 2
    )
    data = np.load(GOLDENS / "lita_parse_iou.npz")
    rows = zip(data["texts"], data["durations"], data["spans"].tolist(), strict=True)
    for text, duration, expected in rows:
        item = Item("1", "v", "v", "?", expected, duration=float(duration))
        response = Response(text=str(text), raw=str(text))
        whole = expected == [0.0, duration]
        point = expected[0] == expected[1]
        found = task.scores([item], [response], official=True)["mIoU"]
        assert found == approx(0.0 if point else 1.0)
        assert (task.read(item, response) is None) == whole
        if not whole:
            assert task.read(item, response) == approx(expected)


def test_timelens_official_takes_any_numbers(tmp_path: Path) -> None:
    task, items = load("timelens", tmp_path)
    said = answers("3.0 - 0.0 seconds", "2 men from 3.0 s until 7.5 s", "2 - 9")
    assert task.scores(items, said)["mIoU"] == approx(1.0)
    official = task.scores(items, said, official=True)
    assert official["mIoU"] == approx((0 + 0 + 1) / 3)  # reversed; "2" and "3.0" are paired
    assert items[0].video == "charades/one" and items[0].vid == "one"


def test_nextgqa_joins_answers_and_times(tmp_path: Path) -> None:
    task, items = load("nextgqa", tmp_path)  # 111_1: 1–4; 111_2: 4–6, 7–8; 222_0: 3–9
    assert [i.kind for i in items] == ["answer", "ground"] * 3
    assert [i.truth["answer"] for i in items[::2]] == ["B", "A", "C"]
    assert items[4].groups == {"type": "causal", "question": "CH"} and items[0].letters[-1] == "E"
    texts = ("B", "1 - 4 s", "(A) sit down", "6 - 8 seconds", "by jumping", "0.0 - 12.0 seconds")
    said = answers(*texts)
    scores = task.scores(items, said)
    assert scores["Acc@QA"] == 1.0 and scores["Acc@QA_logprob"] is None
    assert scores["mIoP"] == approx((1 + 0.5 + 0.5) / 3)
    assert scores["mIoU"] == approx((1 + 0.5 + 0.5) / 3)
    assert scores["Acc@GQA"] == 1.0 and scores["IoP@0.5"] == 1.0
    assert task.value(items[3], said[3]) == approx(0.5) and task.value(items[0], said[0]) == 1.0
    # A missing span counts here and is left out officially.
    missing = [*said[:3], Response(text="no idea"), *said[4:]]
    assert task.scores(items, missing)["Acc@GQA"] == approx(2 / 3)
    assert task.scores(items, missing, official=True)["Acc@GQA"] == 1.0
    assert task.scores(items, missing)["parse_failures"] == approx(1 / 6)
    # One time is a point, and all of it may be inside; the loose parser takes "A man" for A.
    point = [said[0], Response(text="at 3.0 s"), Response(text="A man sings"), *said[3:]]
    assert task.scores(items, point)["IoP@0.5"] == 1.0 and task.scores(items, point)["Acc@QA"] < 1
    assert task.scores(items, point, official=True)["Acc@QA"] == 1.0
    letters = {k: -float(n) for n, k in enumerate("BACDE")}
    likely = [Response(text="?", letters=letters) if i.kind == "answer" else r
              for i, r in zip(items, said, strict=True)]  # fmt: skip
    assert task.scores(items, likely)["Acc@QA_logprob"] == approx(1 / 3)
    assert task.scores(items[:1], said[:1])["Acc@QA"] == 1.0  # half a question, as of a limit
    assert task.scores(items[1:2], said[1:2])["Acc@GQA"] == 0.0


def test_nextgqa_needs_no_map_of_videos(tmp_path: Path) -> None:
    task, items = load("nextgqa", tmp_path)
    assert items[0].video == "1000/111"
    (tmp_path / "map_vid_vidorID.json").unlink()
    assert task.items(tmp_path, "test")[0].video == "111"


def test_qvhighlights_moments_by_hand(tmp_path: Path) -> None:
    task, items = load("qvhighlights-moments", tmp_path)  # [0,4] of 8; [0,2], [8,12] of 12
    said = answers("0 - 4 seconds", "8 - 12 seconds\n0 - 2 seconds\n5 - 6 seconds")
    assert task.read(items[1], said[1]) == [[8.0, 12.0], [0.0, 2.0], [5.0, 6.0]]
    scores = task.scores(items, said)
    assert scores["mAP"] == approx(1.0) and scores["R1@0.7"] == 1.0
    late = answers("6 - 8 seconds\n0 - 4 seconds", "")
    assert task.scores(items, late)["mAP"] == approx((0.5 + 0) / 2)
    assert task.value(items[0], late[0]) == approx(0.5)
    assert task.scores(items, late)["parse_failures"] == 0.5
    with pytest.raises(InputError, match="one of each"):
        task.scores(items, late[:1])


def test_qvhighlights_highlights_and_timesuites_golden(tmp_path: Path) -> None:
    task, items = load("qvhighlights-highlights", tmp_path)
    assert items[0].truth == {"clips": 4, "rated": [[0, [4, 1, 1]], [1, [4, 4, 2]]]}
    said = answers("0 - 4 seconds, score 5", "9 seconds, score 4.5")
    scores = task.scores(items, said)
    # Raters of query 1: (1+1+0)/3; of query 2: clip 4 alone is rated 4 by all.
    first = (1.0 + 0.5 + 0.0) / 3
    assert scores["HL mAP VeryGood"] == approx((first + 1.0) / 2)
    assert scores["HIT@1 VeryGood"] == 1.0
    data = np.load(GOLDENS / "timesuite_vhd_hit1.npz")
    truth = data["gt_full"]
    item = Item(
        *("1", "v", "v", "?"),
        {"clips": 10, "rated": [[k, truth[k].tolist()] for k in range(10)]},
        duration=20.0,
    )
    rows = []
    for curve in data["preds"]:  # as an answer that has these scores, a digit behind the point
        named = [(2 * k + 1, round(9 * float(s), 1)) for k, s in enumerate(curve) if s > 0]
        times, marks = (", ".join(str(v[j]) for v in named) for j in (0, 1))
        rows.append(Response(text=f"In the {times} seconds. The scores are {marks}"))
    rows[2] = Response(text="I do not know")  # all zeros: the script takes clip 0
    hits = task.scores([item] * 3, rows, official=True)["HIT@1 VeryGood"]
    assert hits is not None and round(100 * hits, 2) == float(data["hit1"])
    assert task.scores([item] * 3, rows)["parse_failures"] == approx(1 / 3)
    good = Item("2", "v", "v", "?", {"clips": 2, "rated": [[0, [4, 4, 4]]]}, duration=4.0)
    silent = answers("I do not know")
    assert task.scores([good], silent)["HIT@1 VeryGood"] == 0.0
    assert task.scores([good], silent, official=True)["HIT@1 VeryGood"] == 1.0  # clip 0 wins


def test_tvsum_by_hand(tmp_path: Path) -> None:
    task, items = load("tvsum", tmp_path)
    assert [len(item.truth) for item in items] == [4, 6] and len(items[0].truth[0]) == 20
    shots = [[1 + (k * 7 + r % 3 + k * r) % 5 for r in range(20)] for k in range(4)]
    assert items[0].truth == shots and items[1].groups == {"category": "GA"}
    up = Item("1", "v", "v", "?", [[1.0] * 3, [2.0] * 3, [3.0] * 3, [4.0] * 3], duration=8.0)
    rows = [f"{2 * k} - {2 * k + 2} s: score {k + 1}" for k in range(4)]
    same, other = answers("\n".join(rows), "\n".join(rows[2:]))
    scores = task.scores([up], [same])
    assert [scores[name] for name in ("mAP", "tau", "rho")] == approx([1.0, 1.0, 1.0])
    assert task.scores([up], [other])["mAP"] == approx(1.0)
    assert 0 < task.scores([up], [other])["tau"] < 1  # type: ignore[operator]
    flat = answers("0 - 8 seconds")
    assert task.scores([up], flat)["tau"] == 0.0
    assert np.isnan(task.scores([up], flat, official=True)["tau"])  # type: ignore[arg-type]
    one = answers("7 s, score 5")
    ratings = Item("1", "v", "v", "?", [[1.0], [5.0], [5.0], [5.0]], duration=8.0)
    assert task.scores([ratings], one)["mAP"] == 0.0  # nothing lies above the median of 5


def test_htm_align_by_hand(tmp_path: Path) -> None:
    task, items = load("htm-align", tmp_path)  # 2.739–5.535, 6–8, 1.2–3.9; the first is not asked
    assert [item.id for item in items] == ["-3CEg4y7mQM-1", "-3CEg4y7mQM-2", "abcdefghijk-0"]
    said = answers("at 3 seconds", "6 - 8 seconds", "4.0 s")
    assert [task.read(i, r) for i, r in zip(items, said, strict=True)] == [3.0, 7.0, 4.0]
    assert task.scores(items, said)["R@1"] == approx(2 / 3)
    assert task.scores(items, said, official=True)["R@1"] == 1.0  # 3.9 is rounded to 4
    assert task.scores(items[:1], answers("no"))["R@1"] == 0.0
    assert json.dumps(task.read(items[0], said[0])) == "3.0"
