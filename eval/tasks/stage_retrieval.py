"""`stage-retrieval`: which made clip does a caption belong to, among clips that are much alike.

Items come from the generated files (`vidllm.stage.gallery`, docs/retrieval.md); nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vidllm.errors import InputError
from vidllm.stage.annotations import captions_file
from vidllm.stage.scenes import USUAL, WORLDS, check_version
from vidllm.stage.variants import KINDS

from ..scores.common import Scores, average
from .base import TASKS, Item, Response, check_split
from .files import field, read_records
from .made_clips import ClipRequest, MadeClips
from .options import option, whole_number
from .retrieval import Compared, RetrievalTask, compare

_KNOWN = " and ".join(map(str, WORLDS))
_SPLITS = ("test", "val", "test-unseen", "train")


@TASKS.register("stage-retrieval")
@dataclass(frozen=True)
class StageRetrieval(MadeClips, RetrievalTask):
    """Made clips stand in the gallery with variants that differ in one actor, colour, action or in
    the order of two events. "apart/KIND" is how often a clip and such a variant of it are told
    apart, by either's caption: a coin has a half.

    Args:
        version: of the made world, see docs/stage.md.

    Raises:
        InputError: no such version.
    """

    version: int = option(
        "version", USUAL, whole_number, f"Version of the made world: {USUAL}; there are {_KNOWN}."
    )

    summary: ClassVar[str] = "which made clip does a caption belong to, among clips much alike"
    splits: ClassVar[tuple[str, ...]] = _SPLITS
    files: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(_SPLITS, ())
    citation: ClassVar[str] = "vidllm, docs/retrieval.md"
    usual_limit: ClassVar[int] = 200

    def __post_init__(self) -> None:
        check_version(self.version)

    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        from vidllm.stage.gallery import write_gallery

        return write_gallery(
            data,
            clips.split,
            clips.seed,
            clips.count,
            version=self.version,
            jobs=clips.jobs,
            progress=clips.progress,
        )

    def items(self, data: Path, split: str) -> list[Item]:
        """Clip by clip its caption and then itself, of the file that `prepare` wrote."""
        file = captions_file(data, check_split(self, split))
        if not file.is_file():
            raise InputError(f"{file} is missing: `vidllm eval stage-retrieval` makes it")
        found = []
        for where, row in read_records(file):
            vid, text, scene, differs = (
                field(row, name, str, where=where)
                for name in ("video_id", "sentence", "scene", "differs")
            )
            groups = {"scene": scene, "differs": differs or "nothing"}
            found += self.pair(vid, [text], groups=groups)
        return found

    def cluster(self, item: Item) -> str:
        """A scene with its variants."""
        return item.groups.get("scene", item.vid)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """Those of every retrieval task, and "apart/KIND"."""
        found = super().scores(items, responses, official=official)
        return {**found, **apart(items, compare(items, responses))}


def apart(items: Sequence[Item], found: Compared) -> Scores:
    """By kind the share of comparisons that tell a clip from its variant; ties are half right.

    Four a pair: by either caption which clip, and by either clip which caption.
    """
    of = {item.vid: item.groups for item in items}
    place = {vid: k for k, vid in enumerate(found.videos)}
    lost = found.lost_texts | found.lost_videos[[place[vid] for vid in found.texts]]
    row = {vid: k for k, vid in enumerate(found.texts)}
    right: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for vid, k in row.items():
        base, kind = of[vid].get("scene", vid), of[vid].get("differs", "")
        if kind not in right or base not in row:
            continue
        b = row[base]
        if lost[k] or lost[b] or not found.cosines.size:
            right[kind] += [0.0] * 4
            continue
        c = found.cosines[[k, k, b, b], [place[v] for v in (vid, base, vid, base)]].reshape(2, 2)
        for own, other in ((c[0, 0], c[0, 1]), (c[1, 1], c[1, 0]), (c[0, 0], c[1, 0]),
                           (c[1, 1], c[0, 1])):  # fmt: skip
            right[kind].append(float(own > other) + 0.5 * float(own == other))
    return {f"apart/{kind}": average(values) for kind, values in right.items() if values}
