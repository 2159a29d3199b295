"""How sure a score is: intervals by bootstrap over videos, and paired tests of two runs.

Questions about one video stand or fall together, so whole videos are drawn, not questions.
Sources: Efron and Tibshirani 1993 (bootstrap); Holm 1979; McNemar 1947. The clustered form of the
last flips the sign of whole videos, which for videos of one question each is the exact test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidllm.errors import InputError

from .common import same_length

ROUNDS = 2000
_BLOCK = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its percentile interval; p only for a difference."""

    value: float
    low: float
    high: float
    n: int
    clusters: int
    p: float | None = None


@dataclass(frozen=True)
class McNemar:
    """Questions that one run alone got right, and the two-sided p that neither run is better."""

    first_only: int
    second_only: int
    n: int
    clusters: int
    p: float


def bootstrap(
    values: Sequence[float] | np.ndarray,
    videos: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    level: float = 0.95,
) -> Estimate:
    """The mean of the values and its percentile interval over videos drawn with replacement.

    Args:
        values: one a question, e.g. right or wrong, or an IoU.
        videos: of each question. For a mean by video pass one value a video.
        groups: of each question: the score is then the plain mean of the means of the groups
            (MLVU, MVBench); a group that a draw misses is left out of that draw.
        seed, rounds, level: of the draws, their number, and the share inside the interval.

    Raises:
        InputError: lists of unequal length, nothing, NaN, no rounds, or a level outside (0, 1).
    """
    sums, counts = _tables(values, videos, groups)
    low, high = _interval(_draws(sums, counts, seed, rounds), level)
    return Estimate(_score(sums, counts), low, high, len(values), len(sums))


def paired_bootstrap(
    first: Mapping[str, float],
    second: Mapping[str, float],
    videos: Mapping[str, str],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    level: float = 0.95,
) -> Estimate:
    """second − first over the same questions, its interval, and p of no difference (two-sided).

    p is twice the share of draws on the other side of zero, zero included, with one added to
    count and rounds so that it is never 0.

    Args:
        first, second: values by question id.
        videos, groups: of each question id, see `bootstrap`.

    Raises:
        InputError: not the same questions, a question without a video, and see `bootstrap`.
    """
    names = paired(first, second, videos)
    difference = [float(second[name]) - float(first[name]) for name in names]
    parts = None if groups is None else [groups[name] for name in names]
    sums, counts = _tables(difference, [videos[name] for name in names], parts)
    draws = _draws(sums, counts, seed, rounds)
    low, high = _interval(draws, level)
    sides = int((draws <= 0).sum()), int((draws >= 0).sum())
    p = min(1.0, 2 * (1 + min(sides)) / (1 + rounds))
    return Estimate(_score(sums, counts), low, high, len(names), len(sums), p)


