"""What dense captioning benchmarks share: one item a video, and the scores of its events."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import ClassVar

from vidllm.errors import InputError
from vidllm.errors.schema import Array, Either, Number, String

from ..scores.caption_scorers import Cider, Meteor, WordF1
from ..scores.captions import Event, localisation_scores, soda_scores
from ..scores.common import Scores
from ..scores.matched_captions import caption_score
from .base import Item, Response
from .captions_text import events, timechat_events
from .spans_text import script_text
from .timed import TimedTask, read_all

#: annotator → event → [start, end, sentence], as it stands in the truth of an item.
Told = list[list[list[float | str]]]


class DenseTask(TimedTask):
    """A benchmark whose answer describes a whole video, event by event.

    The headline is F1 of localisation, since it needs no other program. `SODA_c` and `METEOR` are
    None without pycocoevalcap and Java, `CIDEr` too, and a warning says so; `SODA_c (word-F1)` is
    always there and named for what it is.
    """

    truth = Array(Array(Array(Either(Number(), String()), 3, 3)))
    family = "captions"
    headline: ClassVar[str] = "F1"
    max_new_tokens: ClassVar[int] = 512

    def official_events(self, item: Item, response: Response) -> list[Event]:
        """What the official script reads: TimeChat's."""
        return timechat_events(script_text(response))

    def read(self, item: Item, response: Response) -> list[list[float | str]] | None:
        """[[start, end, sentence], …] in seconds."""
        return [list(event) for event in events(item, response)] or None

    def value(self, item: Item, response: Response) -> float | None:
        """F1 of the video."""
        return localisation_scores([events(item, response)], [_references(item)])["F1"]

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """Localisation, SODA_c, CIDEr and METEOR; see `scores.captions`, `scores.matched_captions`.

        CIDEr takes its idf from all true sentences; official from the pairs of each video.
        """
        read = self.official_events if official else events
        said = [found or [] for found in read_all(read, items, responses)]
        truth = [_references(item) for item in items]
        found = localisation_scores(said, truth, official=official)
        names = ("SODA_c P", "SODA_c R", "SODA_c", "METEOR", "CIDEr")
        found |= soda_scores(said, truth, WordF1(), official=official)
        found |= dict.fromkeys(names)
        try:
            meteor, cider = _scorers()
        except InputError as error:
            warnings.warn(f"no SODA_c, METEOR and CIDEr: {error}", stacklevel=2)
            return found
        found |= soda_scores(said, truth, meteor, official=official)
        for scorer in (meteor, cider):
            found[scorer.name] = caption_score(said, truth, scorer, official=official).value
        return found


@cache
def _scorers() -> tuple[Meteor, Cider]:
    """Once a process: METEOR takes seconds to start, and remembers what it tokenised."""
    return Meteor(), Cider()


def _references(item: Item) -> list[list[Event]]:
    return [[Event(float(s), float(e), str(t)) for s, e, t in told] for told in item.truth]
