"""The part "library" of ``vidllm bench long``: many short videos in a folder, searched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vidllm.stage.files import Sample

#: Videos of the library that is searched, and searches.
VIDEOS, QUERIES = 200, 50
_HIT = 0.3  # IoU from which a moment counts as found


def search_library(folder: Path, clips: int, seed: int) -> Iterator[tuple[str, str, float]]:
    """Index `VIDEOS` short clips of stage and look for what happens in one of them.

    A video shows what is looked for where an event of the same who, what and with whom is in its
    scene, whether it is the one that the query was made from or not.

    Args:
        folder: where clips and library are kept. clips: not used. seed: of stage.
    """
    from vidllm.longvideo.choosing import tiou
    from vidllm.longvideo.library import VideoLibrary
    from vidllm.stage.files import clip_scene, write_stage

    shutil.rmtree(folder / "library", ignore_errors=True)
    library = VideoLibrary(folder / "library")
    samples = write_stage(folder, "test", seed, VIDEOS)
    began = time.perf_counter()
    for sample in samples:
        library.add(sample.path)
    case = f"{VIDEOS} videos of about a minute"
    yield case, "seconds to index", time.perf_counter() - began
    scenes = {s.path.name: clip_scene("test", seed, i) for i, s in enumerate(samples)}
    shown: list[list[bool]] = []
    found: list[list[bool]] = []
    for number, sample in enumerate(samples[:: VIDEOS // QUERIES]):
        asked = next(q for q in sample.questions if q.kind == "ground")
        scene = scenes[sample.path.name]
        starts = [event.start for event in scene.events]
        wanted = _told(scene)[starts.index(asked.spans[0][0])]
        began = time.perf_counter()
        hits = library.ground(_statement(sample, asked), limit=10)
        if number < 3:
            yield case, f"seconds of query {number + 1}", time.perf_counter() - began
        truths = [_moments(scenes[Path(hit.video).name], wanted) for hit in hits]
        shown.append([bool(truth) for truth in truths])
        found.append(
            [
                any(tiou((hit.span.start, hit.span.end), truth) >= _HIT for truth in truths[at])
                for at, hit in enumerate(hits)
            ]
        )
    for first in (1, 5, 10):
        for what, right in (("a video that shows it", shown), ("the moment (IoU 0.3)", found)):
            share = float(np.mean([any(one[:first]) for one in right]))
            yield case, f"{what} within {first} (n={len(right)})", share


def _told(scene: Any) -> list[tuple[Any, ...]]:
    """Who does what in each event of a scene."""
    who = [(actor.colour, actor.noun) for actor in scene.actors]
    return [(who[e.actor], e.action, who[e.other] if e.other >= 0 else None) for e in scene.events]


def _moments(scene: Any, wanted: tuple[Any, ...]) -> list[tuple[float, float]]:
    """When someone does that in a scene."""
    told = zip(scene.events, _told(scene), strict=True)
    return [(event.start, event.end) for event, what in told if what == wanted]


def _statement(sample: Sample, asked: Any) -> str:
    """What a question asks for, as the captions of its clip say it."""
    caption = next(q for q in sample.questions if q.kind == "caption")
    said = [part.replace("from {} to {}", "").strip(" .") for part in caption.answer.split(" . ")]
    return next(
        text for text, span in zip(said, caption.spans, strict=True) if span[0] == asked.spans[0][0]
    )
