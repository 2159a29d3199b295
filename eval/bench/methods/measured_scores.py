"""What is compared: the scores of a run by what people want, with intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidllm.stage.questions import QA_KINDS

from ...run.headline import Part
from ...run.results import Outcome
from ...scores.statistics import flip_test
from ...tasks.base import Task
from ...tasks.stage import Stage
from ...tasks.timed import SpanTask

#: Sign flips of a test: p goes down to 1 / (1 + ROUNDS), and Holm multiplies it by the number of
#: methods.
ROUNDS = 10_000
#: IoU from which on a span counts as found.
FOUND = 0.5
_PURPOSES = {"choice": "qa", "made": "grounding"}


@dataclass(frozen=True)
class Measured:
    """One score of one setting.

    Args:
        value: None where there was nothing to score.
        part: the answers that it is the mean of; None for a score that is no mean, which has
            neither interval nor test.
        values: of the answers, by item id. videos: of each.
    """

    value: float | None
    part: Part | None
    values: Mapping[str, float]
    videos: Mapping[str, str]

    def interval(self, seed: int) -> tuple[float | None, float | None]:
        """The 95 % interval, by bootstrap over whole videos."""
        if self.part is None or not self.part.ids:
            return None, None
        found = self.part.interval(self.values, self.videos, seed)
        return found.low, found.high

    def versus(self, other: Measured, seed: int) -> dict[str, Any] | None:
        """This one minus the other, paired by answer; None where that cannot be.

        The interval is a bootstrap over videos, `p` of a test that flips the signs of videos.
        """
        part = self.part
        if part is None or other.part is None or part.ids != other.part.ids or not part.ids:
            return None
        told = part.versus(other.values, self.values, self.videos, seed)
        one, two = ({n: side.values[n] for n in part.ids} for side in (other, self))
        told["p"] = flip_test(one, two, self.videos, groups=part.groups, seed=seed, rounds=ROUNDS)
        return told


def scores_by_purpose(task: Task) -> dict[str, tuple[str, ...]]:
    """Scores by what people want ("grounding", "qa", …); the first of each decides."""
    if isinstance(task, Stage):
        return {"grounding": ("mIoU", "R1@0.5"), "qa": ("qa_accuracy",)}
    purpose = _PURPOSES.get(task.family, task.family)
    return {purpose: (task.headline, "R1@0.5") if isinstance(task, SpanTask) else (task.headline,)}


def kinds_of(task: Task) -> tuple[str, ...]:
    """Kinds of questions that `scores_by_purpose` is made of; empty for all that are asked."""
    return ("ground", *QA_KINDS) if isinstance(task, Stage) else ()


def measured(task: Task, outcome: Outcome, of: str | None) -> dict[str, Measured]:
    """The scores of `scores_by_purpose` under one setting, by name.

    Args:
        of: the name of the part that the headline is in every setting, see `results.common_part`.
    """
    values, videos = outcome.values, outcome.videos
    if isinstance(task, Stage):
        kinds = {item.id: item.kind for item in outcome.items if item.id in values}
        spans = Part("kind ground", tuple(n for n, kind in kinds.items() if kind == "ground"))
        short = Part("short answers", tuple(n for n, kind in kinds.items() if kind in QA_KINDS))
        found = {"mIoU": Measured(spans.mean(values), spans, values, videos)}
        found["qa_accuracy"] = Measured(short.mean(values), short, values, videos)
    else:
        part = None if of is None else outcome.parts.get(of)
        value = outcome.scores.get(task.headline)
        found = {task.headline: Measured(value, part, values, videos)}
    if isinstance(task, (Stage, SpanTask)) and (spans_of := found["mIoU"].part) is not None:
        hits = {name: float(value >= FOUND) for name, value in values.items()}
        found["R1@0.5"] = Measured(spans_of.mean(hits), spans_of, hits, videos)
    names = [name for some in scores_by_purpose(task).values() for name in some]
    return {name: found[name] for name in names if name in found}
