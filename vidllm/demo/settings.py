"""How a page is served: the model, what a visitor may upload, and who waits for whom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.errors import InputError
from vidllm.errors.bounds import check
from vidllm.video import Limits

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM


@dataclass(frozen=True)
class Settings:
    """Settings of a page.

    Attributes:
        model, compressor, keep, device, dtype, attn, seed: as `VideoLLM.from_pretrained`; the
            compressor and share are those that the page begins with.
        frames: that the page begins with; None for the model's own number.
        max_upload_mb: of a file, in MB (10⁶ bytes). max_seconds, max_pixels: of a video.
        max_frames: that can be sampled. max_memory_mb: frames of all visitors' videos that are
            held at once; the longest unused are let go and read again when they are needed.
        waiting: runs that may wait for the model; more are turned away.
        max_question: characters of a question. max_uploads_mb: files of all visitors together.
        max_idle_minutes: for which files and the memory of a visitor without an open page stay.
        hosts: names under which the page is reached beside its address and this machine's names.
        folder: for indices of long videos; None for the system's temporary folder.

    Raises:
        InputError: a limit that is not above 0.
    """

    model: str | None = None
    compressor: str | None = None
    keep: float | None = None
    device: str | None = None
    dtype: str | None = None
    attn: str | None = None
    seed: int = 0
    frames: int | None = None
    max_upload_mb: float = 512.0
    max_seconds: float = 4 * 3600.0
    max_pixels: int = 4096 * 2304
    max_frames: int = 256
    max_memory_mb: float = 2048.0
    waiting: int = 16
    max_question: int = 2000
    max_uploads_mb: float = 4096.0
    max_idle_minutes: float = 60.0
    hosts: tuple[str, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_upload_mb",
            "max_seconds",
            "max_pixels",
            "max_frames",
            "max_memory_mb",
            "waiting",
            "max_question",
            "max_uploads_mb",
            "max_idle_minutes",
        ):
            value = getattr(self, name)
            option = "--" + name.replace("_", "-")
            check(name, value, option)
            if value == math.inf:
                raise InputError(f"{option} must be a finite number")
        if self.frames is not None and not 1 <= self.frames <= self.max_frames:
            raise InputError(
                f"--frames must be from 1 to --max-frames ({self.max_frames}), got {self.frames}"
            )

    @property
    def limits(self) -> Limits:
        """What reading a visitor's video may cost."""
        return Limits(
            max_pixels=self.max_pixels,
            max_seconds=self.max_seconds,
            max_frames=self.max_frames,
            max_bytes=int(self.max_memory_mb * 1e6),
        )

    @property
    def upload_bytes(self) -> int:
        """Bytes that a visitor's file may have."""
        return int(self.max_upload_mb * 1e6)

    @property
    def uploads_bytes(self) -> int:
        """Bytes that the files of all visitors may have together."""
        return int(self.max_uploads_mb * 1e6)

    def load(self) -> VideoLLM:
        """The model of the page."""
        from vidllm.ask.video_llm import VideoLLM

        return VideoLLM.from_pretrained(
            self.model,
            compressors=self.compressor,
            keep=self.keep,
            device=self.device,
            dtype=self.dtype,
            attn=self.attn,
            seed=self.seed,
        )
