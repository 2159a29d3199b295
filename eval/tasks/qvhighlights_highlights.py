"""QVHighlights, highlight detection: how salient every two seconds are for a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vidllm.errors import InputError
from vidllm.errors.schema import Array, Integer, Object

from ..scores.common import Scores
from ..scores.highlights import highlight_scores, rating_table
from . import qvhighlights as qvh
from .base import TASKS, Item, Response
from .files import together
from .highlights_text import curve, official_curve
from .spans_text import script_text
from .timed import TimedTask, query_text, read_all, seconds_of

#: TimeChat's words, without the name of the data set.
PROMPT = (
    "Please find the highlight contents in the video described by a sentence query, determining "
    "the highlight timestamps and its saliency score on a scale from 1 to 5. The output format "
    "should be like: 'The highlight timestamps are in the 82, 84, 86, 88, 90, 92, 94, 96, 98, 100 "
    "seconds. Their saliency scores are 1.3, 1.7, 1.7, 1.7, 1.7, 1.3, 1.7, 2.3, 2.3, 2.3'. Now I "
    "will give you the sentence query: '{query}'. Please return the query-based highlight "
    "timestamps and salient scores."
)
_RATERS = 3


@TASKS.register("qvhighlights-highlights")
class QVHighlightsHighlights(TimedTask):
    """Official: answers are read as TimeSuite's script does; none is all zeros, clip 0 the best."""

    truth = Object({"clips": Integer(0, 10**6), "rated": Array(Array(shortest=2, longest=2))})
    family = "highlights"
    headline = "HL mAP VeryGood"
    summary = "saliency of every 2-second clip; HL mAP and HIT@1 at three ratings"
    splits = qvh.SPLITS
    files: ClassVar[Mapping[str, tuple[str, ...]]] = qvh.FILES
    citation, licence, home = qvh.CITATION, qvh.LICENCE, qvh.HOME
    max_new_tokens = 512

    def items(self, data: Path, split: str) -> list[Item]:
        """One a query."""
        found = []
        for where, row in qvh.queries(self, data, split):
            clips = int(row["duration"] / qvh.CLIP_SECONDS)
            rated = together(row, "relevant_clip_ids", "saliency_scores", where=where)
            truth = [[number, list(ratings)] for number, ratings in rated]
            item = Item(
                id=row["qid"],
                vid=row["vid"],
                video=row["vid"],
                prompt=PROMPT.format(query=query_text(row["query"])),
                truth={"clips": clips, "rated": truth},
                duration=row["duration"],
            )
            try:
                _table(item)
            except (InputError, TypeError, ValueError) as error:
                raise InputError(
                    f"{where}: the fields 'relevant_clip_ids' and 'saliency_scores' must hold "
                    f"clips of 0 to {clips - 1} with {_RATERS} ratings each"
                ) from error
            found.append(item)
        return found

    def read(self, item: Item, response: Response) -> list[float] | None:
        """One score a clip."""
        return curve(item, response, item.truth["clips"], qvh.CLIP_SECONDS)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.highlights.highlight_scores`."""

        def by_script(item: Item, response: Response) -> list[float] | None:
            seconds = seconds_of(item, response) or 0.0
            return official_curve(script_text(response), seconds, item.truth["clips"])

        said = read_all(by_script if official else self.read, items, responses)
        return highlight_scores(said, [_table(item) for item in items], official=official)


def _table(item: Item) -> np.ndarray:
    rated = item.truth["rated"]
    numbers = [int(number) for number, _ in rated]
    return rating_table(item.truth["clips"], numbers, [row for _, row in rated], _RATERS)
