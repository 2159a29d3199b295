"""Tem-Adapter's claim: each of its two aligners helps to choose among options.

| arm | what it is |
|---|---|
| blind | the trained sentence encoder alone: every frame is zeros |
| none | sentence encoder and the mean of the frames |
| semantic, temporal | with one of the aligners |
| both | the whole head |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vidllm.recipes import get_recipe
from vidllm.recipes.courses.choice import ChoiceLesson, choice_batch
from vidllm.recipes.courses.head_loop import learn
from vidllm.recipes.courses.head_start import seen
from vidllm.stage.choices import choice_questions, evenly
from vidllm.stage.files import clip_scene
from vidllm.stage.questions import Question
from vidllm.stage.training.data import sample_seconds

from .claim_rows import ClaimSettings, Ledger, Row

ARMS = ("blind", "none", "semantic", "temporal", "both")
#: Of which benchmark seed the tested clips are, and questions about each.
SEED, ASKED = 31, 8


class _Blind(ChoiceLesson):
    """Sees nothing."""

    def batch(self, index: int) -> dict[str, Tensor]:
        found = super().batch(index)
        return {**found, "video": torch.zeros_like(found["video"])}


def measure_choice(
    settings: ClaimSettings, save: Callable[[list[Row]], None] | None = None
) -> list[Row]:
    """Train every arm and test it; rows as `claim_rows.Ledger` makes them."""
    recipe, arms = get_recipe("tem-adapter"), settings.chosen(ARMS)
    ledger = Ledger("tem-adapter", settings, save, arms)
    first = ChoiceLesson(recipe, settings.training(0))
    ledger.begin(first.settings.steps)
    settings = ledger.settings
    tests = _questions(first, settings.tested)
    for arm in arms:
        for seed in range(settings.seeds):
            kind = _Blind if arm == "blind" else ChoiceLesson
            aligners = "none" if arm == "blind" else arm
            lesson = kind(recipe, settings.training(seed, aligners=aligners))
            learn(lesson)
            right = [
                (_is_right(lesson, video, question, arm), vid, question.kind)
                for vid, video, question in tests
            ]
            clips = [vid for _, vid, _ in right]
            ledger.shares(arm, seed, "accuracy", [hit for hit, _, _ in right], clips)
            for name in dict.fromkeys(kind for _, _, kind in right):
                mine = [(hit, vid) for hit, vid, kind in right if kind == name]
                ledger.shares(
                    arm, seed, f"accuracy {name}", [hit for hit, _ in mine], [v for _, v in mine]
                )
            count = sum(p.numel() for p in lesson.system.parameters())
            ledger.fact(arm, seed, "parameters trained", count)
            ledger.save()
    return ledger.rows


def _questions(lesson: ChoiceLesson, number: int) -> list[tuple[str, Tensor, Question]]:
    """Features of test clips with questions about each."""
    version, found = max(lesson.versions), []
    for k in range(number):
        scene = clip_scene("test", SEED, k, version)
        video = seen(lesson.frozen, scene, sample_seconds(scene, lesson.frames), scene.seed)
        rng = scene.rng(11)
        for question in evenly(choice_questions(scene, rng), ASKED, rng):
            found.append((str(scene.seed), video, question))
    return found


@torch.no_grad()
def _is_right(lesson: ChoiceLesson, video: Tensor, question: Question, arm: str) -> bool:
    if arm == "blind":
        video = torch.zeros_like(video)
    batch = choice_batch([(video.cpu(), question)], lesson.tokenizer, lesson.system.text.most)
    told = lesson.system.loss({k: v.to(lesson.system.device) for k, v in batch.items()})
    return bool(told["accuracy"] > 0.5)
