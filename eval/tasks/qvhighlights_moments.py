"""QVHighlights, moment retrieval: every window of a video that fits a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from vidllm.errors.schema import Array

from ..scores.common import Scores
from ..scores.moments import average_precision, moment_scores, ranked
from . import qvhighlights as qvh
from .base import TASKS, TRUE_SPAN, Item, Response
from .files import spans
from .spans_text import all_spans
from .timed import TimedTask, query_text, read_all

PROMPT = (
    "Find every moment of the video that fits this description: '{query}'. Give the start and end "
    "of each in the format '<start time> - <end time> seconds', one a line, the surest first."
)


@TASKS.register("qvhighlights-moments")
class QVHighlightsMoments(TimedTask):
    """A video-LLM gives no scores, so its windows are ranked as it writes them.

    Official: windows longer than 150 s are in no length, and only the first ten count as written.
    """

    truth = Array(TRUE_SPAN)
    family = "grounding"
    headline = "mAP"
    summary = "all windows that fit a query; R1@m, mAP over IoU .5 to .95, by length"
    splits = qvh.SPLITS
    files: ClassVar[Mapping[str, tuple[str, ...]]] = qvh.FILES
    citation, licence, home = qvh.CITATION, qvh.LICENCE, qvh.HOME
    max_new_tokens = 256

    def items(self, data: Path, split: str) -> list[Item]:
        """One a query."""
        return [
            Item(
                id=row["qid"],
                vid=row["vid"],
                video=row["vid"],
                prompt=PROMPT.format(query=query_text(row["query"])),
                truth=[list(window) for window in spans(row, "relevant_windows", where=where)],
                duration=row["duration"],
            )
            for where, row in qvh.queries(self, data, split)
        ]

    def read(self, item: Item, response: Response) -> list[list[float]] | None:
        """[[start, end], …] in seconds, as written."""
        return [list(window) for window in all_spans(item, response)] or None

    def value(self, item: Item, response: Response) -> float:
        """Average precision of the answer, mean over the IoUs."""
        windows = ranked(self.read(item, response))
        return float(average_precision(windows, item.truth).mean())

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.moments.moment_scores`."""
        said = read_all(self.read, items, responses)
        return moment_scores(said, [item.truth for item in items], official=official)
