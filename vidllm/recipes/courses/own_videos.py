"""Batches of one's own videos with their questions and answers, read from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from vidllm.encoders.vision import to_pixels
from vidllm.errors import InputError, VidllmError
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import window
from vidllm.models.question import prompt_ids
from vidllm.stage.training.data import IGNORE
from vidllm.timecode import TimeCode
from vidllm.video import VideoClip, load_video

from .examples import Example

#: Questions of one video that share a reading of it.
TOGETHER = 6
#: Key of a batch that could not be read; its value is the reason in UTF-8 bytes.
FAILED = "failed"


def rows_of(index: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` rows are batch `index`; every round over them has its own order."""
    at = index * batch + np.arange(batch)
    rounds, places = np.divmod(at, count)
    orders = {
        int(r): np.random.default_rng([29, seed, int(r)]).permutation(count)
        for r in set(rounds.tolist())
    }
    return [int(orders[int(r)][p]) for r, p in zip(rounds, places, strict=True)]


class OwnVideos(Dataset[dict[str, Tensor]]):
    """Map-style: item i is a whole batch; every round over the videos has its own order.

    Keys: `pixels` (B, T, 3, S, S) uint8, `seconds` (B, T) and `duration` (B,) on the time line that
    the model is told, and of the questions `ids`, `labels`, `slot`, `offset` (B, L) as of
    `StageBatches`.

    Raises:
        InputError: no examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        code: TimeCode,
        config: NativeConfig,
        *,
        size: int,
        batch: int,
        length: int,
        seed: int,
    ) -> None:
        if not examples:
            raise InputError("the annotations hold no question that a model could be taught")
        rows: dict[tuple[Path, float | None, float | None], list[Example]] = {}
        for example in examples:
            rows.setdefault((example.video, example.start, example.end), []).append(example)
        self.rows = [
            some[first : first + TOGETHER]
            for some in rows.values()
            for first in range(0, len(some), TOGETHER)
        ]
        self.tokenizer, self.code, self.config = tokenizer, code, config
        self.size, self.batch, self.length, self.seed = size, batch, length, seed
        self.end_id = int(tokenizer.eos_token_id)
        self.pad = self.end_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def __len__(self) -> int:
        return self.length

    def head(self) -> list[int]:
        """Ids before a video, the same for all questions."""
        return prompt_ids(self.tokenizer, "when ?")[0]

    def of(self, index: int) -> list[int]:
        """Rows of batch `index`."""
        return rows_of(index, self.batch, len(self.rows), self.seed)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        try:
            rows = [self._row(self.rows[row]) for row in self.of(index)]
        except VidllmError as error:  # told by the main process, in one line
            return {FAILED: torch.tensor(list(str(error).encode()), dtype=torch.uint8)}
        length = -(-max(len(row["ids"]) for row in rows) // 8) * 8
        for row in rows:
            for key, fill in (("ids", self.pad), ("labels", IGNORE), ("slot", -1), ("offset", 0)):
                full = np.full(length, fill, dtype=np.int64)
                full[: len(row[key])] = row[key]
                row[key] = full
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def _row(self, some: list[Example]) -> dict[str, np.ndarray]:
        one = some[0]
        frames = self.config.frames
        clip = load_video(str(one.video), frames=frames, start=one.start, end=one.end)
        origin, duration = window(self.config, clip)
        pixels = to_pixels(torch.from_numpy(clip.frames.copy()), self.size)
        shown = (pixels * 255).round().to(torch.uint8).numpy()
        seconds = np.asarray(clip.seconds, dtype=np.float32) - np.float32(origin)
        if len(seconds) < frames:  # a batch needs one length: the last frame stands still
            missing = frames - len(seconds)
            seconds = np.pad(seconds, (0, missing), mode="edge")
            shown = np.pad(shown, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        return {
            "pixels": shown,
            "seconds": seconds,
            "duration": np.asarray(duration, dtype=np.float32),
            **self._text(some, clip, origin, duration),
        }

    def _text(
        self, some: list[Example], clip: VideoClip, origin: float, duration: float
    ) -> dict[str, np.ndarray]:
        ids: list[int] = []
        labels: list[int] = []
        slot: list[int] = []
        offset: list[int] = []
        for number, example in enumerate(some):
            _, asked = prompt_ids(self.tokenizer, example.question)
            times = (
                self.code.encode(min(max(t - origin, 0.0), duration), duration)
                for span in example.spans
                for t in span
            )
            answer = example.answer.format(*times)
            said = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            reply = [*said, self.end_id]
            whole = [*asked, *reply]
            ids += whole
            labels += [*[IGNORE] * (len(asked) - 1), *reply, IGNORE]
            slot += [number] * len(whole)
            offset += range(len(whole))
        named = {"ids": ids, "labels": labels, "slot": slot, "offset": offset}
        return {key: np.asarray(value, dtype=np.int64) for key, value in named.items()}
