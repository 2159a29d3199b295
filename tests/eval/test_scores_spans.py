"""Scores of spans: tIoU, R1@m, the mean by video, NExT-GQA; alignment; retrieval and its ties."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores import gqa, retrieval, spans
from vidllm.eval.scores.metrics import iou
from vidllm.timecode import RelativeTime

GOLDENS = Path(__file__).parents[1] / "goldens"


def approx(value: object) -> object:
    return pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", ["timesuite_tvg_iou", "lita_parse_iou"])
def test_tiou_is_the_authors(name: str) -> None:
    data = np.load(GOLDENS / f"{name}.npz")
    for (one, two), expected in zip(data["pairs"], data["iou"], strict=True):
        assert spans.tiou(one, two) == approx(expected)
        assert spans.tiou(two, one) == approx(expected)


def test_tiou_is_the_union_where_spans_overlap_and_zero_elsewhere() -> None:
    draw = np.random.default_rng(0)
    ones, twos = (np.sort(draw.uniform(0, 20, (40, 2)), axis=1) for _ in range(2))
    table = spans.tiou_matrix(ones, twos)
    assert table.shape == (40, 40) and (table > 0).any() and (table == 0).any()
    for i in range(40):
        for j in range(40):
            assert table[i, j] == approx(iou(tuple(ones[i]), tuple(twos[j])))
    for bad in ((3, 3), (5, 2), (math.nan, 4), (0, math.inf), (-math.inf, math.inf)):
        assert spans.tiou(bad, (1, 6)) == 0.0 == spans.tiou((1, 6), bad)
    assert spans.tiou((3, 3), (3, 3)) == 0.0
    assert spans.tiou_matrix([], [(0, 1)]).shape == (0, 1)
    assert spans.tiou((0, 1, 0.9), (0, 1)) == 1.0  # a span may carry its score


def test_thresholds_are_met_by_equality_and_failures_stay() -> None:
    truth = [(0.0, 10.0)] * 5
    said = [(0.0, 3.0), (0.0, 5.0), (0.0, 7.0), (10.0, 0.0), None]
    scores = spans.grounding_scores(said, truth)
    assert scores["R1@0.3"] == approx(3 / 5) and scores["R1@0.5"] == approx(2 / 5)
    assert scores["R1@0.7"] == approx(1 / 5) and scores["mIoU"] == approx(1.5 / 5)
    assert scores["parse_failures"] == approx(1 / 5)
    none = spans.grounding_scores([], [])
    assert set(none.values()) == {None}


def test_official_rounds_before_the_threshold() -> None:
    said, truth = [(0.0, 6.96), (0.0, 6.94)], [(0.0, 10.0)] * 2
    assert spans.grounding_scores(said, truth)["R1@0.7"] == 0.0
    official = spans.grounding_scores(said, truth, official=True)
    assert official["R1@0.7"] == 0.5 and official["mIoU"] == approx((0.70 + 0.69) / 2)


def test_wrong_annotations_are_errors_not_misses() -> None:
    for bad in ((5.0, 2.0), (math.nan, 3.0)):
        with pytest.raises(InputError, match="start before end"):
            spans.grounding_scores([(0, 1)], [bad])
    with pytest.raises(InputError, match="2 predictions, 1 truths"):
        spans.grounding_scores([None, None], [(0, 1)])


def test_rtl_averages_by_video_first_and_whole_videos_only_when_official() -> None:
    truth, videos = [(0.0, 10.0)] * 4, ["a", "a", "a", "b"]
    said = [(0.0, 10.0), (0.0, 10.0), (0.0, 5.0), None]
    scores = spans.rtl_scores(said, truth, videos)
    assert scores["mIoU"] == approx((2.5 / 3 + 0) / 2) and scores["P@0.5"] == approx(0.5)
    official = spans.rtl_scores(said, truth, videos, [20.0] * 4, official=True)
    assert official["mIoU"] == approx((2.5 / 3 + 0.5) / 2) and official["P@0.5"] == approx(1.0)
    with pytest.raises(InputError, match="duration"):
        spans.rtl_scores(said, truth, videos, official=True)


def test_rtl_reads_and_scores_litas_answers() -> None:
    data, code = np.load(GOLDENS / "lita_parse_iou.npz"), RelativeTime()
    durations = [float(d) for d in data["durations"]]
    texts = [str(text) for text in data["texts"]]
    parsed = [code.parse(text, d) for text, d in zip(texts, durations, strict=True)]
    read = [None if p.failed else p.spans[0] for p in parsed]
    truth, videos = [(3.0, 20.0)] * len(read), [str(k) for k in range(len(read))]
    official = spans.rtl_scores(read, truth, videos, durations, official=True)
    expected = np.mean([spans.tiou(span, (3.0, 20.0)) for span in data["spans"]])
    assert official["mIoU"] == approx(expected) and official["parse_failures"] == approx(2 / 5)
    pairs = list(zip(data["pairs"], data["p_at_05"], strict=True))
    scores = spans.rtl_scores([p[0] for p, _ in pairs], [p[1] for p, _ in pairs], videos)
    assert scores["P@0.5"] == approx(float(np.mean([p for _, p in pairs])))


def test_gqa_takes_the_best_segment_and_counts_a_point_inside() -> None:
    segments = [(0.0, 4.0), (10.0, 20.0)]
    assert gqa.best((12.0, 16.0), segments) == approx((1.0, 0.4))
    assert gqa.best((2.0, 14.0), segments) == approx((4 / 12, 4 / 18))
    assert gqa.best((10.0, 10.0), segments) == (1.0, 0.0) and gqa.best((5, 5), segments) == (0, 0)
    assert gqa.best((5.0, 9.0), segments) == (0.0, 0.0)  # negative intersections count 0
    assert gqa.best((16.0, 12.0), segments) == (0.0, 0.0) == gqa.best(None, segments)


def test_gqa_counts_missing_spans_unless_official() -> None:
    said = [(0.0, 8.0), (0.0, 4.0), None, (1.0, 2.0)]
    truth, right = [[(0.0, 4.0)]] * 4, [True, False, True, True]
    scores = gqa.gqa_scores(said, truth, right)
    assert scores["mIoP"] == approx(2.5 / 4) and scores["IoP@0.5"] == approx(3 / 4)
    assert scores["mIoU"] == approx(1.75 / 4) and scores["IoU@0.5"] == approx(2 / 4)
    assert scores["IoU@0.3"] == approx(2 / 4) and scores["IoP@0.3"] == approx(3 / 4)
    assert scores["Acc@QA"] == approx(3 / 4) and scores["Acc@GQA"] == approx(2 / 4)
    official = gqa.gqa_scores(said, truth, right, official=True)
    assert official["mIoP"] == approx(2.5 / 3) and official["Acc@GQA"] == approx(2 / 3)
    assert gqa.gqa_scores([None], [[(0.0, 1.0)]], [True], official=True)["mIoU"] is None


def test_alignment_keeps_sentences_without_a_prediction() -> None:
    from vidllm.encoders.heads.alignment import recall_at_1

    assert recall_at_1([2.0, None, 7.0], [[(1, 3)], [(1, 3)], []]).value == 0.5


def test_retrieval_is_the_authors() -> None:
    data = np.load(GOLDENS / "tempme_metrics.npz")
    for similarity, name in ((data["sim"], "t2v"), (data["sim"].T, "v2t")):
        expected = json.loads(str(data[name]))
        assert retrieval.ranks(similarity).tolist() == [c + 1 for c in expected["cols"]]
        for official in (False, True):
            scores = retrieval.retrieval_scores(similarity, ks=(1, 5, 10, 50), official=official)
            for k in (1, 5, 10, 50):
                assert scores[f"R@{k}"] == approx(expected[f"R{k}"] / 100)
            assert scores["MdR"] == approx(expected["MedianR"])
            assert scores["MnR"] == approx(expected["MeanR"])


def test_equal_scores_bring_no_luck() -> None:
    flat = np.ones((20, 20))
    scores = retrieval.retrieval_scores(flat)
    assert scores == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MdR": 10.5, "MnR": 10.5}
    assert retrieval.retrieval_scores(flat, official=True)["R@1"] == approx(1 / 20)
    table = np.array([[0.9, 0.9, 0.1], [0.0, 1.0, 0.0], [0.5, 0.5, 0.4]])
    assert retrieval.ranks(table).tolist() == [1.5, 1.0, 3.0]
    # official: the first query counts at place 1 and at place 2
    assert retrieval.retrieval_scores(table, official=True)["R@1"] == approx(2 / 4)


def test_retrieval_takes_several_right_items() -> None:
    table = np.array([[0.1, 0.8, 0.9, 0.3], [0.5, 0.5, 0.5, 0.5]])
    assert retrieval.ranks(table, [[1, 3], [0, 1]]).tolist() == [2.0, 1 + 2 / 3]
    assert retrieval.ranks(table, [2, 0]).tolist() == [1.0, 2.5]
    for bad in (table, np.array([[np.nan]]), np.zeros((0, 0))):
        with pytest.raises(InputError, match="similarities"):
            retrieval.ranks(bad)
    for truth in ([[4], [0]], [[], [0]], [[-1], [0]]):
        with pytest.raises(InputError, match="right items"):
            retrieval.ranks(table, truth)
    with pytest.raises(InputError, match="official"):
        retrieval.retrieval_scores(table, [1, 2], official=True)


def test_scores_load_no_torch() -> None:
    names = "spans gqa moments highlights summaries captions matched_captions retrieval choices"
    lines = [f"import vidllm.eval.scores.{name}" for name in (*names.split(), "statistics")]
    code = "; ".join([*lines, "import sys; print('torch' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
