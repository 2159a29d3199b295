"""Every benchmark: its items, its frozen prompts, perfect and useless answers, and its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import eval_data
import pytest
from frozen import check_prompts

from vidllm.errors import InputError
from vidllm.eval.run.vectors import write_vector
from vidllm.eval.tasks import FAMILIES, Item, Response, Task, check_split, dense, get_task
from vidllm.eval.tasks.page import entries, tasks_page

#: The tasks of this file: with one span, captions, highlights, alignment or retrieval.
TIMED = (
    *("charades", "activitynet", "activitynet-rtl", "nextgqa", "timelens"),
    *("qvhighlights-moments", "qvhighlights-highlights", "tvsum"),
    *("activitynet-dense", "youcook2", "htm-align", "msrvtt"),
)
SPLITS = [(name, split) for name in TIMED for split in get_task(name).splits]


pytestmark = pytest.mark.filterwarnings("ignore:no SODA_c")


@pytest.fixture(autouse=True)
def _without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR is slow to start; test_tasks_captions.py has it."""
    dense._scorers.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in TIMED:
        eval_data.make(name, folder / name)
    return folder


def perfect(item: Item) -> Response:
    """What a model says that is always right."""
    truth = item.truth
    if isinstance(truth, str):
        width = int(truth.removeprefix("video")) - 7008
        return Response(raw=write_vector([float(k == width) for k in range(8)]))
    if item.kind == "answer":
        return Response(text=truth["answer"])
    if item.kind == "ground":
        return said([truth["spans"][0]])
    if item.id.startswith(("qvh", "87")) and isinstance(truth, dict):
        rated = [[2 * k, 2 * k + 2, max(scores)] for k, scores in truth["rated"]]
        return Response(text="\n".join(f"{a} - {b} seconds, score {c}" for a, b, c in rated))
    if len(truth) > 2 or isinstance(truth[0], list):
        if isinstance(truth[0][0], list):  # captions
            rows = truth[0]
            return Response(text="\n".join(f"{a} - {b} seconds, {text}" for a, b, text in rows))
        if len(truth[0]) > 2:  # ratings of shots
            means = [sum(row) / len(row) for row in truth]
            rows = [f"{2 * k} - {2 * k + 2} s: score {m}" for k, m in enumerate(means)]
            return Response(text="\n".join(rows))
        return said(truth)
    return said([truth])


def said(spans: list[list[float]]) -> Response:
    text = "\n".join(f"The event happens in {s} - {e} seconds." for s, e in spans)
    return Response(text=text, raw=text)


def nonsense(item: Item) -> Response:
    return Response(text="I am not sure what you mean by that.", raw="?")


def failed(item: Item) -> Response:
    return Response(error="no such file")


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_prompts_are_frozen(name: str, split: str, data: Path) -> None:
    task = get_task(name)
    items = task.items(data / name, split)
    check_prompts(name, split, items)
    assert len({item.id for item in items}) == len(items) > 0
    for item in items:
        assert Item.from_dict(json.loads(json.dumps(item.as_dict()))) == item
        assert item.prompt.strip() == item.prompt and "<|" not in item.prompt
        assert item.video and (item.prompt or item.kind == "video")
        found = data / name / "videos" / f"{item.video}.mp4"
        assert found.is_file() and found.stat().st_size < 100_000


@pytest.mark.parametrize("name", TIMED)
def test_a_task_says_what_it_is(name: str) -> None:
    task = get_task(name)
    assert task.family in FAMILIES and task.name == name
    assert task.citation and task.licence and task.home and task.summary
    assert set(task.files) == set(task.splits)
    assert check_split(task, None) == task.splits[0]
    with pytest.raises(InputError, match="must be one of"):
        check_split(task, "train")


@pytest.mark.parametrize("name", TIMED)
def test_right_answers_earn_everything_and_others_nothing(name: str, data: Path) -> None:
    task = get_task(name)
    split = "val_1" if name == "activitynet-dense" else task.splits[0]  # two annotators differ
    items = task.items(data / name, split)
    good, bad, gone = ([answer(i) for i in items] for answer in (perfect, nonsense, failed))
    best = task.scores(items, good)
    assert best["parse_failures"] == 0.0
    if name not in ("tvsum", "qvhighlights-highlights"):  # there raters differ
        assert best[task.headline] == pytest.approx(1.0)
    for answers in (bad, gone):
        scores = task.scores(items, answers)
        assert scores[task.headline] == 0.0 and scores["parse_failures"] == 1.0
        assert all(task.read(i, r) is None for i, r in zip(items, answers, strict=True))
        assert all(task.value(i, r) in (0.0, None) for i, r in zip(items, answers, strict=True))
    half = [*good[: len(good) // 2], *gone[len(good) // 2 :]]
    some = task.scores(items, half)
    assert 0 < some[task.headline] < best[task.headline]  # type: ignore[operator]
    assert set(some) == set(best) == set(task.scores(items, bad))


@pytest.mark.parametrize("name", TIMED)
def test_the_samples_are_those_of_the_headline(name: str, data: Path) -> None:
    task = get_task(name)
    items = task.items(data / name, task.splits[0])
    mixed = [(perfect, nonsense, failed)[k % 3](item) for k, item in enumerate(items)]
    for answers in (mixed, [perfect(item) for item in items]):
        samples = task.samples(items, answers)  # type: ignore[attr-defined]
        mean = sum(value for _, value in samples) / len(samples)
        assert mean == pytest.approx(task.scores(items, answers)[task.headline])
        assert {vid for vid, _ in samples} <= {item.vid for item in items}


@pytest.mark.parametrize("name", TIMED)
def test_scores_are_made_again_from_rows(name: str, data: Path) -> None:
    task = get_task(name)
    items = task.items(data / name, task.splits[0])
    answers = [(perfect, nonsense)[k % 2](item) for k, item in enumerate(items)]
    rows = json.loads(json.dumps([[i.as_dict(), r.as_dict()] for i, r in zip(items, answers)]))  # noqa: B905
    again = [Item.from_dict(i) for i, _ in rows], [Response.from_dict(r) for _, r in rows]
    for official in (False, True):
        assert task.scores(*again, official=official) == pytest.approx(
            task.scores(items, answers, official=official), nan_ok=True
        )
    assert json.loads(json.dumps([task.read(i, r) for i, r in zip(*again, strict=True)]))


@pytest.mark.parametrize("name", TIMED)
def test_what_a_model_says_never_raises(name: str, data: Path) -> None:
    task: Task = get_task(name)
    items = task.items(data / name, task.splits[0])
    odd = ("", "12..5 - 3..", "<t3>", "[", "[{}]", "score", "second score", ":", "9" * 400, "١٢")
    odd += ("start 1..2\nend 3..4", "99:99:99 to 00:00:01", "f16:!!", "f16:AAA=", "nan - inf s")
    odd += ('[{"start": 1, "end": null, "text": 3}]', "-5 - -2 seconds", "5 seconds", "\x00")
    for text in odd:
        for item in items:
            response = Response(text=text, raw=text, duration=8.0)
            json.dumps(task.read(item, response), allow_nan=False)
        answers = [Response(text=text, raw=text)] * len(items)
        for official in (False, True):
            task.scores(items, answers, official=official)


def test_the_page_is_what_the_registry_says(root: Path) -> None:
    written = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert written == tasks_page(), "run python -m vidllm.eval.tasks.page > docs/tasks.md"
    listed = {entry["name"]: entry for entry in entries()}
    assert set(TIMED) <= set(listed)
    assert listed["charades"]["kind"] == "grounding" and listed["charades"]["summary"]
