"""How a page is served: the model, what a visitor may upload, and who waits for whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.errors.bounds import check
from vidllm.models.model_options import PANEL, ModelOptions
from vidllm.video import Limits

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM


def _model(explained: str) -> Any:
    return typer.Option(help=explained, rich_help_panel=PANEL)


def _limit(explained: str) -> Any:
    return typer.Option(help=explained, rich_help_panel="What visitors may do")


@dataclass(frozen=True)
class Settings(ModelOptions):
    """Settings of a page; those with words are options of ``vidllm demo``.

    Attributes:
        seed: as `VideoLLM.from_pretrained`, as are those of the model. MB are 10⁶ bytes; of the
            frames that are held the longest unused are let go and read again when needed.
        hosts: names under which the page is reached beside its address and this machine's names.
        folder: for indices of long videos; None for the system's temporary folder.

    Raises:
        InputError: a limit that is not above 0.
    """

    recipe: Annotated[
        str | None, _model("A named system that it begins with: vidllm list recipes.")
    ] = None
    compressor: Annotated[str | None, _model("Token reducers that the page begins with.")] = None
    keep: Annotated[float | None, _model("Share of the video tokens that it begins with.")] = None
    frames: Annotated[int | None, _model("Frames that it begins with.")] = None
    max_upload_mb: Annotated[float, _limit("Largest file, in MB.")] = 512.0
    max_seconds: Annotated[float, _limit("Longest video.")] = 4 * 3600.0
    max_pixels: Annotated[int, _limit("Pixels of a frame at most.")] = 4096 * 2304
    max_frames: Annotated[int, _limit("Frames sampled at most.")] = 256
    max_memory_mb: Annotated[float, _limit("Frames of all visitors held at once, in MB.")] = 2048.0
    waiting: Annotated[int, _limit("Runs that may wait for the model.")] = 16
    max_question: Annotated[int, _limit("Characters of a question at most.")] = 2000
    max_uploads_mb: Annotated[float, _limit("Files of all visitors together, in MB.")] = 4096.0
    max_idle_minutes: Annotated[
        float, _limit("How long what a visitor left stays who has no page open.")
    ] = 60.0
    seed: int = 0
    hosts: tuple[str, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        limits = [f.name for f in fields(self) if f.name.startswith("max_")]
        for name in (*limits, "waiting"):
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
            recipe=self.recipe,
            compressor=self.compressor,
            keep=self.keep,
            **self.loading(),
            seed=self.seed,
        )
