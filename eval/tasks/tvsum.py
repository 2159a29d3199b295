"""TVSum: which two-second shots of a web video are important, given its title.

Verified in public readers of tvsum50_ver_1_1: `ydata-tvsum50-anno.tsv` has no header and 20 rows a
video (video id, category, one score from 1 to 5 for every frame); `ydata-tvsum50-info.tsv` has the
header category, video_id, title, url, length (m:ss). The videos were rated in shots of two
seconds; a shot's rating here is that of the frame in its middle. UMT and UniVTG train on four
videos of each category and test on one; without training all 50 are the test, so numbers here are
not theirs even where the score is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vidllm.errors import InputError
from vidllm.errors.schema import Array, Number
from vidllm.timecode import read_time

from ..scores.common import Scores, average
from ..scores.summaries import rank_scores, tvsum_map
from .base import TASKS, Item, Response
from .files import annotation_files, field, read_cells, read_records
from .highlights_text import curve
from .timed import TimedTask, query_text, read_all

SHOT_SECONDS = 2.0
PROMPT = (
    "The video is titled '{title}'. Find its most important parts for someone who wants to see a "
    "short summary, with their timestamps and importance scores on a scale from 1 to 5. The output "
    "format should be like: 'The highlight timestamps are in the 82, 84, 86, 88, 90 seconds. Their "
    "saliency scores are 3.0, 4.5, 4.5, 5.0, 3.5'."
)


@TASKS.register("tvsum")
class TVSum(TimedTask):
    """Official: average precision as UMT's and UniVTG's scripts compute it."""

    truth = Array(Array(Number()))
    family = "highlights"
    headline = "mAP"
    summary = "importance of every 2-second shot; top-5 mAP, Kendall tau, Spearman rho"
    splits = ("all",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "all": tuple(
            f"ydata-tvsum50-{part}.tsv|data/ydata-tvsum50-{part}.tsv"
            f"|ydata-tvsum50-data/data/ydata-tvsum50-{part}.tsv"
            for part in ("anno", "info")
        )
    }
    citation = "Song et al., CVPR 2015; scores: arXiv 2203.12745, 1903.11328"
    licence = "CC BY 3.0 videos; annotations by Yahoo Webscope for research"
    home = "https://github.com/yalesong/tvsum"
    max_new_tokens = 512

    def items(self, data: Path, split: str) -> list[Item]:
        """One a video, in the order of the annotations."""
        anno, info = annotation_files(self, data, split)
        rows: dict[str, tuple[str, str, list[list[float]]]] = {}
        for where, (vid, category, scores) in read_cells(anno, 3):
            rows.setdefault(vid, (where, category, []))[2].append(_frames(scores, where))
        named = {
            field(row, "video_id", str, where=where): (where, row)
            for where, row in read_records(info)
        }
        return [
            _item(vid, *found, *named.get(vid, (f"{info.name}, {vid}", {})))
            for vid, found in rows.items()
        ]

    def read(self, item: Item, response: Response) -> list[float] | None:
        """One score a shot."""
        return curve(item, response, len(item.truth), SHOT_SECONDS)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.summaries`: mAP of the first five, and correlations of all shots."""
        said = read_all(self.read, items, responses)
        tables = [np.asarray(item.truth, dtype=np.float64) for item in items]
        found: Scores = {"mAP": average(tvsum_map(said, tables, official=official))}
        found |= rank_scores(said, tables, official=official)
        return {**found, "parse_failures": average([row is None for row in said])}


def _frames(text: str, where: str) -> list[float]:
    try:
        return [float(score) for score in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{where}: the third column must hold numbers with commas between"
        ) from error


def _item(
    vid: str, place: str, category: str, raters: list[list[float]], where: str, row: dict[str, str]
) -> Item:
    title = field(row, "title", str, where=where)
    duration = read_time(field(row, "length", str, where=where))
    if not duration:
        raise InputError(f"{where}: the field 'length' must be m:ss, not {row['length']!r}")
    if len({len(frames) for frames in raters}) != 1:
        raise InputError(f"{place}: the rows of {vid} have different numbers of frames")
    table = np.asarray(raters).T
    middles = (np.arange(max(1, int(duration / SHOT_SECONDS))) + 0.5) * SHOT_SECONDS
    frames = np.minimum((middles / duration * len(table)).astype(int), len(table) - 1)
    return Item(
        id=vid,
        vid=vid,
        video=vid,
        prompt=PROMPT.format(title=query_text(title)),
        truth=table[frames].tolist(),
        duration=duration,
        groups={"category": category},
    )
