"""Reading video: files to `VideoClip`s, sampled frames with the container's own seconds."""

from __future__ import annotations

from .clip import Limits, VideoClip, load_video, shown_at
from .reader import Reader, T, Take
from .readers import open_reader

__all__ = ["Limits", "Reader", "T", "Take", "VideoClip", "load_video", "open_reader", "shown_at"]
