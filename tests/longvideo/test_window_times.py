"""Times of windows' answers: those that the reader of all answers takes, or none."""

from __future__ import annotations

import copy

import pytest
from long_tiny import loud_model

from vidllm.longvideo.times import AnswerTimes

MODEL, TOKENIZER = loud_model()
TAGGED = copy.deepcopy(TOKENIZER)
TAGGED.add_tokens(["<think>", "</think>", "<answer>", "</answer>"])


def told(text: str, tokenizer: object = TOKENIZER) -> tuple[list[int], AnswerTimes]:
    reads = AnswerTimes(MODEL.config, tokenizer)  # type: ignore[arg-type]
    return list(reads.tokenizer(text, add_special_tokens=False)["input_ids"]), reads


def numbers(text: str, tokenizer: object = TOKENIZER) -> list[int] | None:
    ids, reads = told(text, tokenizer)
    found = reads.of(ids)
    return None if found is None else [ids[at] - reads.ids.start for at in found]


@pytest.mark.parametrize(
    ("answer", "expected", "settled"),
    [
        ("from <t10> to <t20>", [10, 20], True),
        ("from <t10> to <t20> the red star spins", [10, 20], True),
        ("<t10> <t20> , from <t30> to <t40>", [10, 20], True),
        ("the star spins at <t10> the star spins at <t20>", [10, 20], False),
        ("<t5> the star from <t10> to <t20>", [10, 20], False),  # the first two are no span
        ("the star spins at <t10>", None, False),
        ("the red star", None, False),
        ("", None, False),
    ],
)
def test_the_first_span_of_an_answer(
    answer: str, expected: list[int] | None, settled: bool
) -> None:
    ids, reads = told(answer)
    assert numbers(answer) == expected
    assert reads.settled(ids) == settled


def test_what_is_thought_is_no_answer_of_a_window() -> None:
    thought = "<think> from <t1> to <t2>"
    assert numbers(thought, TAGGED) is None
    assert numbers(thought + " </think> from <t3> to <t4>", TAGGED) == [3, 4]
    assert numbers("from <t1> to <t2> </think> <answer> <t5> <t6> </answer>", TAGGED) == [5, 6]
    assert numbers("from <t1> to <t2> </think> the red star", TAGGED) is None
    ids, reads = told("from <t1> to <t2>", TAGGED)
    assert not reads.settled(ids)  # a tag may still come
