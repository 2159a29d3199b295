"""Moments and highlights: QVHighlights' mAP, R1, HL mAP and HIT@1; TVSum's top 5 and ranks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores.highlights import clip_precision, highlight_scores, rating_table
from vidllm.eval.scores.moments import IOUS, average_precision, moment_scores, ranked
from vidllm.eval.scores.summaries import (
    kendall_tau,
    rank_scores,
    spearman_rho,
    top_precision,
    tvsum_map,
)

GOLDENS = Path(__file__).parents[1] / "goldens"


def approx(value: object) -> object:
    return pytest.approx(value, abs=1e-9)


def test_average_precision_by_hand() -> None:
    truth = [(0.0, 10.0), (20.0, 30.0)]
    # hit, miss, hit: precision 1 at recall 1/2, 2/3 at recall 1
    windows = [(0, 10, 0.9), (50, 60, 0.8), (20, 30, 0.7)]
    assert average_precision(windows, truth) == approx([(1 + 2 / 3) / 2] * 10)
    # miss, hit, hit: interpolated, the first hit has the later precision 2/3
    windows = [(50, 60, 0.9), (0, 10, 0.8), (20, 30, 0.7)]
    assert average_precision(windows, truth) == approx([2 / 3] * 10)
    # a second window on the same truth is false
    windows = [(0, 10, 0.9), (0, 10, 0.8)]
    assert average_precision(windows, truth) == approx([0.5] * 10)
    # IoU 0.8 passes up to 0.8, by equality
    assert average_precision([(0, 8)], [(0, 10)]).tolist() == [float(m <= 0.8) for m in IOUS]
    assert average_precision([], truth).tolist() == [0.0] * 10


def test_a_window_takes_the_free_truth_that_it_overlaps_most() -> None:
    truth = [(0.0, 10.0), (2.0, 12.0)]
    windows = [(2, 12, 0.9), (2, 12, 0.8)]  # IoU 1 and 2/3
    found = average_precision(windows, truth)
    assert found == approx([1.0 if m <= 2 / 3 else 0.5 for m in IOUS])


def test_windows_are_ranked_by_score_unless_official() -> None:
    windows = [(0, 1, 0.1), (5, 6, 0.9), (7, 8, math.nan), (2, 3, 0.9)]
    assert [w[0] for w in ranked(windows)] == [5, 2, 0, 7]
    assert [w[0] for w in ranked([(3, 4), (1, 2)])] == [3, 1] and ranked(None) == []
    many = [(0, 1, 0.1 * k) for k in range(12)]
    assert ranked(many)[0][2] == approx(1.1) and len(ranked(many)) == 10
    assert ranked(many, official=True)[0][2] == approx(0.9)


def test_moment_scores_by_hand() -> None:
    truth = [[(0.0, 8.0), (20.0, 40.0)], [(0.0, 50.0)], [(10.0, 20.0)]]
    said = [[(20, 40, 0.9), (0, 8, 0.5)], [(0, 30, 1.0)], None]
    scores = moment_scores(said, truth)
    assert scores["R1@0.5"] == approx(2 / 3) and scores["R1@0.7"] == approx(1 / 3)
    assert scores["mIoU"] == approx(1.6 / 3) and scores["mAP@0.75"] == approx(1 / 3)
    assert scores["mAP@0.5"] == approx(2 / 3)
    assert scores["mAP"] == approx((1 + 0.3 + 0) / 3)  # 0.6 passes .5, .55 and .6 of ten
    assert scores["mAP_long"] == approx(0.3) and scores["R1@0.7_long"] == 0.0
    assert scores["mAP_middle"] == approx(1.0) and scores["R1@0.5_middle"] == 1.0
    # short: query 0 finds its window second, and the one of another length is false; query 2
    assert scores["mAP_short"] == approx(0.5 / 2) and scores["R1@0.5_short"] == 0.0
    assert scores["parse_failures"] == approx(1 / 3)
    with pytest.raises(InputError, match="query 1 has no true window"):
        moment_scores([None, None], [[(0, 1)], []])


def test_official_moments_trust_the_order_of_the_file() -> None:
    truth, said = [[(0.0, 10.0)]], [[(50, 60, 0.1), (0, 10, 0.9)]]
    assert moment_scores(said, truth)["R1@0.5"] == 1.0
    official = moment_scores(said, truth, official=True)
    assert official["R1@0.5"] == 0.0 and official["mAP"] == 1.0
    late = [[*[(50, 60, 0.1)] * 10, (0, 10, 0.9)]]
    assert moment_scores(late, truth)["mAP"] == 1.0
    assert moment_scores(late, truth, official=True)["mAP"] == 0.0
    huge = moment_scores([[(0, 200)]], [[(0.0, 200.0)]], official=True)
    assert huge["mAP"] == 1.0 and huge["mAP_long"] is None


def test_hit_at_1_is_the_authors_when_official() -> None:
    data = np.load(GOLDENS / "timesuite_vhd_hit1.npz")
    ids = np.flatnonzero(data["gt_full"].any(axis=1))
    table = rating_table(len(data["gt_full"]), [int(k) for k in ids], data["gt_full"][ids].tolist())
    assert np.array_equal(table >= 4, data["gt_binary"] == 1)
    said = list(data["preds"])
    official = highlight_scores(said, [table] * len(said), official=True)
    value = official["HIT@1 VeryGood"]
    assert value is not None and round(100 * value, 2) == approx(float(data["hit1"]))
    # by default clips that all score 0 share the hit: two of ten are highlights
    honest = highlight_scores(said, [table] * len(said))
    assert honest["HIT@1 VeryGood"] == approx((0 + 1 + 0.2) / 3)


def test_clip_precision_by_hand() -> None:
    assert clip_precision([1, 0, 1], [0.9, 0.8, 0.7]) == approx((1 + 2 / 3) / 2)
    assert clip_precision([0, 1, 1], [0.9, 0.8, 0.7]) == approx(2 / 3)
    assert clip_precision([0, 0], [1, 2]) == 0.0 and clip_precision([1, 1], [1, 2]) == 1.0
    for order in ([1, 0, 0, 0], [0, 0, 1, 0]):  # ties: the order in the file does not matter
        assert clip_precision(order, [5, 5, 5, 5]) == approx(0.25)
    # one positive at rank 1, two tied with a negative at rank 2 to 4: steps 1/3 and 2/3
    labels, scores = [1, 1, 1, 0], [0.9, 0.5, 0.5, 0.5]
    assert clip_precision(labels, scores) == approx(1 / 3 + 2 / 3 * 3 / 4)
    assert clip_precision(labels, scores, official=True) == approx((1 + 3 / 4) / 2)
    draw = np.random.default_rng(1)
    labels, distinct = draw.integers(0, 2, 30), draw.permutation(30)
    assert clip_precision(labels, distinct) == approx(
        clip_precision(labels, distinct, official=True)
    )


def test_highlights_average_raters_and_count_failures() -> None:
    table = np.array([[4, 4, 2], [0, 3, 3], [0, 0, 0]])
    scores = highlight_scores([[0.9, 0.5, 0.1], None], [table, table])
    # VeryGood: AP 1, 1 and 0 (no highlight); Good: 1, 1 and 1/2; Fair: all 1
    assert scores["HL mAP VeryGood"] == approx(2 / 3 / 2)
    assert scores["HL mAP Good"] == approx(2.5 / 3 / 2) and scores["HL mAP Fair"] == approx(0.5)
    assert scores["HIT@1 VeryGood"] == approx(0.5) and scores["parse_failures"] == approx(0.5)
    official = highlight_scores([[0.9, 0.5, 0.1], None], [table, table], official=True)
    assert official["HIT@1 VeryGood"] == approx(1.0)  # no answer names clip 0
    longer = [[0.1, 0.2, 0.3, 9.0]]  # a score past the end of the video
    assert highlight_scores(longer, [table])["HIT@1 Good"] == 0.0
    assert highlight_scores([[0.1, 0.9, 0.2, 9.0]], [table])["HIT@1 Good"] == 1.0
    assert highlight_scores([[0.1, 0.9, 0.2, 9.0]], [table], official=True)["HIT@1 Good"] == 0.0
    assert highlight_scores([[-1.0]], [table])["HIT@1 VeryGood"] == 1.0  # missing clips rank last
    with pytest.raises(InputError, match="clip 3"):
        rating_table(3, [3], [[1, 2, 3]])
    with pytest.raises(InputError, match="raters"):
        highlight_scores([[1.0]], [np.zeros(3)])


def test_top_precision_is_a_trapezoid() -> None:
    assert top_precision([1, 1, 1, 1, 1]) == 1.0 and top_precision([0] * 5) == 0.0
    assert top_precision([1, 0, 0, 0, 0]) == 1.0
    assert top_precision([0, 1, 0, 0, 0]) == approx((0 + 1 / 2) / 2)
    assert top_precision([1, 0, 1]) == approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert top_precision([1, 0, 1, 1], top=2, positives=3) == approx(1 / 3)


def test_official_tvsum_divides_by_what_was_found() -> None:
    ratings = np.array([[1, 1, 1, 5, 5, 5, 1, 1, 1]]).T
    said = [9, 1, 1, 8, 1, 1, 7, 6, 5]  # one of three highlights among the top 5, at rank 2
    assert tvsum_map([said], [ratings]) == approx([0.25 / 3])
    assert tvsum_map([said], [ratings], official=True) == approx([0.25])
    assert tvsum_map([None], [ratings]) == [0.0]
    perfect = ratings[:, 0] + 0.0
    assert tvsum_map([perfect], [ratings]) == approx([1.0])
    even = np.array([[3, 1, 2, 3]]).T  # above the median 2.5: the first and the last
    assert tvsum_map([[1, 0, 0, 0]], [even], top=1) == [1.0]
    two = np.hstack([even, np.zeros((4, 1))])  # the second annotator likes nothing: 0
    assert tvsum_map([[1, 0, 0, 0]], [two], top=1) == [0.5]


def test_rank_correlations() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == approx(4 / 6)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == approx(-1) == spearman_rho([1, 2, 3], [3, 2, 1])
    # tau-b with ties: 4 agree, 0 disagree, of 6 pairs 5 untied in a and 5 in b
    assert kendall_tau([1, 1, 2, 3], [1, 2, 2, 3]) == approx(4 / 5)
    draw = np.random.default_rng(2)
    one, two = draw.integers(0, 6, 50), draw.integers(0, 6, 50)
    frame = pd.DataFrame({"one": one, "two": two})
    assert spearman_rho(one, two) == approx(frame.corr(method="spearman").iloc[0, 1])
    assert math.isnan(kendall_tau([1, 1], [1, 2])) and math.isnan(spearman_rho([1, 1], [1, 2]))


def test_rank_scores_count_a_constant_as_no_order() -> None:
    ratings = np.array([[1, 2, 3], [2, 2, 2]]).T  # the second annotator rates all alike
    said = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], None]
    scores = rank_scores(said, [ratings] * 3)
    assert scores["tau"] == approx(1 / 3) and scores["rho"] == approx(1 / 3)
    official = rank_scores(said[:1], [ratings], official=True)
    assert official["tau"] is not None and math.isnan(official["tau"])
