"""Multiple choice: which letter an answer names, marks, accuracy, means over tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores.choices import (
    MLVU_TASKS,
    Marked,
    accuracy,
    accuracy_by,
    choice_scores,
    choose,
    mark,
    mark_log_probabilities,
    task_mean,
)
from vidllm.eval.scores.letters import (
    first_capital,
    lone_capital,
    lone_letter,
    loose_letter,
    read_letter,
)

OPTIONS = ["A man walks.", "Two dogs", "dogs", "3"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B. ", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("[A]", "A"),
        ("A", "A"),
        ("A.", "A"),
        ("B) Two dogs", "B"),
        ("(b) two dogs", "B"),
        ("c. dogs", "C"),
        ("D: 3", "D"),
        ("A - a man", "A"),
        ("A. A man walks.", "A"),
        ("A, because he walks", "A"),
        ("B because there are two", "B"),
        ("A is correct", "A"),
        ("B\nThe dogs run.\nA. is wrong", "B"),
        ("The answer is B", "B"),
        ("The answer is (A).", "A"),
        ("The correct answer to this question is **C**.", "C"),
        ("Best option: (B) Two dogs", "B"),
        ("Answer: D", "D"),
        ("answer: d", "D"),
        ("Option B", "B"),
        ("Option B is the correct one", "B"),
        ("The correct option is A because he walks", "A"),
        ("The answer is A. No, the answer is B.", "B"),
        ("I choose C because of the tail", "C"),
        ("I think it is B.", "B"),
        ("It seems to show (C) in the end", "C"),
        ("B.\n\nQuestion: next? Answer: C", "B"),
        ("A. a man\nB. two dogs\nThe answer is B.", "B"),
        ("A man walks", "A"),
        ("two dogs", "B"),
        ("In the video there are two dogs running.", "B"),
        ("Dogs", "C"),
        ("3", "D"),
        ("C</s>", "C"),
        ("C.<|im_end|>", "C"),
        ("<answer>B</answer>", "B"),
        (r"It walks, so $\boxed{B}$", "B"),
        ("The answer is clearly A, as shown", "A"),
        ("The answer is therefore D", "D"),
    ],
)
def test_letters_that_are_there_are_read(text: str, letter: str) -> None:
    assert read_letter(text, "ABCD", OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "A woman sings",
        "A A man",
        "The answer is a woman",
        "The answer is A woman in red",
        "A and C",
        "The answer is clearly A woman",
        "Answer is not A",
        "A, B",
        "(A) or (B)",
        "E",
        "(E)",
        "It is not clear",
        "A. x\nB. y\nC. z\nD. w",
        "I see a man.",
        "The protein is called C-reactive",
        "Because of the heat",
        "dogs and a man walks",
        "U.S. flag",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    assert read_letter(text, "ABCD", OPTIONS) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>\nSo the answer is (B). Wait.\n</think>\n\nC", "C"),
        ("So the answer is (B). Wait.\n</think>\n\nC", "C"),
        ("<think>B</think><answer>C</answer>", "C"),
        ("<answer>A</answer> no, <answer>D</answer>", "D"),
        ("<answer>\nB. Two dogs\n</answer> not A", "B"),
        ("<thinking>(A)</thinking>The answer is D.", "D"),
        ("B</answer>", "B"),
        ("<think>The answer is B", None),
        ("<think>The answer is B</think>", None),
        ("<think>a</think><answer></answer>", None),
        ("答案是B", "B"),
        ("答案：B。", "B"),
        ("正确答案为（C）。", "C"),
        ("选B因为有两只狗", "B"),
        ("应选择D", "D"),
        ("选项C是正确的", "C"),
        ("B是正确的", "B"),
        ("B。", "B"),
        ("【B】", "B"),
        ("「C」", "C"),
        ("答え: B", "B"),
        ("정답은 B입니다", "B"),
        ("选项A和B都对", None),
        ("A组的人在跑", None),
        ("Ｂ", "B"),
        ("（Ｃ）", "C"),
        ("Ｂ．　Ｔｗｏ　ｄｏｇｓ", "B"),
        ("Ⓑ", "B"),
        ("🅱", "B"),
        ("𝐁", "B"),
        ("B\ufe0f", "B"),
        ("\u200bB\u200b", "B"),
        ("**B**. Two dogs", "B"),
        ("__Answer:__ `D`", "D"),
        ("<b>B</b>", "B"),
        ("<B>", "B"),
        ("### Answer\n**C**", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"$\boxed{C}$", "C"),
        (r"The answer is $C$.", "C"),
        ('{"answer": "B"}', "B"),
        ('{"answer": "b"}', "B"),
        ('```json\n{"final_answer": "D", "confidence": 0.9}\n```', "D"),
        ("{'choice': 'C'}", "C"),
        ("Answer = D", "D"),
        ("Answer → D", "D"),
        ("The answer is: B", "B"),
        ("It walks away, as seen.\n\nB", "B"),
        ("It's not A, it's B", "B"),
        ("The answer is A, B", None),
        ("The answer is (A) or (B)", None),
        ("The answer is not A but B", None),
        ("The options:\nA\nB\nC", None),
        ("ABCD", None),
        ("A1", None),
        ("Plan B failed", None),
        ("Vitamin C", None),
    ],
)
def test_a_letter_in_other_clothes_is_the_same_letter(text: str, letter: str | None) -> None:
    assert read_letter(text, "ABCD", OPTIONS) == letter


def test_letters_without_options_and_of_other_counts() -> None:
    assert read_letter("A man walks", "ABCD") is None
    assert read_letter("E. five", "ABCDE") == "E" and read_letter("C", "AB") is None
    assert read_letter("yes", "AB", ["yes", "no"]) == "A"
    assert read_letter("same", "AB", ["same", "Same."]) is None
    assert read_letter("B", "ABC", ["C", "A", "B"]) == "B"  # a letter is a letter
    for letters in ("", "AA", "ab", "A1"):
        with pytest.raises(InputError, match="letters"):
            read_letter("A", letters)
    with pytest.raises(InputError, match="3 options"):
        read_letter("A", "AB", ["x", "y", "z"])


def test_the_loose_parsers_take_an_article_for_an_option() -> None:
    assert loose_letter("A man opens the door", "ABCD") == "A"
    assert read_letter("A man opens the door", "ABCD") is None
    assert loose_letter("(B) or A", "ABCD") == "B" and loose_letter("C.", "ABCD") == "C"
    assert loose_letter("two dogs run", "ABCD", ["x", "two dogs", "y", "z"]) == "B"
    assert loose_letter("", "ABCD", OPTIONS) is None and loose_letter("no idea") is None


def test_unread_answers_are_wrong_and_count() -> None:
    said = ["A", "(B)", "A man", "", None]
    marked = mark(said, ["A", "C", "A", "A", "A"])
    assert [m.choice for m in marked] == ["A", "B", None, None, None]
    assert accuracy(marked) == pytest.approx(1 / 5)
    scores = choice_scores(marked)
    assert scores["parse_failures"] == pytest.approx(3 / 5) and scores["left_out"] == 0.0
    with pytest.raises(InputError, match="question 0: the right answer 'E'"):
        mark(["A"], ["E"])
    with pytest.raises(InputError, match="none of AB"):
        mark(["A"], ["C"], options=[["x", "y"]])
    assert accuracy([]) is None


def test_official_marks_are_those_of_the_script() -> None:
    said, truth = ["A", "", None, "A man"], ["A", "A", "A", "A"]
    mvbench = mark(said, truth, official=True, benchmark="mvbench")
    assert accuracy(mvbench) == 1.0  # two empty answers are left out, "A man" is A
    assert choice_scores(mvbench)["left_out"] == pytest.approx(1 / 2)
    nextqa = mark(said, truth, official=True, benchmark="nextqa")
    assert [m.parsed for m in nextqa] == [True, False, False, True]
    assert nextqa[3].right and all(m.choice for m in nextqa)  # "A man" is A, the others guesses
    assert mark(said, truth, official=True, benchmark="mlvu") == mark(said, truth)
    with pytest.raises(InputError, match="benchmark"):
        mark(said, truth, official=True)


def test_each_script_reads_as_it_does() -> None:
    assert first_capital("Because", "ABCD") == "B" and first_capital("the answer is c") is None
    assert lone_capital("A man in B") == "A" and lone_capital("a man") is None
    assert lone_letter("I see a man") == "A" and lone_letter("Because") is None

    def one(text: str, benchmark: str) -> Marked:
        return mark([text], ["B"], letters="ABCD", official=True, benchmark=benchmark)[0]

    assert one("Because it rains", "videomme").right  # no word of an option
    assert not one("no idea", "videomme").counts and one("C", "videomme").counts
    assert one("Best option: C", "videomme").choice == "B"  # its list of phrases lacks a comma
    assert one("Best option: C", "longvideobench").choice == "C"
    assert one("Each", "longvideobench").choice == "E"  # though there are four options
    assert one("A man, so B", "perceptiontest").choice == "A"
    assert one("the ball is a red one", "mvbench").choice == "A"


def test_official_guesses_are_seeded_and_near_chance() -> None:
    said, truth = ["no idea"] * 400, ["B"] * 400
    options = {"official": True, "benchmark": "longvideobench"}
    one, again, other = (mark(said, truth, seed=s, **options) for s in (1, 1, 2))  # type: ignore[arg-type]
    assert one == again != other
    share = accuracy(one)
    assert share is not None and 0.15 < share < 0.35
    assert choice_scores(one)["parse_failures"] == 1.0
    assert accuracy(mark(said, truth)) == 0.0


def test_log_probabilities_choose_and_ties_do_not_win() -> None:
    assert choose([-2.0, -0.5, -1.0]) == 1 and choose([-1.0, -1.0]) is None
    assert choose([-1.0, math.nan]) is None and choose([-math.inf, -math.inf]) is None
    assert choose([-math.inf, -3.0]) == 1
    marked = mark_log_probabilities([[-1, -2], [-1, -1], None, [-2, -1, -3]], ["A", "A", "A", "B"])
    assert [m.right for m in marked] == [True, False, False, True]
    assert [m.parsed for m in marked] == [True, False, False, True]
    for call in (
        lambda: choose([]),
        lambda: mark_log_probabilities([np.zeros(2)], ["C"]),
    ):
        with pytest.raises(InputError):
            call()


def test_every_task_weighs_the_same() -> None:
    marked = [Marked("A", True, True)] * 3 + [Marked("B", False, True)]
    tasks = ["count", "count", "order", "ego"]
    assert accuracy_by(marked, tasks) == {"count": 1.0, "order": 1.0, "ego": 0.0}
    assert accuracy(marked) == pytest.approx(3 / 4)
    assert task_mean(marked, tasks) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="all 7 tasks, not 3"):
        task_mean(marked, tasks, count=MLVU_TASKS)
    seven = [f"task{k}" for k in range(7)]
    rows = [Marked("A", k < 3, True) for k in range(7)]
    assert task_mean(rows, seven, count=MLVU_TASKS) == pytest.approx(3 / 7)
