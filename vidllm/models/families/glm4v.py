"""GLM-4.1V, 4.5V and 4.6V: M-RoPE, a time behind every frame, one id for pictures and videos.

The forms with a mixture of experts differ in the decoder only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks.vision_tower import Sight
from .family import _BEFORE, Clip, grids_of
from .packed import PackedTower

_TIME = re.compile(r"\s*(?:<[^<>]*>)?\s*(\d+(?:\.\d+)?)")


class Glm4V(PackedTower):
    """Two frames are one of the grid; 2 x 2 patches make a token. The library does not take
    pictures beside a video."""

    mrope = True
    beside = ("video_grid_thw",)

    @property
    def video_token(self) -> int:
        """That of pictures."""
        return int(self.config.image_token_id)

    @property
    def own_token(self) -> bool:
        return False

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them. The tower is
        told of frames, not of videos."""
        found = self.given(inputs)
        if not found:
            return []
        return self.grid_clips(ids, grids_of(found["video_grid_thw"], self.merge))

    def _seconds(
        self, line: Tensor, starts: Tensor, step: float | None
    ) -> tuple[list[float], float]:
        others = torch.nonzero(line != self.video_token).flatten()
        ends = others[torch.searchsorted(others, starts).clamp(max=max(0, len(others) - 1))]
        texts = [self._text(line[end : end + _BEFORE]) for end in ends.tolist()]
        read = [float(found[1]) for text in texts if (found := _TIME.match(text))]
        if len(read) < len(starts) or read != sorted(read):
            return super()._seconds(line, starts, step)
        return read, read[-1] + (read[-1] - read[0]) / max(1, len(read) - 1)

    def _text(self, ids: Tensor) -> str:
        tokenizer = self.tokenizer
        return "" if tokenizer is None else str(tokenizer.decode(ids.tolist()))
