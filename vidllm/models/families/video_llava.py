"""Video-LLaVA: as LLaVA-NeXT-Video, with every patch a token."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vidllm.tokens import VideoTokens

from .family import Clip
from .llava_video import LlavaNextVideo


class VideoLlava(LlavaNextVideo):
    """Every patch is a token, and the CLS token of every frame goes to the decoder as well; it is
    never touched."""

    tower_name = "video_tower"

    @property
    def cells(self) -> int:
        return self.side

    @property
    def size(self) -> int:
        return self.cells**2 + 1

    def shape(self, features: Tensor) -> tuple[int, int]:
        return 1, len(features)  # (T, N, D), of one video

    def frames(self, ids: Tensor, videos: int, frames: int) -> list[Clip]:
        clips = []
        for clip in self.grid_clips(ids, [(frames, 1, self.size)] * videos):
            patch = clip.tokens.cell[:, 1] > 0
            seconds = [float(t) for t in range(frames)]
            tokens = VideoTokens.blank((frames, self.cells, self.cells), seconds, float(frames))
            spans = clip.tokens.span[patch]
            slots = clip.slots - clip.slots // self.size - 1  # CLS tokens have no signals
            tokens = replace(tokens, span=spans)
            clips.append(replace(clip, where=clip.where[patch], tokens=tokens, slots=slots[patch]))
        return clips
