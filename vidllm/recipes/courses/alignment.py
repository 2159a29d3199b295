"""The course "alignment": sentences of narrated clips find their seconds (NaSVA).

A training clip is several scenes one after the other. It goes through the temporal encoders as a
whole, as a clip that is asked about does; its features are made once, one a second. What the tower
sees of a scene serves several clips. Every batch tells the events in other words and lets its clips
begin anywhere in the first hour, so that places far on are no news.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.encoders.heads.sentences import pad_words
from vidllm.models.heads.head_config import HeadConfig
from vidllm.models.heads.sentence_aligner import SentenceAligner
from vidllm.progress.interruption import Halt
from vidllm.stage.narration import NarratedClip, Narration
from vidllm.stage.scenes import Scene, make_scene
from vidllm.stage.training.settings import plan_of

from ..recipe import Recipe
from . import CourseSettings
from .feature_file import FeatureFile
from .head_loop import Heard, Lesson, teach
from .head_settings import HeadSettings, filled
from .head_start import Start, painted

#: Hidden sizes of the sentence encoder and the head, and what else a size means.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "text": {"layers": 1, "heads": 6},
        "head": {"dim": 192, "layers": 3, "heads": 6, "ffn": 512, "joint_dim": 64},
        "batch": 4, "lr": 5e-4, "clips": 3000,
    },
    "tiny": {
        "text": {"layers": 1, "heads": 2},
        "head": {"dim": 32, "layers": 1, "heads": 2, "ffn": 64, "joint_dim": 16},
        "steps": 40, "batch": 2, "lr": 1e-3, "clips": 12,
    },
}  # fmt: skip
#: Features a second, scenes of a clip at most, and the latest begin of a clip in seconds.
FPS, MOST_SCENES, LATEST = 1.0, 8, 3600.0
#: Clips that a scene stands in, and scenes out of which clips are put together.
ROUNDS, POOL = 3, 64


def narrated_seconds(scene: Scene) -> np.ndarray:
    """The seconds (T,) at which `load_video(path, fps=1)` finds a scene's frames."""
    number = max(1, math.ceil(round(scene.duration * FPS, 6)))
    shown = np.floor(np.arange(number) / FPS * scene.fps + 1e-6)
    return np.minimum(shown, scene.frame_count - 1) / scene.fps


def joined_seconds(clip: NarratedClip) -> np.ndarray:
    """The seconds (T,) of a narrated clip's frames, those of each scene from its start on."""
    parts = zip(clip.scenes, clip.starts, strict=True)
    return np.concatenate([narrated_seconds(scene) + start for scene, start in parts])


def joined_scenes(scenes: int) -> list[tuple[int, ...]]:
    """The scenes of every training clip, by number, the same for every seed of a training.

    Clips of one pool follow each other, so that what the tower sees of a scene is made once.
    """
    rng = np.random.default_rng(29)
    found: list[tuple[int, ...]] = []
    for first in range(0, scenes, POOL):
        pool = np.arange(first, min(first + POOL, scenes))
        for _ in range(ROUNDS):
            left = rng.permutation(pool).tolist()
            while left:
                count = int(rng.integers(1, MOST_SCENES + 1))
                found.append(tuple(left[:count]))
                left = left[count:]
    return found


