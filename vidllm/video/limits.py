"""Limits on what a video may cost to read."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vidllm.errors.bounds import check


@dataclass(frozen=True)
class Limits:
    """What reading a video may cost at most; going over is an ``InputError`` naming the limit.

    The defaults refuse what would exhaust an ordinary machine and nothing that people film.

    Attributes:
        max_pixels: pixels of one frame (height x width). Default 8192 x 8192, above 8K video.
        max_seconds: length of the file in seconds. Default 24 hours.
        max_frames: sampled frames of one clip. Default 4096.
        max_bytes: memory of one clip's frames in bytes (T x H x W x 3). Default 4 GiB, for
            example 690 frames of full HD.
    """

    max_pixels: int = 8192 * 8192
    max_seconds: float = 24 * 3600.0
    max_frames: int = 4096
    max_bytes: int = 4 * 1024**3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check(field.name, value, f"limit {field.name}")
