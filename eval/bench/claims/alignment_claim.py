"""NaSVA's claims: it aligns better than similarity alone, and chooses frames better than evenly.

| arm | what it is |
|---|---|
| similarity | nothing trained: cosine of the mean word and the frozen feature of a second |
| projection | sentence encoder and linear maps trained by the same loss, without the layers |
| unordered | the head without an embedding of the sentences' order |
| nasva | the whole head |

R@1 is over narrated test clips (and over clips of the split long). As a selector each arm picks
`KEPT` of a long clip's seconds for the frozen model's own LLM, beside `KEPT` even ones ("even").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.ask.video_llm import VideoLLM
from vidllm.models.heads.frozen_frames import FrozenFrames
from vidllm.models.heads.sentence_aligner import SentenceAligner
from vidllm.recipes import Recipe, get_recipe
from vidllm.recipes.courses.alignment import AlignmentLesson, joined_seconds, narrated_seconds
from vidllm.recipes.courses.head_loop import learn
from vidllm.recipes.courses.head_start import painted, seen
from vidllm.stage.files import clip_scene
from vidllm.stage.narration import NarratedClip, Narration, narrated_clip, narration_of
from vidllm.stage.render import to_uint8
from vidllm.stage.scenes import Scene
from vidllm.stage.training.data import sample_seconds
from vidllm.video import VideoClip

from ...scores.spans import tiou
from .claim_rows import ClaimSettings, Ledger, Row

ARMS = ("similarity", "projection", "unordered", "nasva")
#: Of which benchmark seed the tested clips are, and frames that the LLM sees of a long clip.
SEED, KEPT = 31, 64


@dataclass(frozen=True)
class _Told:
    """A clip behind the frozen model: features (T, D), their seconds (T,), and what is told."""

    vid: str
    seen: Tensor
    seconds: np.ndarray
    narration: Narration


def measure_alignment(
    settings: ClaimSettings, save: Callable[[list[Row]], None] | None = None
) -> list[Row]:
    """Train every arm and test it; rows as `claim_rows.Ledger` makes them."""
    recipe, arms = get_recipe("nasva"), settings.chosen(ARMS)
    ledger = Ledger("nasva", settings, save, [*arms, "even"] if settings.long else arms)
    lesson = _lesson(recipe, settings, "nasva", 0)
    ledger.begin(lesson.settings.steps)
    settings = ledger.settings
    frozen, version = lesson.frozen, max(lesson.versions)
    tests = {
        "narrated": [
            _narrated(frozen, narrated_clip("test", SEED, k, version=version))
            for k in range(settings.tested)
        ],
        "long": [_long(frozen, clip_scene("long", SEED, k, version)) for k in range(settings.long)],
    }
    llm = VideoLLM(frozen.model, lesson.tokenizer, compressor="none")
    if settings.long:
        _choosing(ledger, "even", None, llm, settings, version, None)
    for arm in arms:
        for seed in range(1 if arm == "similarity" else settings.seeds):
            lesson = _lesson(recipe, settings, arm, seed)
            if arm != "similarity":
                learn(lesson)
            system, told = lesson.system, None if arm == "similarity" else seed
            system.eval()
            for name, clips in tests.items():
                values = [(hit, clip.vid) for clip in clips for hit in _hits(system, clip, arm)]
                ledger.shares(
                    arm, told, f"R@1 {name}", [v for v, _ in values], [vid for _, vid in values]
                )
            if settings.long:
                _choosing(ledger, arm, told, llm, settings, version, system)
            count = sum(p.numel() for p in system.parameters()) if told is not None else 0
            ledger.fact(arm, told, "parameters trained", count)
            ledger.save()
    return ledger.rows


def _lesson(recipe: Recipe, settings: ClaimSettings, arm: str, seed: int) -> AlignmentLesson:
    own: dict[str, dict[str, Any]] = {"projection": {"layers": 0}, "unordered": {"order": False}}
    return AlignmentLesson(recipe, settings.training(seed, **own.get(arm, {})))


def _narrated(frozen: FrozenFrames, clip: NarratedClip) -> _Told:
    size, seconds = frozen.size, joined_seconds(clip)
    frames = torch.cat([painted(s, narrated_seconds(s), size, s.seed) for s in clip.scenes])
    features = frozen(frames, torch.from_numpy(seconds.astype(np.float32)))
    return _Told(clip.vid, features, seconds, clip.narration())


def _long(frozen: FrozenFrames, scene: Scene) -> _Told:
    seconds = narrated_seconds(scene)
    return _Told(
        str(scene.seed), seen(frozen, scene, seconds, scene.seed), seconds, narration_of(scene)
    )


def _scores(system: SentenceAligner, clip: _Told, sentences: list[str], arm: str) -> Tensor:
    """(S, T) of sentences in their order with every second."""
    rows = system.sentences(sentences)
    if arm == "similarity":
        return F.normalize(rows, dim=-1) @ F.normalize(clip.seen.to(rows), dim=-1).T
    with system.head.still():
        return system.head.similarity(
            clip.seen[None].to(rows),
            rows[None],
            seconds=torch.from_numpy(clip.seconds)[None].float().to(rows.device),
            ordered=system.head.order and len(sentences) > 1,
        )[-1, 0]


@torch.no_grad()
def _hits(system: SentenceAligner, clip: _Told, arm: str) -> list[float]:
    """Whether the best second of every sentence lies in its window."""
    if not clip.narration.sentences:
        return []
    best = _scores(system, clip, list(clip.narration.sentences), arm).argmax(1).tolist()
    pairs = zip(best, clip.narration.windows, strict=True)
    return [float(start <= clip.seconds[k] <= end) for k, (start, end) in pairs]


@torch.no_grad()
def _choosing(
    ledger: Ledger,
    arm: str,
    seed: int | None,
    llm: VideoLLM,
    settings: ClaimSettings,
    version: int,
    system: SentenceAligner | None,
) -> None:
    """What the LLM grounds in `KEPT` frames of long clips; even ones where there is no system."""
    values: list[float] = []
    clips: list[str] = []
    size = llm.model.vision.image_size
    for number in range(settings.long):
        scene = clip_scene("long", SEED, number, version)
        seconds = sample_seconds(scene, KEPT) if system is None else narrated_seconds(scene)
        whole = _clip(scene, seconds, size)
        told = narration_of(scene)
        frozen = system.frozen.of_clip(whole) if system is not None else None
        for sentence, window in zip(told.sentences, told.windows, strict=True):
            clip = whole
            if system is not None and frozen is not None:
                one = _Told("", frozen, seconds, told)
                score = _scores(system, one, [sentence], arm)[0]
                kept = score.argsort(descending=True, stable=True)[:KEPT].sort().values.numpy()
                clip = _clip_of(whole, kept)
            spans = llm.ground(clip, sentence, anyway=True)
            found = tiou((spans[0].start, spans[0].end), window) if spans else 0.0
            values.append(found)
            clips.append(str(scene.seed))
    ledger.shares(arm, seed, "mIoU long, chosen frames", values, clips)
    ledger.shares(arm, seed, "R1@0.3 long, chosen frames", [v >= 0.3 for v in values], clips)


def _clip(scene: Scene, seconds: np.ndarray, size: int) -> VideoClip:
    frames = to_uint8(painted(scene, seconds, size, scene.seed)).numpy()
    indices = np.round(seconds * scene.fps).astype(np.int64)
    return VideoClip(frames, seconds, scene.fps, scene.duration, indices, f"long {scene.seed}")


def _clip_of(clip: VideoClip, kept: np.ndarray) -> VideoClip:
    return replace(
        clip, frames=clip.frames[kept], seconds=clip.seconds[kept], indices=clip.indices[kept]
    )
