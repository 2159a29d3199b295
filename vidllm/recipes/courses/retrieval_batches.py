"""Batches of clips with captions for the course "retrieval", drawn from seeds by worker processes.

A batch holds scenes of the made world and, beside each, a variant that differs from it in one
thing (`vidllm.stage.variants`), so that a caption must be read to its last word. Batch i is the
same whatever the number of workers, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from vidllm.stage.scenes import Scene, make_scene
from vidllm.stage.tracks import tracks
from vidllm.stage.training.data import sample_seconds, to_paint
from vidllm.stage.variants import KINDS, caption_of, sentences_of, variant_of
from vidllm.stage.words import noun_phrase

#: How often a whole clip has a caption of all that happens; else of what tells it from its variant.
WHOLE = 0.5
_TRIES = 8  # kinds of variants that are tried for a scene


@dataclass(frozen=True)
class CaptionSettings:
    """What a batch looks like.

    Args:
        scenes: in a batch, each with a variant of it.
        frames: of a clip. moment: frames near one moment with what happens then (how an image–text
            model learns), not of a whole clip with all that happens.
        clips: scenes to go round in; 0 draws new ones for ever. seed: of the order and all choices.
        versions: of the made world, that scenes take turns in. size: pixels of a side.
    """

    scenes: int
    frames: int
    moment: bool = False
    clips: int = 0
    seed: int = 0
    versions: tuple[int, ...] = (1, 2)


class CaptionedBatches(Dataset[dict[str, Tensor]]):
    """Map-style: item i is a whole batch, a scene and its variant one after the other.

    Keys: what `vidllm.stage.training.trainee.paint` renders, with T = `frames`, and `ids` and
    `mask` (B, L) of the captions.
    """

    def __init__(
        self, settings: CaptionSettings, tokenizer: PreTrainedTokenizerBase, longest: int
    ) -> None:
        self.settings, self.tokenizer, self.longest = settings, tokenizer, longest

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        s = self.settings
        rng = np.random.default_rng([23, s.seed, index])
        rows, texts = [], []
        for k in range(s.scenes):
            number = index * s.scenes + k
            seed = int(rng.integers(s.clips)) if s.clips else number
            for shown, seconds, text in self._pair(seed, rng):
                rows.append(to_paint(tracks(shown, seconds), seconds))
                texts.append(text)
        batch = {k: torch.from_numpy(np.stack([row[k] for row in rows])) for k in rows[0]}
        return batch | encode(self.tokenizer, texts, self.longest)

    def _pair(self, seed: int, rng: np.random.Generator) -> list[tuple[Scene, np.ndarray, str]]:
        """A scene and a variant of it: seconds (T,) and a caption each."""
        s = self.settings
        scene = make_scene("train", seed, s.versions[seed % len(s.versions)])
        other = None
        for _ in range(_TRIES):
            other = other or variant_of(scene, str(rng.choice(KINDS)), rng)
        both = (scene, scene if other is None else other)
        if s.moment:
            return self._moments(both, rng)
        seconds = sample_seconds(scene, s.frames)
        if rng.random() < 0.5:  # anywhere in its part of the clip
            width = scene.duration / s.frames
            seconds = (np.arange(s.frames) + rng.random(s.frames)) * width
        told = [sentences_of(one) for one in both]
        if rng.random() >= WHOLE:
            told = self._telling(told, rng)
        return [(one, seconds, caption_of(t)) for one, t in zip(both, told, strict=True)]

    def _telling(self, told: list[list[str]], rng: np.random.Generator) -> list[list[str]]:
        """Some sentences, the same places of both, those among them that differ."""
        differ = [k for k, (a, b) in enumerate(zip(*told, strict=True)) if a != b]
        if not differ:
            return told
        chosen = differ if len(differ) == 2 else [int(rng.choice(differ))]
        rest = [k for k in range(len(told[0])) if k not in chosen and rng.random() < 0.15]
        return [[one[k] for k in sorted({*chosen, *rest})] for one in told]

    def _moments(
        self, both: tuple[Scene, Scene], rng: np.random.Generator
    ) -> list[tuple[Scene, np.ndarray, str]]:
        """Frames of one event, of both, and what is to be seen in them."""
        scene = both[0]
        event = scene.events[int(rng.integers(len(scene.events)))]
        seconds = np.sort(rng.uniform(event.start, event.end, self.settings.frames))
        seconds = np.minimum(seconds, scene.duration)
        return [(one, seconds, moment_caption(one, seconds, rng)) for one in both]


def moment_caption(scene: Scene, seconds: np.ndarray, rng: np.random.Generator) -> str:
    """What happens at some seconds, and at random some of who else is there and does nothing."""
    shown = tracks(scene, seconds)
    order = sorted(range(len(scene.events)), key=lambda i: scene.events[i].start)
    at = [
        k
        for k, i in enumerate(order)
        if bool(((scene.events[i].start <= seconds) & (seconds < scene.events[i].end)).any())
    ]
    told = sentences_of(scene)
    busy = {w for k in at for w in (scene.events[order[k]].actor, scene.events[order[k]].other)}
    first = shown.state.shape[1] - shown.action.shape[1]  # actors stand behind the distractors
    there: Any = (shown.state[:, first:, 4] > 0.5).any(0)
    idle = [
        noun_phrase(actor.noun, actor.colour)
        for k, actor in enumerate(scene.actors)
        if there[k] and k not in busy and rng.random() < 0.5
    ]
    return caption_of([*(told[k] for k in at), *idle])


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int) -> dict[str, Tensor]:
    """`ids` and `mask` (B, L), padded behind."""
    found = tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
    return {"ids": found["input_ids"], "mask": found["attention_mask"]}
