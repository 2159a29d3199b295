"""Intervals and paired tests: videos are drawn whole, and swaps of runs are counted exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores.metrics import clustered_interval
from vidllm.eval.scores.statistics import bootstrap, flip_test, holm, mcnemar, paired_bootstrap


def test_the_interval_is_that_of_the_stage_benchmark() -> None:
    draw = np.random.default_rng(0)
    values = [float(v) for v in draw.uniform(size=300)]
    videos = [f"v{k}" for k in draw.integers(0, 40, 300)]
    found = bootstrap(values, videos, seed=5)
    _, inverse = np.unique(videos, return_inverse=True)  # whole videos drawn, written out
    sums, counts = np.bincount(inverse, weights=values), np.bincount(inverse)
    drawn = np.random.default_rng([17, 5]).integers(len(sums), size=(2000, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    wanted = [round(float(v), 4) for v in np.percentile(means, [2.5, 97.5])]
    assert [round(found.low, 4), round(found.high, 4)] == wanted
    assert clustered_interval(values, videos, 5) == wanted
    assert found.value == pytest.approx(np.mean(values))
    assert found.n == 300 and found.clusters == len(set(videos)) and found.p is None
    assert bootstrap(values, videos, seed=5) == found != bootstrap(values, videos, seed=6)
    wide = bootstrap(values, videos, seed=5, level=0.99)
    assert wide.low < found.low < found.high < wide.high


def test_clusters_widen_the_interval_as_they_should() -> None:
    # 100 videos of 9 equal answers: as sure as 100 answers, not as 900
    right = [float(k % 2) for k in range(100) for _ in range(9)]
    videos = [f"v{k}" for k in range(100) for _ in range(9)]
    clustered, single = bootstrap(right, videos), bootstrap(right, [str(k) for k in range(900)])
    assert (clustered.high - clustered.low) / 3.92 == pytest.approx(0.05, rel=0.1)
    assert (single.high - single.low) / 3.92 == pytest.approx(0.05 / 3, rel=0.1)


def test_one_video_has_no_spread_and_groups_weigh_the_same() -> None:
    assert bootstrap([0, 1], ["a", "a"]).low == 0.5 == bootstrap([0, 1], ["a", "a"]).high
    found = bootstrap([1, 1, 1, 0], list("abcd"), groups=["x", "x", "x", "y"])
    assert found.value == 0.5 == found.low and found.high == 1.0  # a third of draws has no y
    many = bootstrap([1.0, 0.0] * 50, [str(k) for k in range(100)], groups=["x", "y"] * 50)
    assert many.value == 0.5 and many.low == 0.5 == many.high


@pytest.mark.parametrize(
    ("values", "videos", "options"),
    [
        ([], [], {}),
        ([math.nan], ["a"], {}),
        ([1.0], [], {}),
        ([1.0], ["a"], {"rounds": 0}),
        ([1.0], ["a"], {"level": 1.0}),
        ([1.0], ["a"], {"groups": []}),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    values: list[float], videos: list[str], options: dict[str, object]
) -> None:
    with pytest.raises(InputError):
        bootstrap(values, videos, **options)  # type: ignore[arg-type]


def test_paired_bootstrap_sees_a_small_steady_gain() -> None:
    draw = np.random.default_rng(1)
    names = [str(k) for k in range(200)]
    videos = {name: f"v{int(name) // 2}" for name in names}
    first = {name: float(v) for name, v in zip(names, draw.uniform(size=200), strict=True)}
    better = {name: first[name] + 0.01 + 0.02 * float(draw.normal()) for name in reversed(names)}
    gain = paired_bootstrap(first, better, videos)
    assert gain.value == pytest.approx(0.01, abs=0.005) and gain.low > 0
    assert gain.p is not None and gain.p < 0.01
    assert paired_bootstrap(better, first, videos).value == pytest.approx(-gain.value)
    # the two runs alone overlap widely
    alone = [
        bootstrap([run[n] for n in names], [videos[n] for n in names]) for run in (first, better)
    ]
    assert alone[0].high > alone[1].low
    same = paired_bootstrap(first, first, videos)
    assert same.value == 0.0 == same.low == same.high and same.p == 1.0
    tasks = {name: "x" if int(name) < 20 else "y" for name in names}
    assert paired_bootstrap(first, better, videos, groups=tasks).value != gain.value


def test_mcnemar_is_the_exact_binomial() -> None:
    def runs(lost: int, won: int, even: int) -> tuple[dict[str, bool], dict[str, bool]]:
        before = [True] * lost + [False] * won + [True] * even
        after = [False] * lost + [True] * won + [True] * even
        named = [{str(k): right for k, right in enumerate(run)} for run in (before, after)]
        return named[0], named[1]

    for lost, won in ((0, 0), (1, 0), (2, 8), (5, 5), (9, 1), (0, 12)):
        found = mcnemar(*runs(lost, won, 7))
        n, least = lost + won, min(lost, won)
        p = 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n
        assert found.p == pytest.approx(min(1.0, p)), (lost, won)
        assert (found.first_only, found.second_only, found.n) == (lost, won, n + 7)
    assert mcnemar(*runs(600, 700, 1000)).p == pytest.approx(0.0060, abs=3e-4)


def test_clustered_mcnemar_counts_all_swaps_of_videos() -> None:
    draw = np.random.default_rng(4)
    names = [str(k) for k in range(24)]
    videos = {name: f"v{int(name) // 3}" for name in names}
    first = {name: bool(draw.integers(2)) for name in names}
    second = {name: first[name] or bool(draw.integers(2)) for name in names}
    nets = [
        sum(int(second[n]) - int(first[n]) for n in names if videos[n] == video)
        for video in dict.fromkeys(videos.values())
    ]
    signs = itertools.product((1, -1), repeat=len(nets))
    sums = [abs(sum(s * net for s, net in zip(flip, nets, strict=True))) for flip in signs]
    expected = np.mean([value >= abs(sum(nets)) for value in sums])
    found = mcnemar(first, second, videos)
    assert found.p == pytest.approx(expected) and found.clusters == 8
    alone = mcnemar(first, second, {name: name for name in names})
    assert alone.p == pytest.approx(mcnemar(first, second).p)


def test_runs_over_other_questions_are_not_paired() -> None:
    for call in (
        lambda: mcnemar({"a": True}, {"b": True}),
        lambda: mcnemar({}, {}),
        lambda: mcnemar({"a": True}, {"a": True}, {}),
        lambda: paired_bootstrap({"a": 1.0, "b": 0.0}, {"a": 1.0}, {"a": "v", "b": "v"}),
    ):
        with pytest.raises(InputError):
            call()


def test_flipped_videos_give_the_p_of_all_swaps() -> None:
    draw = np.random.default_rng(2)
    videos = {f"q{k}": f"v{k // 3}" for k in range(24)}
    first = {name: float(v) for name, v in zip(videos, draw.uniform(size=24), strict=True)}
    second = {
        name: first[name] + float(v)
        for name, v in zip(videos, draw.normal(0.1, 0.3, 24), strict=True)
    }
    nets = [sum(second[n] - first[n] for n in videos if videos[n] == f"v{k}") for k in range(8)]
    swaps = [
        sum(s * n for s, n in zip(signs, nets, strict=True))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    exact = np.mean([abs(total) >= abs(sum(nets)) - 1e-12 for total in swaps])
    p = flip_test(first, second, videos, rounds=40_000)
    assert p == pytest.approx(exact, abs=0.01)
    assert flip_test(second, first, videos, rounds=40_000) == p
    # Four videos that all gain are no proof, however many questions they have.
    better = {name: value + 0.2 for name, value in first.items() if videos[name] < "v4"}
    few = {name: first[name] for name in better}
    assert flip_test(few, better, videos) == pytest.approx(2 / 16, abs=0.03)
    assert flip_test(first, first, videos) == 1.0
    # A mean of means of groups: each group weighs the same, however few its questions are.
    groups = {name: "a" if k < 3 else "b" for k, name in enumerate(videos)}
    gain = {name: first[name] + (0.5 if groups[name] == "a" else -0.01) for name in videos}
    assert flip_test(first, gain, videos, groups=groups, rounds=20_000) > 0.5  # one video's gain
    with pytest.raises(InputError, match="differ in 1 questions"):
        flip_test(first, {**first, "new": 1.0}, videos)


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
