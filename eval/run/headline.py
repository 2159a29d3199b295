"""The headline of a run: which answers it is the mean of, its interval, and paired tests.

Every answer of a task has a value in [0, 1]; the headline is mostly the mean of some of them: of
all, of one kind of question, or of means by video or by category. Which one it is is found out by
arithmetic, so that interval and test are those of the headline itself and of nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..scores.statistics import Estimate, bootstrap, mcnemar, paired_bootstrap
from ..tasks.base import Item

#: From this value on an answer counts as right where values are no yes or no.
RIGHT = 0.5


@dataclass(frozen=True)
class Part:
    """The mean that a headline is.

    Args:
        of: for people, e.g. "all answers" or "kind ground".
        ids: the answers that count.
        groups: of each, where the headline is the plain mean of the means of groups.
    """

    of: str
    ids: tuple[str, ...]
    groups: Mapping[str, str] | None = None

    def mean(self, values: Mapping[str, float]) -> float | None:
        """What the headline would be; None of no value."""
        if not self.ids or any(name not in values for name in self.ids):
            return None
        if self.groups is None:
            return float(np.mean([values[name] for name in self.ids]))
        means = _means({name: values[name] for name in self.ids}, self.groups)
        return float(np.mean(list(means.values())))

    def interval(
        self, values: Mapping[str, float], videos: Mapping[str, str], seed: int
    ) -> Estimate:
        """The mean with its 95 % interval by bootstrap over videos."""
        if self._by_video(videos):
            means = _means({name: values[name] for name in self.ids}, videos)
            return bootstrap(list(means.values()), list(means), seed=seed)
        groups = None if self.groups is None else [self.groups[name] for name in self.ids]
        given = [values[name] for name in self.ids]
        return bootstrap(given, [videos[name] for name in self.ids], groups=groups, seed=seed)

    def versus(
        self,
        first: Mapping[str, float],
        second: Mapping[str, float],
        videos: Mapping[str, str],
        seed: int,
    ) -> dict[str, Any]:
        """The second run against the first: difference, interval, p, and McNemar's test.

        Raises:
            InputError: the runs do not have the same answers.
        """
        one, two = ({n: side[n] for n in self.ids if n in side} for side in (first, second))
        if self._by_video(videos):
            left, right = _means(one, videos), _means(two, videos)
            paired = paired_bootstrap(left, right, {video: video for video in left}, seed=seed)
        else:
            paired = paired_bootstrap(one, two, videos, groups=self.groups, seed=seed)
        test = mcnemar(
            {name: value >= RIGHT for name, value in one.items()},
            {name: value >= RIGHT for name, value in two.items()},
            videos,
        )
        graded = any(value not in (0.0, 1.0) for value in (*one.values(), *two.values()))
        return {
            "difference": paired.value,
            "low": paired.low,
            "high": paired.high,
            "p": paired.p,
            "n": len(one),
            "videos": test.clusters,
            "mcnemar": {
                "right": f"value ≥ {RIGHT:g}" if graded else "value 1",
                "first_only": test.first_only,
                "second_only": test.second_only,
                "p": test.p,
            },
        }

    def within(self, ids: Container[str]) -> Part:
        """The same for some of the answers."""
        return replace(self, ids=tuple(name for name in self.ids if name in ids))

    def _by_video(self, videos: Mapping[str, str]) -> bool:
        return self.groups is not None and all(videos[n] == self.groups[n] for n in self.ids)


def matching(
    items: Sequence[Item], values: Mapping[str, float], headline: float | None
) -> dict[str, Part]:
    """The parts whose mean is the headline, by name, the plainest first.

    Args:
        items: of the run; those without a value count nowhere.
        values: by item id.
    """
    if headline is None:
        return {}
    found = {}
    for part in _parts([item for item in items if item.id in values]):
        mean = part.mean(values)
        if mean is not None and abs(mean - headline) < 1e-9:
            found[part.of] = part
    return found


def by_group(
    items: Sequence[Item], values: Mapping[str, float], part: Part | None, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """The mean value of every category of every group, with its interval.

    Args:
        part: the answers that the headline is of; None for all that have a value.
    """
    counted = set(values) if part is None else set(part.ids)
    asked = [item for item in items if item.id in counted and item.id in values]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for group in dict.fromkeys(name for item in asked for name in item.groups):
        for category in dict.fromkeys(i.groups[group] for i in asked if group in i.groups):
            inside = [i for i in asked if i.groups.get(group) == category]
            given = [values[i.id] for i in inside]
            mean = bootstrap(given, [i.vid for i in inside], seed=seed)
            found.setdefault(group, {})[category] = {
                "value": mean.value,
                "low": mean.low,
                "high": mean.high,
                "n": mean.n,
            }
    return found


def _parts(items: Sequence[Item]) -> Iterator[Part]:
    """What a headline may be the mean of, the plainest first."""
    ids = tuple(item.id for item in items)
    yield Part("all answers", ids)
    yield Part("means of videos", ids, {item.id: item.vid for item in items})
    names = dict.fromkeys(name for item in items for name in item.groups)
    for name in names:
        inside = [item for item in items if name in item.groups]
        groups = {item.id: item.groups[name] for item in inside}
        yield Part(f"means of {name}", tuple(i.id for i in inside), groups)
    kinds = dict.fromkeys(item.kind for item in items)
    yield Part("means of kinds", ids, {item.id: item.kind for item in items})
    for kind in kinds:
        inside = [item for item in items if item.kind == kind]
        some = tuple(item.id for item in inside)
        yield Part(f"kind {kind}", some)
        yield Part(f"means of videos, kind {kind}", some, {i.id: i.vid for i in inside})
    for name in names:
        for category in dict.fromkeys(i.groups[name] for i in items if name in i.groups):
            inside = [item for item in items if item.groups.get(name) == category]
            yield Part(f"{name} {category}", tuple(item.id for item in inside))


def _means(values: Mapping[str, float], clusters: Mapping[str, str]) -> dict[str, float]:
    """The mean value of every cluster."""
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        found.setdefault(clusters[name], []).append(value)
    return {cluster: float(np.mean(some)) for cluster, some in found.items()}
