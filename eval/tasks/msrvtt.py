"""MSR-VTT: text-video retrieval with a dual encoder.

Every caption and every video is an item of its own (kinds "text" and "video"); an
`eval.retrievers.Embedder` turns each into a vector, which the response keeps in `raw` (see
`eval.vectors`), so that all scores can be made again from rows.

Verified in public readers: `MSRVTT_JSFUSION_test.csv` (the split 1k-A) has the columns key,
vid_key, video_id, sentence; `MSRVTT_data.json` has "videos" (video_id, split, category) and
"sentences" (video_id, caption, sen_id). The split full is the 2,990 test videos with all of their
20 captions. Videos are `video7020.mp4`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from vidllm.errors import InputError

from ..run.vectors import read_vector
from ..scores.common import Scores, average, same_length
from ..scores.retrieval import ranks, retrieval_scores
from .base import TASKS, Item, Response
from .files import HUB, annotation_files, field, hub_records, read_json, read_records
from .timed import TimedTask

#: Below every cosine: what failed ranks last.
_FAILED = -2.0


@TASKS.register("msrvtt")
class MSRVTT(TimedTask):
    """R@k, MdR and MnR from text to video, and from video to text with "V2T" before the name.

    A caption or video without a vector ranks behind all others. Official: a query counts once at
    every place among equal scores (TempMe, after CLIP4Clip); square matrices (1k-A) alone.
    """

    family = "retrieval"
    headline = "R@1"
    summary = "which video does a caption belong to, and the reverse; R@k, MdR, MnR"
    splits = ("1k-A", "full")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "1k-A": ("MSRVTT_JSFUSION_test.csv|msrvtt_data/MSRVTT_JSFUSION_test.csv",),
        "full": ("MSRVTT_data.json|msrvtt_data/MSRVTT_data.json",),
    }
    citation = "Xu et al., CVPR 2016; 1k-A: Yu et al., ECCV 2018"
    licence = "research; videos are YouTube's"
    home = "https://github.com/ArrowLuo/CLIP4Clip/releases (msrvtt_data.zip)"
    hub = "friedrichor/MSR-VTT:test_1k"
    max_new_tokens = 0

    def items(self, data: Path, split: str) -> list[Item]:
        """For each video, in the order of the file, its captions and then itself."""
        if data == HUB and split != self.splits[0]:
            raise InputError(f"msrvtt: the hub has {self.splits[0]} alone: give --data a folder")
        if data == HUB:
            rows = [(w, r, "caption") for w, r in hub_records(self, "test")]
        else:
            (path,) = annotation_files(self, data, split)
            if split == "full":
                rows = _full(path)
            else:
                rows = [(w, r, "sentence") for w, r in read_records(path)]
        told = [
            (field(row, "video_id", str, where=where), field(row, name, str, where=where))
            for where, row, name in rows
        ]
        captions: dict[str, list[str]] = {}
        for vid, text in told:
            captions.setdefault(vid, []).append(" ".join(text.split()))
        found = []
        for vid, texts in captions.items():
            for k, text in enumerate(texts):
                found.append(Item(f"{vid}:text-{k}", vid, vid, text, vid, kind="text"))
            found.append(Item(f"{vid}:video", vid, vid, "", vid, kind="video"))
        return found

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
        found = _compared(items, responses)
        if not found.cosines.size:
            return [(vid, 0.0) for vid in found.texts]
        places = ranks(found.to_videos(), found.videos_of)
        return [(vid, float(r <= 1)) for vid, r in zip(found.texts, places, strict=True)]

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.retrieval.retrieval_scores`.

        Raises:
            InputError: vectors of different widths.
        """
        compared = _compared(items, responses)
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


def _full(path: Path) -> list[tuple[str, dict[str, str], str]]:
    table = read_json(path, dict)
    test = set()
    for k, video in enumerate(field(table, "videos", list, where=path.name)):
        where = f"{path.name}, video {k}"
        if field(video, "split", str, where=where) == "test":
            test.add(field(video, "video_id", str, where=where))
    found = []
    for k, row in enumerate(field(table, "sentences", list, where=path.name)):
        where = f"{path.name}, sentence {k}"
        if field(row, "video_id", str, where=where) in test:
            found.append((where, row, "caption"))
    return found


def _vector(response: Response) -> np.ndarray | None:
    return None if response.error is not None else read_vector(response.raw)


class _Compared(NamedTuple):
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


def _compared(items: Sequence[Item], responses: Sequence[Response]) -> _Compared:
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
    return _Compared(
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
