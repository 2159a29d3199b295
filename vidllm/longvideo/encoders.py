"""What an index needs of a model: how frames are kept until they are encoded, and their tokens.

Two kinds of models make indexes: the project's own, whose tower sees single frames of a fixed size,
and models of the hub, whose towers see groups of frames (`models.families.frame_features`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors import build as build_method
from vidllm.encoders.vision import to_pixels
from vidllm.models.engine import Engine
from vidllm.models.families.engine import HubEngine
from vidllm.models.families.frame_features import FrameFeatures, FrameGroups, clip_frames
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.model import NativeVideoLLM

from .reading import BLOCK, Frames, Preparing
from .windows import levels_for

_AT_ONCE = 16  # frames in the vision tower at once: more are hardly faster, and take more memory
_HELD = 64 * 1024**2  # bytes of pictures that wait to be encoded, where a clip has fewer


class FrameEncoder(ABC):
    """From pictures to the tokens that an index holds.

    Attributes:
        step: frames of a group, which share their tokens. grid: rows and columns of these.
        carried: the temporal encoders' state goes through the whole video.
        clip: facts of a hub model's clips, None for the project's own models.
    """

    engine: NativeEngine | HubEngine
    step: int = 1
    grid: tuple[int, int]
    carried: bool = False
    clip: dict[str, Any] | None = None

    @property
    def cells(self) -> int:
        """Tokens of a group."""
        return self.grid[0] * self.grid[1]

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a token."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the model."""

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor:
        """(R, N, D) of the groups of frames as `Frames` prepared them."""


class NativeEncoder(FrameEncoder):
    """Of the project's own models.

    Args:
        tower: what merges tokens inside the vision tower; all places keep a token.
    """

    def __init__(self, engine: NativeEngine, tower: Compressor | None = None) -> None:
        self.engine, self.model, self.tower = engine, engine.model, tower
        self.grid = (engine.model.grid_side, engine.model.grid_side)
        self.carried = carries(engine.model)

    @property
    def width(self) -> int:
        return int(self.model.language_model.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.video_norm.weight.dtype

    def tokens(self, pixels: Tensor) -> Tensor:
        model, made = self.model, []
        for part in pixels.to(model.device).split(_AT_ONCE):
            inside = None if self.tower is None else model.tower_part(self.tower, len(part))[0]
            whole = model.project(part) if inside is None else model.project_merged(part, inside)
            made.append(whole)
        return torch.cat(made)


class HubEncoder(FrameEncoder):
    """Of a model of the hub; frames are kept as they are, since its family scales them."""

    def __init__(self, engine: HubEngine, features: FrameFeatures) -> None:
        self.engine, self.features, shape = engine, features, features.shape
        self.step, self.grid = shape.step, (shape.rows, shape.columns)
        if shape.tokens != shape.rows * shape.columns:  # as where a frame has a CLS token beside
            self.grid = (1, shape.tokens)
        self.clip = {name: getattr(shape, name) for name in CLIP}

    @property
    def width(self) -> int:
        return self.features.width

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.engine.model.dtype
        return found

    def tokens(self, pixels: Tensor) -> Tensor:
        return self.features.encode(pixels)


#: What the facts of an index say of a hub model's clips, see `FrameGroups`.
CLIP = ("height", "width", "frames", "step", "rows", "columns", "tokens", "extra")


def preparing(engine: Engine) -> Preparing:
    """How a picture (H, W, 3) is kept until it is encoded."""
    if isinstance(engine, NativeEngine):
        size = engine.model.vision.image_size
        return lambda picture: to_pixels(torch.from_numpy(picture)[None], size)
    return lambda picture: torch.from_numpy(picture.copy())[None]


def encoder_of(engine: NativeEngine | HubEngine, frames: Frames, tower: str | None) -> FrameEncoder:
    """What encodes the frames of a video that is open; says how many frames make a block.

    Raises:
        InputError: a model of the hub whose frames cannot be stored one by one.
        WorkError: the file is gone, or cannot be read any more.
    """
    if isinstance(engine, NativeEngine):
        return NativeEncoder(engine, None if tower is None else build_method(tower))
    height, width = frames.shown_size()
    count, _ = clip_frames(engine, height, width, frames.count, share_of(engine.compressor))
    features = FrameFeatures.probed(engine, height, width, count, frames.count)
    count = features.shape.frames
    # As many as clips have go through the tower at once, so a block is some clips.
    frames.block = count * max(1, min(BLOCK // count, _HELD // (count * height * width * 3)))
    return HubEncoder(engine, features)


def frame_tokens(engine: HubEngine, frames: Frames) -> float:
    """Tokens of a frame before compression, as a model of the hub sees this video."""
    share = share_of(engine.compressor)
    return clip_frames(engine, *frames.shown_size(), frames.count, share)[1]


def damage_of(
    engine: NativeEngine | HubEngine, facts: Mapping[str, Any], until: float, width: int
) -> str:
    """What of an index is not what the model makes that it names, "" where all is.

    Args:
        until: seconds that are indexed. width: numbers of its tokens.
    """
    if isinstance(engine, HubEngine):
        if "clip" not in facts:
            return "field clip"
        features = FrameFeatures(engine, FrameGroups(**facts["clip"]))
        return features.damage() or ("" if features.width == width else "tensor tokens")
    side, frames = engine.model.grid_side, engine.usual_frames
    levels = [level.frames for level in levels_for(facts["fps"], frames, until)]
    found = {
        "field grid": facts["grid"] == [side, side],
        "field carried": facts["carried"] is carries(engine.model),
        "field levels": [level["frames"] for level in facts["levels"]] == levels,
        "tensor tokens": NativeEncoder(engine).width == width,
    }
    return next((name for name, right in found.items() if not right), "")


def share_of(method: Compressor) -> float:
    """The share of a clip's tokens that the decoder's first layers read."""
    return 1.0 if method.inside_decoder() or method.name == "none" else method.keep


def carries(model: NativeVideoLLM) -> bool:
    """Whether all temporal encoders read forwards alone, so that their state is carried on."""
    temporal: Any = model.temporal
    return bool(len(temporal)) and all(encoder.streams for encoder in temporal)


def frames_in(seconds: np.ndarray, step: int) -> int:
    """Frames of whole groups at (T,) seconds, without those that stand still to fill one."""
    groups = seconds.reshape(-1, step)
    return len(groups) + int((np.diff(groups, axis=1) > 0).sum())


def whole_groups(pixels: Tensor, seconds: np.ndarray, step: int) -> tuple[Tensor, np.ndarray]:
    """Frames and their seconds in whole groups: the last one stands still."""
    short = -len(pixels) % step if len(pixels) else 0
    if not short:
        return pixels, seconds
    return torch.cat([pixels, pixels[-1:].expand(short, *pixels.shape[1:])]), np.append(
        seconds, np.repeat(seconds[-1:], short)
    )
