"""What the retrieval benchmarks share: captions and videos as vectors, ranked against each other.

Every caption and every video is an item of its own (kinds "text" and "video"); a dual encoder
turns each into a vector, which the response keeps in `raw` (see `eval.run.vectors`), so that all
scores can be made again from rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from vidllm.errors import InputError

from ..run.vectors import read_vector
from ..scores.common import Scores, average, same_length
from ..scores.retrieval import ranks, retrieval_scores
from .base import Item, Response
from .timed import TimedTask

#: Below every cosine: what failed ranks last.
_FAILED = -2.0


class RetrievalTask(TimedTask):
    """R@k, MdR and MnR from text to video, and from video to text with "V2T" before the name."""

    family = "retrieval"
    headline: ClassVar[str] = "R@1"
    max_new_tokens = 0

    def pair(self, vid: str, texts: Sequence[str], **more: object) -> list[Item]:
        """The captions of a video and then itself; `more` goes into every item."""
        told: dict[str, object] = {"vid": vid, "video": vid, "truth": vid, **more}
        found = [
            Item(id=f"{vid}:text-{k}", prompt=text, kind="text", **told)  # type: ignore[arg-type]
            for k, text in enumerate(texts)
        ]
        video = Item(id=f"{vid}:video", prompt="", kind="video", **told)  # type: ignore[arg-type]
        return [*found, video]

    def cluster(self, item: Item) -> str:
        """What stands or falls together in an interval: the video."""
        return item.vid

    def read(self, item: Item, response: Response) -> int | None:
        """The width of the vector, so that rows stay short."""
        found = _vector(response)
        return None if found is None else len(found)

    def value(self, item: Item, response: Response) -> float | None:
        """None: a rank needs all others (see `samples`)."""
        return None

    def samples(
        self, items: Sequence[Item], responses: Sequence[Response]
    ) -> list[tuple[str, float]]:
        """One a caption: whether its own video comes first."""
        found = compare(items, responses)
        of = {item.vid: self.cluster(item) for item in items}
        if not found.cosines.size:
            return [(of[vid], 0.0) for vid in found.texts]
        places = ranks(found.to_videos(), found.videos_of)
        return [(of[vid], float(r <= 1)) for vid, r in zip(found.texts, places, strict=True)]

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.retrieval.retrieval_scores`.

        Raises:
            InputError: vectors of different widths.
        """
        compared = compare(items, responses)
        unread = average([_vector(response) is None for response in responses])
        names = ("R@1", "R@5", "R@10", "MdR", "MnR")
        found: Scores = {}
        for mark in ("", "V2T "):
            part: Scores = dict.fromkeys(names)
            if compared.cosines.size:
                table = compared.to_texts() if mark else compared.to_videos()
                right = compared.texts_of if mark else compared.videos_of
                if official and all(len(own) == 1 for own in compared.texts_of):
                    diagonal = table[:, [own[0] for own in right]]
                    part = retrieval_scores(diagonal, official=True)
                else:
                    part = retrieval_scores(table, right)
            found |= {f"{mark}{name}": value for name, value in part.items()}
        return {**found, "parse_failures": unread}


def _vector(response: Response) -> np.ndarray | None:
    return None if response.error is not None else read_vector(response.raw)


class Compared(NamedTuple):
    """Captions against videos.

    Attributes:
        cosines: (texts, videos); texts, videos: their vids.
        lost_texts, lost_videos: which have no vector.
        videos_of, texts_of: the right columns and rows of each.
    """

    cosines: np.ndarray
    texts: list[str]
    videos: list[str]
    lost_texts: np.ndarray
    lost_videos: np.ndarray
    videos_of: list[list[int]]
    texts_of: list[list[int]]

    def to_videos(self) -> np.ndarray:
        """(texts, videos): rows are queries."""
        return _ranked_last(self.cosines, self.lost_texts, self.lost_videos, self.videos_of)

    def to_texts(self) -> np.ndarray:
        """(videos, texts): rows are queries."""
        return _ranked_last(self.cosines.T, self.lost_videos, self.lost_texts, self.texts_of)


def compare(items: Sequence[Item], responses: Sequence[Response]) -> Compared:
    """A caption whose video is no item, and the reverse, is left out."""
    same_length(items=items, responses=responses)
    sides: dict[str, list[tuple[str, np.ndarray | None]]] = {"text": [], "video": []}
    for item, response in zip(items, responses, strict=True):
        sides[item.kind].append((item.vid, _vector(response)))
    told = {vid for vid, _ in sides["text"]}
    clips = [pair for pair in sides["video"] if pair[0] in told]
    place = {vid: k for k, (vid, _) in enumerate(clips)}
    captions = [pair for pair in sides["text"] if pair[0] in place]
    texts_of: list[list[int]] = [[] for _ in clips]
    for k, (vid, _) in enumerate(captions):
        texts_of[place[vid]].append(k)
    one, two = (_stacked([vector for _, vector in side]) for side in (captions, clips))
    cosines = np.zeros((len(captions), len(clips)))
    if one.size and two.size:
        if one.shape[1] != two.shape[1]:
            widths = f"captions have {one.shape[1]} numbers and videos {two.shape[1]}"
            raise InputError(f"{widths}: not of one model")
        cosines = one @ two.T
    return Compared(
        cosines,
        [vid for vid, _ in captions],
        [vid for vid, _ in clips],
        np.asarray([vector is None for _, vector in captions], dtype=bool),
        np.asarray([vector is None for _, vector in clips], dtype=bool),
        [[place[vid]] for vid, _ in captions],
        texts_of,
    )


def _ranked_last(
    cosines: np.ndarray, lost: np.ndarray, gone: np.ndarray, right: Sequence[Sequence[int]]
) -> np.ndarray:
    """Cosines with what failed behind all others: lost queries (rows) and gone items (columns)."""
    table = cosines.copy()
    table[:, gone] = _FAILED
    for k in np.flatnonzero(lost).tolist():
        table[k] = 0.0
        table[k, list(right[k])] = _FAILED
    return table


def _stacked(vectors: Sequence[np.ndarray | None]) -> np.ndarray:
    """(N, D) unit rows, zeros for None; (0,) where there is none."""
    known = [v for v in vectors if v is not None]
    if not known:
        return np.zeros(0)
    if len({len(v) for v in known}) > 1:
        raise InputError("the vectors of a run have different widths: not of one model")
    rows = np.stack([np.zeros(len(known[0])) if v is None else v for v in vectors])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
