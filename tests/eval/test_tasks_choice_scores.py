"""Multiple-choice benchmarks: letters of answers, both accuracies, means over tasks, scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from eval_data_choice import MAKERS

from vidllm.errors import InputError
from vidllm.eval.tasks import Item, Response, get_task
from vidllm.eval.tasks.choice import MultipleChoice, bare, letter_at, letter_for, letter_named

Pair = tuple[MultipleChoice, list[Item]]


@pytest.fixture(scope="module")
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A benchmark and its miniature items."""
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder)
    found = get_task(request.param)
    assert isinstance(found, MultipleChoice)
    return found, found.items(folder, found.splits[0])


every = pytest.mark.parametrize("task", MAKERS, indirect=True)


def sure_of(item: Item, letter: str) -> dict[str, float]:
    """Log-probabilities that favour a letter."""
    return {name: -0.1 if name == letter else -5.0 for name in item.letters}


def perfect(items: Sequence[Item]) -> list[Response]:
    return [Response(text=f"({i.truth})", letters=sure_of(i, i.truth)) for i in items]


@every
def test_perfect_answers(task: Pair) -> None:
    bench, items = task
    for official in (False, True):
        scores = bench.scores(items, perfect(items), official=official)
        assert scores[bench.headline] == 1.0 and scores["accuracy"] == 1.0
        assert scores["accuracy_logprob"] == 1.0 and scores["agreement"] == 1.0
        assert scores["parse_failures"] == scores["logprob_failures"] == 0.0
        assert all(v == 1.0 for name, v in scores.items() if name.startswith("accuracy"))
        for group in items[0].groups:
            assert f"accuracy/{group}/{items[0].groups[group]}" in scores
    assert [bench.value(i, r) for i, r in zip(items, perfect(items), strict=True)] == [1.0] * len(
        items
    )


@every
@pytest.mark.parametrize(
    "answer",
    [
        Response(text="hard to say"),
        Response(text=""),
        Response(error="no video"),
        Response(text="A", error="cut off"),
    ],
)
def test_nonsense_empty_and_failed_answers_count_as_wrong(task: Pair, answer: Response) -> None:
    bench, items = task
    answers = [answer] * len(items)
    scores = bench.scores(items, answers)
    assert scores[bench.headline] == 0.0 and scores["parse_failures"] == 1.0
    assert scores["accuracy_logprob"] is None and scores["agreement"] is None
    assert bench.read(items[0], answer) is None and bench.value(items[0], answer) == 0.0
    official = bench.scores(
        items, answers, official=True
    )  # however wrong a script, it gives scores
    assert set(official) - {"left_out"} == set(scores)


@every
def test_what_a_model_says_never_raises(task: Pair) -> None:
    bench, items = task
    for text in ("\x00", "<t3>", "(A", "A" * 500, "١", "<|im_end|>", "[{}]", "\\boxed{}", "\n\n"):
        answers = [Response(text=text, letters=dict.fromkeys(i.letters, -1.0)) for i in items]
        json.dumps([bench.read(i, r) for i, r in zip(items, answers, strict=True)])
        for official in (False, True):
            json.dumps(bench.scores(items, answers, official=official), allow_nan=False)


@every
def test_samples_have_the_headline_as_their_mean(task: Pair) -> None:
    bench, items = task
    answers = [Response(text="AB"[k % 2]) for k in range(len(items))]
    samples = bench.samples(items, answers)
    assert np.mean([value for _, value in samples]) == pytest.approx(
        bench.scores(items, answers)[bench.headline]
    )
    assert [vid for vid, _ in samples] == [item.vid for item in items]
    with pytest.raises(InputError, match="one of each"):
        bench.samples(items, answers[1:])


def some(
    count: int, task: str = "", choices: tuple[str, ...] = ("A man", "A dog", "3")
) -> list[Item]:
    return [
        Item(f"q{k}", f"v{k // 2}", "v.mp4", "?", "A", choices=choices, groups={"task": task})
        for k in range(count)
    ]


def test_letters_are_read_as_they_are_meant() -> None:
    bench, (item,) = get_task("perceptiontest"), some(1)
    said = {
        "A man walks": "A",  # the text of option A, not the article
        "A woman walks": None,
        "A dog": "B",
        "A": "A",
        "(B) A dog": "B",
        "Because of the 3 cats": "C",
        "The best answer is: C": "C",
        "A and B": None,
        "D": None,
    }
    assert {text: bench.read(item, Response(text=text)) for text in said} == said


