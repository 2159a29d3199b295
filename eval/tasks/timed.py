"""What the benchmarks about time share: failed runs, samples of the headline, one span a question.

`SpanTask` is the base of the grounding benchmarks: a query, one true span, mIoU and R1@m.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from ..scores.common import Interval, Scores, same_length
from ..scores.spans import grounding_scores, tiou
from .base import TRUE_SPAN, Item, Response, Task
from .spans_text import first_span, length

#: The format that most papers ask for; also TimeLens-Bench's and lmms-eval's own words.
SPAN_FORMAT = "'The event happens in <start time> - <end time> seconds'"
FIND = (
    "Please find the visual event described by the sentence '{query}', determining its starting "
    f"and ending times. The format should be: {SPAN_FORMAT}."
)

T = TypeVar("T")


class TimedTask(Task):
    """Base of all: `value` from `scores` of one answer, and samples of the headline."""

    def value(self, item: Item, response: Response) -> float | None:
        """The headline of this one answer."""
        return self.scores([item], [response])[self.headline]

    def samples(
        self, items: Sequence[Item], responses: Sequence[Response]
    ) -> list[tuple[str, float]]:
        """(vid, value) pairs whose plain mean is the headline, for intervals and paired tests.

        As many as the headline counts: one an answer here; a task that averages otherwise, or
        whose answers have no score of their own, gives its own.
        """
        same_length(items=items, responses=responses)
        pairs = zip(items, responses, strict=True)
        values = [(item.vid, self.value(item, response)) for item, response in pairs]
        return [(vid, value) for vid, value in values if value is not None]


class SpanTask(TimedTask):
    """A benchmark with one true span [start, end] a query: mIoU, R1@0.3, 0.5 and 0.7.

    Attributes:
        rounds: its official script rounds IoUs to two decimals before the thresholds.
    """

    truth = TRUE_SPAN
    family = "grounding"
    headline: ClassVar[str] = "mIoU"
    rounds: ClassVar[bool] = False

    @abstractmethod
    def official_span(self, item: Item, response: Response) -> Interval | None:
        """What the official script reads."""

    def read(self, item: Item, response: Response) -> list[float] | None:
        """[start, end] in seconds."""
        found = first_span(item, response)
        return None if found is None else list(found)

    def value(self, item: Item, response: Response) -> float:
        """IoU of the answer."""
        found = first_span(item, response)
        return 0.0 if found is None else tiou(found, item.truth)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.spans.grounding_scores`."""
        said = read_all(self.official_span if official else first_span, items, responses)
        truth = [item.truth for item in items]
        return grounding_scores(said, truth, official=official and self.rounds)


def read_all(
    read: Callable[[Item, Response], T], items: Sequence[Item], responses: Sequence[Response]
) -> list[T | None]:
    """What `read` finds in each answer, None where there is no answer.

    Raises:
        InputError: not one response an item.
    """
    same_length(items=items, responses=responses)
    pairs = zip(items, responses, strict=True)
    return [None if r.error is not None else read(i, r) for i, r in pairs]


def query_item(
    name: str,
    vid: str,
    query: str,
    true: Interval,
    *,
    prompt: str = FIND,
    folder: str = "",
    duration: float | None = None,
) -> Item:
    """The question for one true span, `name` its id; `prompt` has "{query}" in it."""
    return Item(
        id=name,
        vid=vid,
        video=folder + vid,
        prompt=prompt.format(query=query_text(query)),
        truth=list(true),
        duration=duration,
        groups=span_groups(true),
    )


def span_groups(span: Interval) -> dict[str, str]:
    """The group of a true span by its length."""
    seconds = span[1] - span[0]
    for most in (5, 15, 30):
        if seconds < most:
            return {"span": f"under {most} s"}
    return {"span": "30 s and more"}


def query_text(text: Any) -> str:
    """A query to be put into a prompt: single blanks, no full stop at its end."""
    return " ".join(str(text).split()).rstrip(" .")


def seconds_of(item: Item, response: Response) -> float | None:
    """Seconds of the video by its annotation, else by its file: what official scripts go by."""
    return length(item, response) if item.duration is None else item.duration
