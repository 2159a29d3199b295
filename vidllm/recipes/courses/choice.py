"""The course "choice": options are chosen by what they state (Tem-Adapter).

Questions and hard options are drawn anew for every batch; the features of a clip's frames, without
time, are made once.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.encoders.heads.sentences import pad_words
from vidllm.models.heads.head_config import HeadConfig
from vidllm.models.heads.option_chooser import OptionChooser, statement
from vidllm.progress.interruption import Halt
from vidllm.stage.choices import choice_questions, evenly
from vidllm.stage.questions import Question
from vidllm.stage.scenes import Scene, make_scene
from vidllm.stage.training.data import sample_seconds
from vidllm.stage.training.settings import plan_of

from ..recipe import Recipe
from . import CourseSettings
from .feature_file import FeatureFile
from .head_loop import Heard, Lesson, teach
from .head_settings import HeadSettings, filled
from .head_start import Start, seen

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "text": {"layers": 1, "heads": 6},
        "head": {"width": 96, "heads": 6, "ffn": 768},
        "batch": 8, "lr": 5e-4, "clips": 6000, "frames": 32,
    },
    "tiny": {
        "text": {"layers": 1, "heads": 2},
        "head": {"width": 16, "heads": 2, "ffn": 64},
        "steps": 40, "batch": 2, "lr": 1e-3, "clips": 12, "frames": 8,
    },
}  # fmt: skip
#: Questions about a clip of a batch.
ASKED = 4


class ChoiceLesson(Lesson):
    """See the head of this file.

    Args:
        recipe: the system. settings: what is 0 there comes from `SIZES` or the recipe.
        reads: which features; "tokens" are those of single frames in the LLM's space.
    """

    system: OptionChooser

    def __init__(self, recipe: Recipe, settings: HeadSettings, reads: str = "tokens") -> None:
        size = SIZES[settings.size]
        self.settings = filled(settings, recipe, size)
        self.frames: int = recipe.frames or size["frames"]
        start = Start(self.settings, reads)
        self.frozen, self.tokenizer = start.frozen, start.tokenizer
        words = self.frozen.words()
        config = HeadConfig(
            recipe.name, "choice", start.name, start.mark, frames=self.frames, reads=reads,
            text={"words": len(words), "dim": words.shape[1], **size["text"]},
            head={"name": "tem-adapter", "dim": self.frozen.width, **size["head"],
                  **dict(settings.head)},
        )  # fmt: skip
        self.system = OptionChooser(config, self.frozen, self.tokenizer)
        self.system.text.take_words(words)
        self.versions = plan_of(self.frozen.model.config.vision).versions
        self.scene = lru_cache(maxsize=None)(self._scene)
        self.features: FeatureFile | None = None

    def _scene(self, number: int) -> Scene:
        return make_scene("train", number, self.versions[number % len(self.versions)])

    def prepare(self, heard: Heard, halt: Halt) -> None:
        s, reads = self.settings, self.system.config.reads
        path = Path(s.features) if s.features else Path(s.out) / "features.bin"
        told = {"mark": self.system.config.mark, "reads": reads, "frames": self.frames}
        told["versions"] = list(self.versions)
        times = [sample_seconds(self.scene(k), self.frames) for k in range(s.clips)]
        self.features = FeatureFile(path, [len(x) for x in times], self.frozen.width, told)
        self.features.fill(lambda k: seen(self.frozen, self.scene(k), times[k], k), heard, halt)

    def batch(self, index: int) -> dict[str, Tensor]:
        assert self.features is not None  # `prepare` came first
        rng = np.random.default_rng([23, self.settings.seed, index])
        chosen = rng.choice(
            self.settings.clips, min(self.settings.batch, self.settings.clips), False
        )
        rows = []
        for number in chosen.tolist():
            asked = choice_questions(self.scene(number), rng)
            video = self.features[number]
            rows += [(video, question) for question in evenly(asked, ASKED, rng)]
        return choice_batch(rows, self.tokenizer, self.system.text.most)

    def card(self) -> str:
        return (
            "Chooses among the options of a question (Tem-Adapter, arXiv 2308.08414) from "
            f"{self.frames} frames. Taught on short-answer questions with hard options about "
            f"{self.settings.clips} scenes of the split train of the made world (docs/stage.md)."
        )


def choice_batch(
    rows: list[tuple[Tensor, Question]], tokenizer: Any, most: int
) -> dict[str, Tensor]:
    """Questions about clips as `OptionChooser.loss` takes them.

    Args:
        rows: features (T, D) of a clip and a question about it. most: words of a statement.
    """
    longest = max(len(video) for video, _ in rows)
    count = max(len(question.options) for _, question in rows)
    video = torch.zeros(len(rows), longest, rows[0][0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    told: list[list[int]] = []
    for k, (x, question) in enumerate(rows):
        video[k, : len(x)], mask[k, : len(x)] = x, True
        said = [statement(question.text, option) for option in question.options]
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        told += [list(row)[:most] for row in ids] + [[]] * (count - len(said))
    ids_, real = pad_words(told)
    return {
        "video": video,
        "mask": mask,
        "ids": ids_.unflatten(0, (len(rows), count)),
        "real": real.unflatten(0, (len(rows), count)),
        "answer": torch.tensor([q.options.index(q.answer) for _, q in rows]),
    }


def train(recipe: Recipe, settings: CourseSettings) -> Path:
    """Train the chooser in a folder; see `head_loop.teach`."""
    own = HeadSettings.of(settings)
    return teach(lambda: ChoiceLesson(recipe, own), own, quiet=settings.quiet)
