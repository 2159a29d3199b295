"""Scores on hand-made cases, and baselines of the benchmark `stage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from vidllm.eval.scores.metrics import (
    Reply,
    clustered_interval,
    event_f1,
    iou,
    merged,
    normal,
    sentences,
    set_iou,
    summarise,
)
from vidllm.eval.tasks.baselines import Fit, baselines, fit, patterns
from vidllm.stage.files import Sample, write_stage
from vidllm.stage.questions import QA_KINDS

SEED = 137  # the first clips of this benchmark seed are short


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return write_stage(data, "test", SEED, 2)


def made(
    kind: str,
    truth: str,
    text: str = "",
    *,
    spans: Sequence[tuple[float, float]] = (),
    true: Sequence[tuple[float, float]] = (),
    said: Sequence[str] | None = None,
    vid: str = "a",
) -> Reply:
    """A reply about a clip of 100 s."""
    after = tuple(said) if said is not None else ("",) * len(spans)
    return Reply(
        f"{vid}-0", vid, kind, "?", 100.0, truth, tuple(true), text, tuple(spans), after
    )  # fmt: skip


def ground(true: tuple[float, float], *spans: tuple[float, float], vid: str = "a") -> Reply:
    return made("ground", "from {} to {}", spans=spans, true=[true], vid=vid)


def test_iou_uses_the_true_union() -> None:
    assert iou((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert iou((0, 1), (9, 10)) == 0
    assert iou((3, 7), (3, 7)) == 1
    assert iou((5, 5), (0, 10)) == iou((5, 5), (5, 5)) == 0
    # Two of three seconds, and a second that nobody asked for: the hull would give 2 / 10.
    assert set_iou([(0, 2), (9, 10)], [(0, 3)]) == pytest.approx(2 / 4)
    assert set_iou([(0, 2), (1, 3)], [(0, 3)]) == 1
    assert set_iou([], [(0, 3)]) == 0
    assert merged([(4, 5), (3, 1), (2, 4)]) == [(1, 5)]


def test_recall_counts_from_its_threshold_on_and_takes_the_first_span() -> None:
    scores = summarise(
        [
            ground((0, 10), (0, 5)),  # exactly 0.5
            ground((0, 10), (0, 10)),
            ground((0, 10), (50, 60), (0, 10)),  # only the first span counts
            ground((0, 10)),  # no span: 0, and in the denominator
        ],
        QA_KINDS,
    )
    assert scores["mIoU"] == pytest.approx(1.5 / 4)
    assert (scores["R1@0.3"], scores["R1@0.5"], scores["R1@0.7"]) == (0.5, 0.5, 0.25)
    assert scores["parse_failures"] == 0.25
    assert scores["n"] == 4


def test_short_answers_are_compared_up_to_case_blanks_and_punctuation() -> None:
    assert normal("  The Red\tstar. ") == "the red star"
    said = [
        made("count", "2", "2"),
        made("which", "the red star", "The red  star!"),
        made("which", "the red star", "red star"),
        made("does", "spins", ""),
    ]
    scores = summarise(said, QA_KINDS)
    assert scores["qa_accuracy"] == 0.5
    assert scores["qa_by_kind"] == {"does": 0.0, "which": 0.5, "count": 1.0}
    assert scores["parse_failures"] is None
    assert scores["mIoU"] is None
    assert scores["mIoU_ci95"] is None


def test_why_needs_the_cause_and_half_of_the_span() -> None:
    truth = "from {} to {} because the red star spins"
    because = "because the red star spins ."

    def why(span: tuple[float, float], said: str) -> Reply:
        return made("why", truth, spans=[span], true=[(0, 10)], said=[said])

    answers = [
        why((0, 9), because),
        why((0, 4), because),
        why((0, 10), "because the blue star spins"),
        made("why", truth, because, true=[(0, 10)]),
    ]
    scores = summarise(answers, QA_KINDS)
    assert scores["why_accuracy"] == 0.25
    assert scores["why_mIoU"] == pytest.approx((0.9 + 0.4 + 1.0 + 0) / 4)


def test_captions_match_events_by_span_and_sentence() -> None:
    truth = "from {} to {} the star spins . from {} to {} the flag jumps ."
    true, right = [(0.0, 10.0), (20.0, 30.0)], sentences(truth)
    assert [normal(s) for s in right] == ["the star spins", "the flag jumps"]
    assert event_f1(true, ["the star spins.", "The flag jumps"], true, right) == 1
    assert event_f1(true[:1], ["the star spins"], true, right) == pytest.approx(2 / 3)
    assert event_f1(true, ["the flag jumps", "the star spins"], true, right) == 0
    twice = [(0.0, 10.0), (0.0, 9.0)]
    assert event_f1(twice, ["the star spins"] * 2, true, right) == 0.5  # one match, of 2 and 2
    assert event_f1([], [], true, right) == 0


def test_highlights_are_one_set_of_seconds() -> None:
    reply = made(
        "highlights", "from {} to {} , from {} to {}", spans=[(0, 10)], true=[(0, 10), (50, 60)]
    )
    assert summarise([reply], QA_KINDS)["highlights_mIoU"] == 0.5


def test_miou_is_told_by_length() -> None:
    replies = [ground((0, 5), (0, 5)), ground((0, 10)), ground((0, 40), (0, 20))]
    table = summarise(replies, QA_KINDS)["mIoU_by_length"]
    assert {name: (row["mIoU"], row["n"]) for name, row in table.items()} == {
        "4-10%": (1.0, 1),
        "10-20%": (0.0, 1),
        "20-40%": (0.5, 1),
    }
    assert "0-4%" in summarise([ground((0, 1), (0, 1))], QA_KINDS)["mIoU_by_length"]


def test_the_interval_draws_whole_videos() -> None:
    values, videos = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    assert clustered_interval(values, videos, 0) == [0.0, 1.0]  # two videos: nothing is certain
    rng = np.random.default_rng(0)
    many = rng.random(400).tolist()
    low, high = clustered_interval(many, [str(i // 2) for i in range(400)], 1) or [0, 0]
    assert low < np.mean(many) < high
    assert 0.03 < high - low < 0.08
    assert clustered_interval(many, [str(i) for i in range(400)], 2) == clustered_interval(
        many, [str(i) for i in range(400)], 2
    )


def test_question_patterns_leave_out_what_differs_from_clip_to_clip() -> None:
    assert patterns("does the red star spin?") == (
        "does the COLOUR NOUN spin",
        "does the COLOUR NOUN VERB",
    )
    assert patterns("what happens first?") == ("what happens first",) * 2
    assert (
        patterns("which colour does the flag change to?")[1]
        == "which colour does the NOUN change to"
    )


def test_baselines_score_answers_without_a_video(samples: list[Sample]) -> None:
    learnt = fit(120)
    assert 0 <= learnt.span[0] < learnt.span[1] <= 1
    assert learnt.guess("how many times does the pink crown jump?") in ("1", "2")
    assert learnt.guess("something that nobody ever asked") in learnt.answers.values()
    scores = baselines(samples, learnt, seed=1)
    shares = [
        (q.spans[0][1] - q.spans[0][0]) / s.duration
        for s in samples
        for q in s.questions
        if q.kind == "ground"
    ]
    assert scores["whole_video"]["mIoU"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert 0 < scores["random_span"]["mIoU"] < 0.4
    assert scores == baselines(samples, learnt, seed=1)
    known = {q.text: q.answer for s in samples for q in s.questions if q.kind in QA_KINDS}
    perfect = Fit((0.0, 1.0), {"": "", **{patterns(t)[0]: a for t, a in known.items()}})
    assert baselines(samples, perfect, 0)["question_only"]["qa_accuracy"] > 0.7
