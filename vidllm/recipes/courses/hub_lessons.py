"""Questions about one's own videos as a hub model is taught them, one prompt with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from vidllm.errors import InputError, VidllmError
from vidllm.models.families.engine import HubEngine
from vidllm.models.hooks.labels import IGNORE
from vidllm.models.hooks.session import Session
from vidllm.video import VideoClip, load_video

from .examples import Example
from .own_videos import rows_of


@dataclass(frozen=True)
class Lesson:
    """An example with its clip; `problem` in place of one that could not be read."""

    example: Example
    clip: VideoClip | None
    problem: str = ""


class HubLessons(Dataset[list[Lesson]]):
    """Map-style: item i is batch i; every round over the examples has its own order.

    Args:
        frames: sampled of every clip. batch: examples in a batch. length: batches.

    Raises:
        InputError: no examples.
    """

    def __init__(
        self, examples: Sequence[Example], *, frames: int, batch: int, length: int, seed: int
    ) -> None:
        if not examples:
            raise InputError("the annotations hold no question that a model could be taught")
        self.examples, self.frames = list(examples), frames
        self.batch, self.length, self.seed = batch, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Lesson]:
        rows = rows_of(index, self.batch, len(self.examples), self.seed)
        return [self._read(self.examples[row]) for row in rows]

    def _read(self, one: Example) -> Lesson:
        try:
            clip = load_video(str(one.video), frames=self.frames, start=one.start, end=one.end)
        except VidllmError as error:  # told by the main process, in one line
            return Lesson(one, None, str(error))
        return Lesson(one, clip)


def taught(engine: HubEngine, session: Session, lesson: Lesson) -> dict[str, Any]:
    """The model's arguments for a question with its answer, whose tokens alone have labels.

    The vision tower, which is not trained, has seen the clip when this returns.

    Raises:
        InputError: a video that could not be read.
    """
    example, clip = lesson.example, lesson.clip
    if clip is None:
        raise InputError(lesson.problem)
    timed = bool(example.spans) and bool(engine.timed({})["times"])
    origin, last = engine.origin(clip, timed), clip.duration
    times = (
        engine.code.encode(min(max(t - origin, 0.0), last), last)
        for span in example.spans
        for t in span
    )
    answer: Any = engine.tokenizer(example.answer.format(*times), add_special_tokens=False)
    with torch.no_grad():
        video = engine.memory.encode(clip, session)
    asked = engine.prompt_ids(video.placed, example.question, timed)
    reply = torch.tensor([[*answer["input_ids"], engine.stop_ids()[0]]], device=asked.device)
    labels = torch.cat([torch.full_like(asked, IGNORE), reply], dim=1)
    ids = torch.cat([asked, reply], dim=1)
    made = engine.memory.arguments(video, session, ids)
    return {**made, "labels": labels, "use_cache": False}
