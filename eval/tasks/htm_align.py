"""HTM-Align: where in an instruction video a sentence of its narration is shown.

Verified at the authors': `htm_align.json` holds {video id: [[alignable (1 or 0), start, end,
text], …]}, 80 videos. Sentences that are not alignable have no truth; the authors rank them for
an AUC that is not scored here, so they are not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from ..scores.common import Scores, average
from .base import TASKS, TRUE_SPAN, Item, Response
from .files import annotation_files, field, read_json, span
from .spans_text import one_time
from .timed import TimedTask, query_text, read_all

PROMPT = (
    "At which second does the video show what the narrator says here: '{query}'? "
    "Answer with one time, in the format '<time> seconds'."
)


@TASKS.register("htm-align")
class HTMAlign(TimedTask):
    """One second a sentence: of an answer that names a span, its middle.

    Official: windows are rounded outwards to whole seconds, as the authors' script does for its
    one feature a second.
    """

    truth = TRUE_SPAN
    family = "alignment"
    headline = "R@1"
    summary = "the second of the video that shows a sentence of the narration; R@1"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "test": ("htm_align.json|htm_align/htm_align.json",)
    }
    citation = "Han et al., CVPR 2022, arXiv 2204.02968"
    licence = "annotations for research; videos are YouTube's (HowTo100M)"
    home = "https://www.robots.ox.ac.uk/~vgg/research/tan/"
    max_new_tokens = 32

    def items(self, data: Path, split: str) -> list[Item]:
        """One an alignable sentence."""
        (path,) = annotation_files(self, data, split)
        return self.sentences(path)

    def sentences(self, path: Path) -> list[Item]:
        """The alignable sentences of a file.

        Raises:
            InputError: a file in another format.
        """
        table = read_json(path, dict)
        found = []
        for vid in table:
            where = f"{path.name}, {vid}"
            for k, row in enumerate(field(table, vid, list, where=path.name)):
                alignable, true, sentence = _sentence(row, f"{where}, sentence {k}")
                if alignable:
                    found.append(
                        Item(
                            id=f"{vid}-{k}",
                            vid=vid,
                            video=vid,
                            prompt=PROMPT.format(query=query_text(sentence)),
                            truth=list(true),
                        )
                    )
        return found

    def read(self, item: Item, response: Response) -> float | None:
        """One second of the video."""
        return one_time(item, response)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `vidllm.encoders.heads.alignment.recall_at_1`."""
        from vidllm.encoders.heads.alignment import recall_at_1  # it loads torch

        said = read_all(self.read, items, responses)
        windows = [[(item.truth[0], item.truth[1])] for item in items]
        recall = recall_at_1(said, windows, outward=official)
        unread = average([time is None for time in said])
        return {"R@1": recall.value if recall.total else None, "parse_failures": unread}


def _sentence(row: Any, where: str) -> tuple[bool, tuple[float, float], str]:
    if not isinstance(row, list) or len(row) != 4 or row[0] not in (0, 1):
        raise InputError(f"{where}: expected [alignable, start, end, text]")
    named = dict(zip(("alignable", "start", "end", "text"), row, strict=True))
    text = field(named, "text", str, where=where)
    return bool(row[0]), span(row[1:3], "start, end", where=where), text