def test_both_ways_of_answering_by_hand() -> None:
    items = some(4)
    answers = [
        Response(text="A", letters={"A": -0.1, "B": -3.0, "C": -4.0}),  # both right
        Response(text="B", letters={"A": -0.1, "B": -3.0, "C": -4.0}),  # log-probability right
        Response(text="hm", letters={"A": -1.0, "B": -1.0, "C": -4.0}),  # neither, a tie
        Response(text="C", letters={"A": -9.0, "B": -3.0, "C": -0.2}),  # both wrong, they agree
    ]
    scores = get_task("perceptiontest").scores(items, answers)
    assert scores["accuracy"] == pytest.approx(1 / 4)
    assert scores["accuracy_logprob"] == pytest.approx(2 / 4)
    assert scores["agreement"] == pytest.approx(2 / 4)
    assert scores["parse_failures"] == scores["logprob_failures"] == pytest.approx(1 / 4)
    assert scores["accuracy/task/"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("letters", [{"A": -0.1, "B": -3.0}, {"A": math.nan, "B": 0.0, "C": -1.0}])
def test_log_probabilities_that_are_not_whole_choose_nothing(letters: dict[str, float]) -> None:
    bench, items = get_task("perceptiontest"), some(2)
    answers = [
        Response(text="A", letters=letters),
        Response(text="A", letters=sure_of(items[1], "A")),
    ]
    scores = bench.scores(items, answers)
    assert scores["accuracy"] == 1.0 and scores["accuracy_logprob"] == 0.5
    assert scores["logprob_failures"] == 0.5 and scores["agreement"] == 0.5


@pytest.mark.parametrize("task", ["mlvu", "mvbench"], indirect=True)
def test_every_task_weighs_the_same_and_all_must_be_there(task: Pair) -> None:
    bench, items = task
    first = items[0].groups["task"]  # two questions; all others have one
    answers = [
        Response(text=f"({i.truth if i.groups['task'] == first else 'E'})", letters=sure_of(i, "A"))
        for i in items
    ]
    scores = bench.scores(items, answers)
    tasks = len(items) - 1
    assert scores["task_mean"] == pytest.approx(1 / tasks)
    assert scores["accuracy"] == pytest.approx(2 / (tasks + 1))
    part = bench.scores(items[:-1], answers[:-1])
    assert part["task_mean"] is None and part["task_mean_logprob"] is None
    assert part["accuracy"] == pytest.approx(2 / tasks)


def test_the_full_set_of_egoschema_is_submitted_not_scored(tmp_path: Path) -> None:
    MAKERS["egoschema"](tmp_path)
    bench = get_task("egoschema")
    assert isinstance(bench, MultipleChoice)
    items = bench.items(tmp_path, "full")
    answers = [Response(text="C"), Response(text="no idea"), Response(text="(E) C sleeps.")]
    scores = bench.scores(items, answers)
    assert scores["accuracy"] is None and scores["accuracy_logprob"] is None
    assert scores["parse_failures"] == pytest.approx(1 / 3)
    assert bench.value(items[0], answers[0]) is None and bench.samples(items, answers) == []
    submission = bench.submission(items, answers)
    assert submission == dict(zip((item.id for item in items), (2, -1, 4), strict=True))
    assert "not public" in bench.notes["full"] and "subset" not in bench.notes


def test_official_scores_are_those_of_the_scripts() -> None:
    items = some(4, choices=("He sits", "He runs", "He eats"))
    answers = [Response(text=text) for text in ("A", "", "A woman sits", "zzz")]

    def accuracy(name: str, official: bool) -> float | None:
        return get_task(name).scores(items, answers, official=official)["accuracy"]

    for name in ("mvbench", "nextqa", "egoschema", "longvideobench", "videomme", "mlvu"):
        assert accuracy(name, False) == pytest.approx(1 / 4)
    mvbench = get_task("mvbench").scores(items, answers, official=True)
    assert mvbench["left_out"] == pytest.approx(1 / 4)  # the empty one
    assert accuracy("mlvu", True) == accuracy("mlvu", False)
    for name in ("nextqa", "egoschema", "longvideobench"):
        found = accuracy(name, True)
        assert found is not None and found >= 2 / 4  # "A woman sits" is option A
    guessed = get_task("longvideobench").scores(items, answers, official=True)
    assert guessed == get_task("longvideobench").scores(items, answers, official=True)


def test_options_and_letters_of_official_files() -> None:
    texts = ["A. A man.", "B) Two", "(C) a. b", "Dogs"]
    assert bare(texts) == ("A man.", "Two", "a. b", "Dogs")
    assert bare(["B. first", "A man"]) == ("B. first", "A man")  # not the letter of its place
    assert letter_at("2", 3, "f") == "C" and letter_at(0, 2, "f") == "A"
    assert letter_for(" two ", ["one", "two", "two"], "f") == "B"
    assert letter_named("(c)", 3, "f") == "C"
    for call in (
        lambda: letter_at(3, 3, "file, the field 'x'"),
        lambda: letter_at(-1, 3, "file, the field 'x'"),
        lambda: letter_at("A", 3, "file, the field 'x'"),
        lambda: letter_for("three", ["one", "two"], "file, the field 'x'"),
        lambda: letter_named("D", 3, "file, the field 'x'"),
        lambda: letter_named("", 3, "file, the field 'x'"),
    ):
        with pytest.raises(InputError, match="file, the field 'x'"):
            call()