class AlignmentLesson(Lesson):
    """See the head of this file.

    Args:
        recipe: the system. settings: what is 0 there comes from `SIZES` or the recipe.
    """

    system: SentenceAligner

    def __init__(self, recipe: Recipe, settings: HeadSettings) -> None:
        size = SIZES[settings.size]
        self.settings = filled(settings, recipe, size)
        start = Start(self.settings, "mixed")
        self.frozen, self.tokenizer = start.frozen, start.tokenizer
        words = self.frozen.words()
        config = HeadConfig(
            recipe.name, "alignment", start.name, start.mark, fps=FPS, reads="mixed",
            text={"words": len(words), "dim": words.shape[1], **size["text"]},
            head={"name": "nasva", "video_dim": self.frozen.width, "text_dim": words.shape[1],
                  **size["head"], **dict(settings.head)},
        )  # fmt: skip
        self.system = SentenceAligner(config, self.frozen, self.tokenizer)
        self.system.text.take_words(words)
        self.versions = plan_of(self.frozen.model.config.vision).versions
        self.scene = lru_cache(maxsize=None)(self._scene)
        self.clips = joined_scenes(self.settings.clips)
        self.features: FeatureFile | None = None

    def _scene(self, number: int) -> Scene:
        return make_scene("train", number, self.versions[number % len(self.versions)])

    def prepare(self, heard: Heard, halt: Halt) -> None:
        s = self.settings
        path = Path(s.features) if s.features else Path(s.out) / "features.bin"
        told = {"mark": self.system.config.mark, "reads": "mixed", "fps": FPS}
        told |= {"versions": list(self.versions), "scenes": s.clips, "rounds": ROUNDS}
        rows = [len(joined_seconds(self._joined(clip))) for clip in range(len(self.clips))]
        self.features = FeatureFile(path, rows, self.frozen.width, told)
        one = lru_cache(maxsize=POOL)(self._rows)

        def make(clip: int) -> Tensor:
            seconds = torch.from_numpy(joined_seconds(self._joined(clip))).float()
            return self.frozen.features(torch.cat([one(k) for k in self.clips[clip]]), seconds)

        self.features.fill(make, heard, halt)

    def _rows(self, number: int) -> Tensor:
        scene = self.scene(number)
        frames = painted(scene, narrated_seconds(scene), self.frozen.size, number)
        return self.frozen.rows(frames)

    def _joined(self, clip: int) -> NarratedClip:
        return NarratedClip(f"train {clip}", tuple(map(self.scene, self.clips[clip])))

    def batch(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([19, self.settings.seed, index])
        rows = [self._clip(rng) for _ in range(self.settings.batch)]
        return narrated_batch(rows, self.tokenizer, self.system.text.most, rng)

    def _clip(self, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, Narration]:
        """Features (T, D), their seconds (T,), and what is told."""
        assert self.features is not None  # `prepare` came first
        clip = int(rng.integers(len(self.clips)))
        origin = float(rng.uniform(0, LATEST)) if rng.random() < 0.5 else 0.0
        shown = self._joined(clip)
        told = shown.narration(rng).later(origin)
        return self.features[clip], joined_seconds(shown) + origin, told

    def card(self) -> str:
        scenes = self.settings.clips
        return (
            "Says when a sentence happens (NaSVA, arXiv 2312.14055): sentences are queries over "
            f"one feature a second. Taught on {len(self.clips)} clips of 1 to "
            f"{min(MOST_SCENES, scenes)} scenes one after the other, put together of {scenes} "
            "scenes of the split train of the made world (docs/stage.md)."
        )


def narrated_batch(
    rows: list[tuple[Tensor, np.ndarray, Narration]],
    tokenizer: Any,
    most: int,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """Clips as `SentenceAligner.loss` takes them.

    Args:
        rows: features (T, D), seconds (T,) and narration of each. most: words of a sentence.
        rng: leaves out sentences and, in half of the batches, their order; None for all in order.
    """
    ordered = rng is None or bool(rng.random() < 0.5)
    longest = max(len(x) for x, _, _ in rows)
    video = torch.zeros(len(rows), longest, rows[0][0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    seconds = torch.zeros(len(rows), longest)
    told: list[list[list[int]]] = []
    windows: list[list[tuple[float, float]]] = []
    for k, (x, times, narration) in enumerate(rows):
        video[k, : len(x)], mask[k, : len(x)] = x, True
        seconds[k, : len(x)] = torch.from_numpy(times).float()
        chosen = np.arange(len(narration.sentences))
        if rng is not None:
            share = rng.uniform(0.1, 1.0) if rng.random() < 0.5 else 1.0
            kept = rng.permutation(chosen)[: max(1, round(share * len(chosen)))]
            chosen = np.sort(kept) if ordered else kept
        ids = tokenizer([narration.sentences[i] for i in chosen], add_special_tokens=False)
        told.append([list(row)[:most] for row in ids["input_ids"]])
        windows.append([narration.windows[i] for i in chosen])
    count = max(map(len, told))
    ids_, real = pad_words([row for one in told for row in (*one, *[[]] * (count - len(one)))])
    spans = torch.full((len(rows), count, 2), float("nan"))
    for k, one_windows in enumerate(windows):
        spans[k, : len(one_windows)] = torch.tensor(one_windows)
    return {
        "video": video,
        "mask": mask,
        "seconds": seconds,
        "ids": ids_.unflatten(0, (len(rows), count)),
        "real": real.unflatten(0, (len(rows), count)),
        "windows": spans,
        "ordered": torch.tensor([ordered]),
    }


def train(recipe: Recipe, settings: CourseSettings) -> Path:
    """Train the aligner in a folder; see `head_loop.teach`."""
    own = HeadSettings.of(settings)
    return teach(lambda: AlignmentLesson(recipe, own), own, quiet=settings.quiet)
