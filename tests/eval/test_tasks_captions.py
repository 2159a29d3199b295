"""Dense captions through the tasks: by hand, the golden file, and METEOR and CIDEr alive."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import eval_data
import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.tasks import Item, Response, Task, dense, get_task
from vidllm.timecode import AbsoluteTime, RelativeTime

GOLDEN = Path(__file__).parents[1] / "goldens" / "dvc_detection_soda.npz"
MISSING = [
    name
    for name, there in (
        ("pycocoevalcap", importlib.util.find_spec("pycocoevalcap") is not None),
        ("Java", shutil.which("java") is not None),
    )
    if not there
]
needs_meteor = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def approx(value: object, tolerance: float = 1e-9) -> Any:
    return pytest.approx(value, abs=tolerance)


def load(name: str, folder: Path, split: str | None = None) -> tuple[Task, list[Item]]:
    task = get_task(name)
    eval_data.make(name, folder)
    return task, task.items(folder, split or task.splits[0])


def lines(rows: list[Any]) -> Response:
    return Response(text="\n".join(f"{s} - {e} seconds, {text}." for s, e, text in rows))


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    dense._scorers.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.usefixtures("no_java")
@pytest.mark.filterwarnings("ignore:no SODA_c")
def test_the_golden_detections_and_soda() -> None:
    data = np.load(GOLDEN)
    task = get_task("youcook2")
    told, said = (
        [[float(s), float(e), str(text)] for (s, e), text in zip(data[n], data[m], strict=True)]
        for n, m in (("gt", "gt_caps"), ("pred", "pred_caps"))
    )
    item = Item("1", "v", "v", "?", [told], duration=60.0)
    answer = lines(said)
    assert task.read(item, answer) == said
    scores = task.scores([item], [answer], official=True)
    for k, tau in enumerate((0.3, 0.5, 0.7, 0.9)):
        assert scores[f"P@{tau}"] == approx(data["precision"][k])
        assert scores[f"R@{tau}"] == approx(data["recall"][k])
    assert scores["F1"] == approx(float(data["f1"]))
    assert task.scores([item], [answer])["F1"] == task.value(item, answer)


@pytest.mark.usefixtures("no_java")
def test_without_java_the_scores_are_none_and_it_is_said(tmp_path: Path) -> None:
    task, items = load("youcook2", tmp_path)
    said = [lines(item.truth[0]) for item in items]
    with pytest.warns(UserWarning, match=r"no SODA_c, METEOR and CIDEr: .*(Java|pycocoevalcap)"):
        scores = task.scores(items, said)
    assert scores["F1"] == 1.0 and scores["SODA_c (word-F1)"] == approx(1.0)
    assert scores["SODA_c"] is scores["METEOR"] is scores["CIDEr"] is None


@pytest.mark.usefixtures("no_java")
@pytest.mark.filterwarnings("ignore:no SODA_c")
def test_failures_stay_unless_official(tmp_path: Path) -> None:
    task, items = load("youcook2", tmp_path)
    said = [lines(items[0].truth[0]), Response(text="I see a kitchen.")]
    scores, official = (task.scores(items, said, official=o) for o in (False, True))
    assert scores["F1"] == 0.5 and scores["parse_failures"] == 0.5
    assert official["F1"] == approx(1.0, 1e-6)  # the video without an answer is left out
    led = [Response(text="Here are the steps:\n" + said[0].text), said[1]]
    assert task.scores(items, led)["SODA_c (word-F1)"] == approx(0.5)
    assert task.scores(items, led, official=True)["SODA_c (word-F1)"] < 0.9  # type: ignore[operator]


@pytest.mark.usefixtures("no_java")
@pytest.mark.filterwarnings("ignore:no SODA_c")
def test_two_annotators_and_vtimellms_json(tmp_path: Path) -> None:
    task, items = load("activitynet-dense", tmp_path)
    assert [len(item.truth) for item in items] == [2, 1, 1]
    assert items[0].truth[1] == [[0.5, 7.5, "A man is cleaning a red car outside."]]
    assert items[2].truth[0][1] == [10.0, 12.0, "It brings the ball back."]
    assert len(task.items(tmp_path, "val_2")) == 2
    said = [lines(item.truth[0]) for item in items]
    scores = task.scores(items, said)
    # Against the other annotator's [0.5, 7.5] the IoUs of [0, 3] and [3.5, 8] are 1/3 and 1/2.
    assert scores["R@0.5"] == 1.0 and scores["R@0.7"] == approx((0.5 + 1 + 1) / 3)
    assert scores["P@0.5"] == approx(((1 + 0.5) / 2 + 1 + 1) / 3)
    json_answer = (
        '[{"event": "A man waxes his car.", "timestamps": "from 00 to 36"},'
        ' {"event": "He wipes it with a cloth.", "timestamps": "from 44 to 99"}]'
    )
    one, answer = items[:1], [Response(text=json_answer)]
    second = [8.0, 8.0, "He wipes it with a cloth."]  # hundredths are taken for seconds
    assert task.read(one[0], answer[0]) == [[0.0, 8.0, "A man waxes his car."], second]
    assert task.scores(one, answer)["R@0.7"] == approx(0.5)  # [0, 8] is near [0.5, 7.5]
    official = task.scores(one, answer, official=True)
    assert official["R@0.9"] == 1.0  # of the best annotator


@pytest.mark.usefixtures("no_java")
@pytest.mark.filterwarnings("ignore:no SODA_c")
@pytest.mark.parametrize("end", ["\n", ". "])
@pytest.mark.parametrize("name", ["youcook2", "activitynet-dense"])
def test_official_scores_of_digit_tokens(name: str, end: str, tmp_path: Path) -> None:
    """The scripts are given digits, as the model's own decoding gives them."""
    task, items = load(name, tmp_path)
    code = AbsoluteTime()

    def said(item: Item) -> Response:
        raw = "".join(
            f"{code.encode(s, 0.0)} - {code.encode(e, 0.0)} seconds, {text}{end}"
            for s, e, text in item.truth[0]
        )
        return Response(text=code.readable(raw, 1e6), raw=raw + "</s>", duration=item.duration)

    answers = [said(item) for item in items]
    plain = [lines(item.truth[0]) for item in items]
    official, expected = (task.scores(items, a, official=True) for a in (answers, plain))
    for score in ("F1", "SODA_c (word-F1)"):
        assert official[score] == approx(expected[score]) and official[score] > 0.8  # type: ignore[operator]
    assert task.scores(items, answers)["F1"] == task.scores(items, plain)["F1"]


