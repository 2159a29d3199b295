"""Narrations: every event of a clip as a sentence, and when the clip shows it.

A narrated clip is several scenes one after the other, its chapters, as the steps of an instruction
video follow each other: minutes with dozens of sentences, of which a scene alone has few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidllm.errors import InputError

from .files import clip_scene
from .questions import GROUND_TEMPLATES, Asker, Interval
from .scenes import USUAL, Scene
from .words import ORDINALS

#: Chapters of a narrated clip if nobody says how many.
CHAPTERS = 6
_STREAM = 9  # of a scene's random numbers: how its narrator speaks


@dataclass(frozen=True)
class Narration:
    """Sentences in the order in which they are shown, and the seconds of each.

    `events` says in one fixed wording, and without a number, what each tells.
    """

    sentences: tuple[str, ...]
    windows: tuple[Interval, ...]
    events: tuple[str, ...]

    def later(self, seconds: float) -> Narration:
        """The same so many seconds later."""
        moved = tuple((start + seconds, end + seconds) for start, end in self.windows)
        return replace(self, windows=moved)


def joined(parts: Sequence[Narration]) -> Narration:
    """Narrations one after the other, without what happens in more than one of them.

    A sentence of the whole then fits one window, as one of a part does.
    """
    told = Counter(event for part in parts for event in set(part.events))
    rows = [
        row
        for part in parts
        for row in zip(part.sentences, part.windows, part.events, strict=True)
        if told[row[2]] == 1
    ]
    return Narration(*(tuple(row[k] for row in rows) for k in range(3)))  # type: ignore[arg-type]


def narration_of(scene: Scene, rng: np.random.Generator | None = None) -> Narration:
    """Every event of a scene, in the order of their starts.

    Args:
        rng: draws the words anew, among them those of a question for a time; None for the words of
            a caption, always the same. A repeated event is told by its number either way, so that
            a sentence fits one window.
    """
    asker = Asker(scene, scene.rng(_STREAM) if rng is None else rng)
    order = sorted(range(len(scene.events)), key=lambda i: scene.events[i].start)
    order = [i for i in order if len(scene.occurrences(i)) <= len(ORDINALS)]
    said = [_plain(asker, i) if rng is None else _drawn(asker, i) for i in order]
    windows = tuple((scene.events[i].start, scene.events[i].end) for i in order)
    return Narration(tuple(said), windows, tuple(asker.plain_sentence(i) for i in order))


def _plain(asker: Asker, event: int) -> str:
    same = asker.scene.occurrences(event)
    number = f" for the {ORDINALS[same.index(event)]} time" if len(same) > 1 else ""
    return asker.plain_sentence(event) + number


def _drawn(asker: Asker, event: int) -> str:
    if asker.rng.random() < 0.5:
        return _plain(asker, event)
    return asker.pick(GROUND_TEMPLATES).format(**asker.phrases(event))


@dataclass(frozen=True)
class NarratedClip:
    """Scenes one after the other."""

    vid: str
    scenes: tuple[Scene, ...]

    @property
    def starts(self) -> tuple[float, ...]:
        """The second at which each chapter begins."""
        ends = np.cumsum([scene.duration for scene in self.scenes]).tolist()
        return (0.0, *ends[:-1])

    @property
    def duration(self) -> float:
        """Seconds of the whole."""
        return float(sum(scene.duration for scene in self.scenes))

    def narration(self, rng: np.random.Generator | None = None) -> Narration:
        """What is told of all chapters; `rng` as in `narration_of`."""
        return joined(
            [
                narration_of(scene, rng).later(start)
                for scene, start in zip(self.scenes, self.starts, strict=True)
            ]
        )


def narrated_clip(
    split: str, seed: int, index: int, *, chapters: int = CHAPTERS, version: int = USUAL
) -> NarratedClip:
    """Clip `index` of a benchmark seed: its chapters are the seed's clips, each in one alone.

    Raises:
        InputError: no such split, version or clip, or fewer than one chapter.
    """
    if chapters < 1:
        raise InputError(f"a narrated clip has at least 1 chapter, not {chapters}")
    numbers = range(index * chapters, (index + 1) * chapters)
    scenes = tuple(clip_scene(split, seed, number, version) for number in numbers)
    return NarratedClip(f"narrated_{split}_{scenes[0].seed:09d}", scenes)