def flip_test(
    first: Mapping[str, float],
    second: Mapping[str, float],
    videos: Mapping[str, str],
    *,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> float:
    """The two-sided p that neither run is better: a randomisation test by video.

    Under the null hypothesis the runs may be swapped video by video; p is the share of so many
    drawn swaps with at least the seen difference, the seen one counted in. Unlike the p of
    `paired_bootstrap` it is not too small where there are few videos.

    Args:
        first, second, videos, groups: see `paired_bootstrap`.

    Raises:
        InputError: as `paired_bootstrap`.
    """
    names = paired(first, second, videos)
    difference = [float(second[name]) - float(first[name]) for name in names]
    parts = None if groups is None else [groups[name] for name in names]
    sums, counts = _tables(difference, [videos[name] for name in names], parts)
    nets = (sums / counts.sum(axis=0)).mean(axis=1)
    signs = np.random.default_rng([19, seed]).integers(2, size=(rounds, len(nets))) * 2 - 1
    far = np.abs(signs @ nets) >= abs(nets.sum()) * (1 - 1e-9)
    return float((1 + far.sum()) / (1 + rounds))


def mcnemar(
    first: Mapping[str, bool],
    second: Mapping[str, bool],
    videos: Mapping[str, str] | None = None,
) -> McNemar:
    """The exact McNemar test of two runs; clustered where videos are given.

    Under the null hypothesis the two runs may be swapped, question by question or, with `videos`,
    video by video; p is the share of all swaps with at least the seen difference, computed
    exactly, not drawn.

    Args:
        first, second: whether each question id was answered right.
        videos: of each question id; without it questions count as independent.

    Raises:
        InputError: not the same questions, no question, or a question without a video.
    """
    names = paired(first, second, videos)
    change = np.asarray([int(bool(second[n])) - int(bool(first[n])) for n in names])
    clusters = names if videos is None else [videos[name] for name in names]
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    nets = np.bincount(inverse, weights=change).astype(np.int64)
    return McNemar(
        first_only=int((change < 0).sum()),
        second_only=int((change > 0).sum()),
        n=len(names),
        clusters=len(nets),
        p=_flips(nets),
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values of tests that are read together, in the order given.

    Below 0.05, the chance of even one false finding among all of them is at most 5 %.
    Source: Holm 1979.
    """
    order = np.argsort(np.asarray(ps, dtype=np.float64), kind="stable")
    found, reached = [0.0] * len(ps), 0.0
    for place, k in enumerate(order):
        reached = max(reached, min(1.0, (len(ps) - place) * float(ps[k])))
        found[k] = reached
    return found


def paired(
    first: Mapping[str, float], second: Mapping[str, float], videos: Mapping[str, str] | None
) -> list[str]:
    """The question ids of both runs, in order of the first.

    Raises:
        InputError: not the same questions, none, or one without a video.
    """
    if odd := sorted(first.keys() ^ second.keys()):
        raise InputError(
            f"the runs differ in {len(odd)} questions, e.g. {odd[0]!r}: pair equal runs"
        )
    if not first:
        raise InputError("two runs without questions cannot be compared")
    if lost := [name for name in first if videos is not None and name not in videos]:
        raise InputError(f"question {lost[0]!r} has no video: give every question one")
    return list(first)


def _flips(nets: np.ndarray) -> float:
    """The share of all signs of the nets whose sum is at least as far from 0 as theirs is."""
    sizes = np.abs(nets)
    seen, reach = abs(int(nets.sum())), int(sizes.sum())
    share = np.zeros(2 * reach + 1)  # of each sum, from -reach on
    share[reach] = 1.0
    for size in sizes[sizes > 0]:
        share = (np.roll(share, size) + np.roll(share, -size)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= seen
    return min(1.0, float(share[far].sum()))


def _tables(
    values: Sequence[float] | np.ndarray, videos: Sequence[str], groups: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(videos, groups) sums of values and counts."""
    same_length(values=values, videos=videos, **({} if groups is None else {"groups": groups}))
    given = np.asarray(values, dtype=np.float64)
    if not len(given) or np.isnan(given).any():
        raise InputError("a bootstrap needs values, none of them NaN: count a failure as 0")
    _, video = np.unique(np.asarray(videos), return_inverse=True)
    names, group = np.unique(
        np.asarray(["all"] * len(given) if groups is None else groups), return_inverse=True
    )
    shape = (int(video.max()) + 1, len(names))
    place, size = video * shape[1] + group, shape[0] * shape[1]
    sums = np.bincount(place, weights=given, minlength=size).reshape(shape)
    return sums, np.bincount(place, minlength=size).reshape(shape)


def _score(sums: np.ndarray, counts: np.ndarray) -> float:
    return float((sums.sum(axis=0) / counts.sum(axis=0)).mean())


def _draws(sums: np.ndarray, counts: np.ndarray, seed: int, rounds: int) -> np.ndarray:
    """(rounds,) scores of drawn videos."""
    if rounds < 1:
        raise InputError(f"a bootstrap needs at least one round, not {rounds}")
    generator = np.random.default_rng([17, seed])
    found, block = [], max(1, _BLOCK // sums.size)
    for first in range(0, rounds, block):
        size = (min(block, rounds - first), len(sums))
        drawn = generator.integers(len(sums), size=size)
        total, number = sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
        with np.errstate(invalid="ignore"):
            found.append(np.nanmean(total / number, axis=1))
    return np.concatenate(found)


def _interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError(f"the level of an interval must be in (0, 1), not {level}")
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