@pytest.mark.usefixtures("no_java")
@pytest.mark.filterwarnings("ignore:no SODA_c")
@pytest.mark.parametrize("form", ["{} {} {} . ", "from {} to {} {} .\n"])
@pytest.mark.parametrize("name", ["youcook2", "activitynet-dense"])
def test_official_scores_of_relative_tokens(name: str, form: str, tmp_path: Path) -> None:
    """The scripts are given the seconds of the model's own code."""
    task, items = load(name, tmp_path)
    code = RelativeTime(1000)

    def said(item: Item) -> Response:
        length = float(item.duration or 60.0)
        raw = "".join(
            form.format(code.encode(s, length), code.encode(e, length), text)
            for s, e, text in item.truth[0]
        )
        spans = tuple((s.start, s.end) for s in code.parse(raw, length).spans)
        return Response(code.readable(raw, length), raw + "</s>", spans, duration=length)

    answers = [said(item) for item in items]
    plain = [lines(item.truth[0]) for item in items]
    official, expected = (task.scores(items, a, official=True) for a in (answers, plain))
    for score in ("F1", "SODA_c (word-F1)"):
        assert official[score] == approx(expected[score], 0.05) and official[score] > 0.8  # type: ignore[operator]
    bare = [Response(one.text, one.raw, duration=one.duration) for one in answers]
    with pytest.raises(InputError, match="time tokens"):
        task.scores(items, bare, official=True)


@needs_meteor
def test_meteor_and_cider_alive(tmp_path: Path) -> None:
    """METEOR 1.5 by hand from its English weights, CIDEr-D of equal sentences is 10."""
    meteor, cider = dense._scorers()
    assert (meteor, cider) == dense._scorers()
    pairs = {
        ("a man is waxing his red car", "a man is waxing his red car"): 1.0,
        ("waxing car", "waxes car"): (0.6 + 1) / 2,  # a stem counts 0.6
        ("a dog", "a dogs"): (0.25 * 1 + 0.75 * 0.6) / (0.25 + 0.75),  # "a" is a function word
        ("a big car", "a large car"): (0.25 + 0.75 * 0.8 + 0.75) / (0.25 + 2 * 0.75),  # synonym
        ("a man", "seven dogs"): 0.0,
        ("a man", "?!"): 0.0,
    }
    found = meteor.scores([r for r, _ in pairs], [c for _, c in pairs])
    assert found == approx(list(pairs.values()), 1e-6)
    reference = ["a man is waxing his red car", "two girls dance in a small room"]
    near = ["a man waxes a red car", "two girls are dancing in a room"]
    assert cider.scores(reference, reference) == approx([10.0, 10.0], 1e-6)
    assert 0 < cider.scores(reference, near)[0] < 10
    task, items = load("youcook2", tmp_path)
    said = [lines(item.truth[0]) for item in items]
    scores = task.scores(items, said)
    assert scores["SODA_c"] == scores["METEOR"] == approx(1.0, 1e-6)
    assert scores["CIDEr"] == approx(10.0, 1e-6)
    official = task.scores(items, said, official=True)
    assert official["SODA_c"] == approx(1.0, 1e-6)
    # A corpus of one video: its idf differs, and one pair alone has CIDEr 0.
    assert official["CIDEr"] < scores["CIDEr"]  # type: ignore[operator]
    wrong = [lines([[s, e, "a dog barks"] for s, e, _ in item.truth[0]]) for item in items]
    assert task.scores(items, wrong)["METEOR"] < 0.2  # type: ignore[operator]
    assert task.scores(items, wrong)["F1"] == 1.0
