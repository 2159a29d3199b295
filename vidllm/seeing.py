"""From a sampled clip to its video tokens: the time line, the pixels, and the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vidllm.compressors import Chain, Compressor
from vidllm.encoders.vision import to_pixels

from .models.config import NativeConfig
from .models.native import NativeVideoLLM
from .tokens import VideoTokens
from .video import VideoClip


def window(config: NativeConfig, clip: VideoClip) -> tuple[float, float]:
    """Origin and length of the time line that the model is told, in seconds.

    Relative time tokens are spread over the range that was looked at, so that a minute out of
    an hour is told as finely as a minute; absolute codes stay in the whole video's seconds.
    """
    if config.time_code != "relative":
        return 0.0, clip.duration
    end = clip.duration if clip.end is None else min(clip.end, clip.duration)
    return clip.start, max(end - clip.start, 1e-3)


def slot_seconds(tokens: VideoTokens) -> np.ndarray:
    """The middle of what every slot of uncompressed tokens covers, (S,) seconds."""
    middle = tokens.span.double().mean(1).view(tokens.grid[0], -1)[:, 0]
    return middle.numpy()


def see(
    model: NativeVideoLLM,
    clip: VideoClip,
    methods: Sequence[Compressor | Chain],
    inside: Compressor | Chain | None = None,
) -> tuple[VideoTokens, Compressor | Chain | None]:
    """Video tokens of a clip, with the signals that `methods` read as far as the tower has them.

    Args:
        inside: a method whose first part may merge inside the vision tower.

    Returns:
        The tokens, and what is left of `inside` to do with them: where nothing merged in the
        tower, all of it.
    """
    start, duration = window(model.config, clip)
    frames = torch.from_numpy(clip.frames.copy()).to(model.device)
    merge = None
    if inside is not None:
        merge, inside = model.tower_part(inside, len(clip))
        methods = (inside, *methods)
    wants = tuple({want for method in methods for want in (*method.needs, *method.uses)})
    pixels = to_pixels(frames, model.vision.image_size)
    return model.encode(pixels, clip.seconds - start, duration, wants, merge), inside
