"""Batches of scenes with their questions, drawn from seeds by worker processes.

A batch holds sprite tracks, not pixels: frames are rendered on the training device. Batch i is
the same whatever the number of workers, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from ..stage.questions import Question, draw
from ..stage.scenes import Scene, make_scene, rng_for
from ..stage.tracks import MAX_ACTORS, tracks
from ..timecode import TimeCode
from .words import ASSISTANT, END

SHORT_SLOTS, SHORT_LENGTH, LONG_LENGTH = 9, 32, 96
TEXT_LENGTH = SHORT_SLOTS * SHORT_LENGTH + LONG_LENGTH
#: Time fields of one batch row that get a pointer target.
POINTERS = 2 * SHORT_SLOTS
IGNORE = -100


@dataclass(frozen=True)
class DataSettings:
    """What a batch looks like.

    Args:
        split: "train" or "val".
        batch: clips in a batch.
        frames: frame counts to choose from, one for a whole batch, with `frame_weights`.
        word_noise: share of question words replaced by the unknown word, so that a user's own
            words do not throw the model off.
    """

    split: str = "train"
    batch: int = 64
    frames: tuple[int, ...] = (64, 48, 32)
    frame_weights: tuple[float, ...] = (0.8, 0.1, 0.1)
    word_noise: float = 0.03
    seed: int = 0


def sample_seconds(scene: Scene, frames: int) -> np.ndarray:
    """The times (T,) at which `load_video(path, frames=frames)` finds frames in the scene's file."""
    count = scene.frame_count
    if count <= frames:
        return np.arange(count) / scene.fps
    centres = (np.arange(frames) + 0.5) * scene.duration / frames
    shown = np.floor(centres * scene.fps + 1e-6)
    return np.minimum(shown, count - 1) / scene.fps


class StageBatches(Dataset[dict[str, Tensor]]):
    """Map-style: item i is a whole batch.

    Keys: `state` (B, T, S, 8), `glyph` (B, S), `background` (B, K, 9), `noise` (B,),
    `seconds` (B, T), `duration` (B,), `action` (B, T, A), `look` (B, A, 2) noun and colour or −1,
    `ids` and `labels` (B, text length), `points` (B, P) text positions or −1,
    `point_spans` (B, P, 2) seconds.
    """

    def __init__(
        self, settings: DataSettings, tokenizer: PreTrainedTokenizerFast, code: TimeCode, length: int
    ) -> None:
        self.settings = settings
        self.code = code
        self.length = length
        self.core = tokenizer.backend_tokenizer
        self.unknown = int(tokenizer.unk_token_id)  # type: ignore[arg-type]
        self.assistant = self.core.token_to_id(ASSISTANT)
        self.end = self.core.token_to_id(END)
        self.pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
        self.time_ids = {self.core.token_to_id(t) for t in code.special_tokens}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        s = self.settings
        rng = np.random.default_rng([11, s.seed, index])
        frames = int(rng.choice(s.frames, p=np.asarray(s.frame_weights) / sum(s.frame_weights)))
        first = (s.seed * 1_000_000 + index) * s.batch
        rows = [self._row(make_scene(s.split, first + i), frames, rng) for i in range(s.batch)]
        return {k: torch.from_numpy(np.stack([row[k] for row in rows])) for k in rows[0]}

    def _row(self, scene: Scene, frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seconds = sample_seconds(scene, frames)
        if len(seconds) < frames:  # a batch needs one length: the last frame stands still
            seconds = np.concatenate([seconds, np.repeat(seconds[-1:], frames - len(seconds))])
        moving = tracks(scene, seconds)
        look = np.full((MAX_ACTORS, 2), -1, dtype=np.int64)
        for a, actor in enumerate(scene.actors):
            look[a] = actor.noun, actor.colour
        row = {
            "state": moving.state,
            "glyph": moving.glyph,
            "background": moving.background,
            "noise": np.float32(moving.noise),
            "seconds": seconds.astype(np.float32),
            "duration": np.float32(scene.duration),
            "action": moving.action,
            "look": look,
        }
        asked = draw(scene, rng_for(scene.split, scene.seed, stream=1), ground=3, qa=4)
        return {**row, **self._text(scene, asked, rng)}

    def _text(
        self, scene: Scene, asked: list[Question], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        ids = np.full(TEXT_LENGTH, self.pad, dtype=np.int64)
        labels = np.full(TEXT_LENGTH, IGNORE, dtype=np.int64)
        points = np.full(POINTERS, -1, dtype=np.int64)
        spans = np.zeros((POINTERS, 2), dtype=np.float32)
        short = [q for q in asked if q.kind != "caption"][:SHORT_SLOTS]
        places = [(q, i * SHORT_LENGTH, SHORT_LENGTH) for i, q in enumerate(short)]
        places += [
            (q, SHORT_SLOTS * SHORT_LENGTH, LONG_LENGTH) for q in asked if q.kind == "caption"
        ][:1]
        used = 0
        for question, start, room in places:
            said = self.core.encode(question.text, add_special_tokens=False).ids
            noise = rng.random(len(said)) < self.settings.word_noise
            said = [self.unknown if n else i for i, n in zip(said, noise, strict=True)]
            answer = question.answer_with(lambda t: self.code.encode(t, scene.duration))
            reply = [*self.core.encode(answer, add_special_tokens=False).ids, self.end]
            whole = [*said, self.assistant, *reply][:room]
            ids[start : start + len(whole)] = whole
            begin = len(said)  # the assistant mark predicts the first word of the reply
            labels[start + begin : start + len(whole) - 1] = whole[begin + 1 :]
            times = [begin + i for i, t in enumerate(reply) if t in self.time_ids]
            for place, at in enumerate(times):
                if question.kind != "caption" and used < POINTERS and place // 2 < len(question.spans):
                    points[used] = start + at
                    spans[used] = question.spans[place // 2]
                    used += 1
        return {"ids": ids, "labels": labels, "points": points, "point_spans": spans}


def block_mask(prefix: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mask and positions of a prefix of `prefix` tokens followed by the question slots.

    Every question sees the prefix and itself, so that one pass over the video pays for all.

    Returns:
        (1, 1, L, L) bool, True where a row may look, and (slots' text length,) offsets of the
        positions inside their slots.
    """
    lengths = [SHORT_LENGTH] * SHORT_SLOTS + [LONG_LENGTH]
    slot = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    offset = torch.cat([torch.arange(n) for n in lengths]).to(device)
    total = prefix + TEXT_LENGTH
    mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    mask[prefix:, prefix:] &= slot[:, None] == slot[None, :]
    return mask[None, None], offset
