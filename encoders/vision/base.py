"""What a vision encoder that sees time promises, and the registry that finds one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.errors.registry import Registry
from vidllm.tokens import VideoTokens


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """What an encoder sees in a batch of clips: S slots of N = rows × columns tokens.

    A slot stands for one or more frames that follow each other. The slots of a clip come first,
    those that fill up the batch after them, wherever the padding of the frames stood.

    Attributes:
        features: (B, S, N, D), in raster order inside a slot.
        seconds: (B, S), the middle between the first and the last frame of the slot.
        span: (B, S, 2), the seconds that a slot covers: from the midpoint to the frame before it
            to the midpoint to the frame after; at the ends of a clip its first or last frame.
        frames: (B, S) long, how many real frames a slot stands for; 0 where it is padding.
        grid: (rows, columns).
        special: (B, S, K, D) tokens beside the grid (CLS, registers), or None.
        cls: (B, S, C), what the image model's CLS token says of every slot, or None.
    """

    features: Tensor
    seconds: Tensor
    span: Tensor
    frames: Tensor
    grid: tuple[int, int]
    special: Tensor | None = None
    cls: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, S) bool, True at slots that stand for real frames; what a temporal encoder takes."""
        return self.frames > 0

    def with_features(self, features: Tensor) -> ClipFeatures:
        """The same slots with other features (B, S, N, D'), as after a projector."""
        if features.shape[:3] != self.features.shape[:3] or features.dim() != 4:
            raise InputError(
                f"these slots need features {(*self.features.shape[:3], 'D')}, "
                f"not {tuple(features.shape)}"
            )
        return replace(self, features=features)

    def tokens(self, row: int, duration: float, *, start: float = 0.0) -> VideoTokens:
        """The video tokens of one clip: one a slot and cell, and the seconds that it covers.

        Args:
            row: which clip of the batch.
            duration: end of the sampled range in seconds; start: its begin. The first slot
                reaches back to `start`, the last one on to `duration`.
        """
        count = int(self.mask[row].sum())
        rows, columns = self.grid
        features = self.features[row, :count].reshape(count, rows, columns, -1)
        made = VideoTokens.from_grid(features, self.seconds[row, :count], duration, start=start)
        span = self.span[row, :count].detach().to("cpu", torch.float64).clone()
        span[0, 0] = min(float(start), float(span[0, 0]))
        span[-1, 1] = max(float(duration), float(span[-1, 1]))
        cells = self.grid[0] * self.grid[1]
        return replace(made, span=span.repeat_interleave(cells, dim=0))


@dataclass(frozen=True, eq=False)
class Slots:
    """Real frames in groups: `index` (B, S·size) of the frames, and of `ClipFeatures` the rest.

    The real frames of a clip come first, then its last one again where a group is not full.
    """

    index: Tensor
    seconds: Tensor
    span: Tensor
    frames: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(B, T, …) → (B, S·size, …)."""
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return x[rows, self.index]


def group(seconds: Tensor, mask: Tensor | None, size: int) -> Slots:
    """Put the real frames of every clip into groups of `size`; padding never comes into one.

    Args:
        seconds: (B, T) float. mask: (B, T) bool, True at real frames, or None when all are.

    Raises:
        InputError: a clip without a real frame.
    """
    real = torch.ones_like(seconds, dtype=torch.bool) if mask is None else mask
    count = real.sum(1, keepdim=True)
    if real.numel() == 0 or bool((count == 0).any()):
        raise InputError("a clip of the batch has no real frame: leave it out")
    order = (~real).to(torch.int8).argsort(dim=1, stable=True)
    times = seconds.gather(1, order)
    number = -(-int(count.max()) // size)

    def at(place: Tensor) -> Tensor:
        return torch.minimum(place.clamp(min=0)[None], count - 1)

    slot = torch.arange(number, device=seconds.device) * size
    edge = torch.minimum(torch.arange(number + 1, device=seconds.device)[None] * size, count)
    before, after = (
        times.gather(1, (edge - 1).clamp(min=0)),
        times.gather(1, edge.minimum(count - 1)),
    )
    edges = (before + after) / 2
    return Slots(
        index=order.gather(1, at(torch.arange(number * size, device=seconds.device))),
        seconds=(times.gather(1, at(slot)) + times.gather(1, at(slot + size - 1))) / 2,
        span=torch.stack([edges[:, :-1], edges[:, 1:]], dim=2),
        frames=edge.diff(dim=1),
    )


class VisionEncoder(nn.Module, ABC):
    """Frames of whole clips to features that know their time.

    The features of a clip never depend on what stands at padded frames, nor on the other clips
    of a batch (in training, batch normalisation shares its statistics among the real ones).
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    #: The recognition head that belongs to it, see `heads`.
    head: ClassVar[str] = "mean"
    #: Signals beside the features; none so far.
    provides: tuple[str, ...] = ()

    #: Width of a token, pixels of a side of a frame, tokens of a side of the grid, and how many
    #: frames (at most) a slot stands for.
    hidden_size: int
    image_size: int
    side: int
    stride: int = 1
    #: Width of `ClipFeatures.cls`; 0 where there is none.
    cls_size: int = 0

    @abstractmethod
    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> ClipFeatures:
        """Encode a batch of clips.

        Args:
            frames: (B, T, 3, H, W) in 0..1.
            seconds: (B, T) float, the time of every frame, not falling.
            mask: (B, T) bool, True at real frames; None when no frame is padding.

        Raises:
            InputError: shapes that do not fit, or a clip without a real frame.
        """

    def check(self, frames: Tensor, seconds: Tensor, mask: Tensor | None) -> None:
        """Raise InputError when the shapes do not fit together."""
        if frames.dim() != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise InputError(
                f"{self.name} takes floating point frames (B, T, 3, H, W), not {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        batch = tuple(frames.shape[:2])
        if tuple(seconds.shape) != batch:
            raise InputError(
                f"seconds must be {batch} for these frames, not {tuple(seconds.shape)}"
            )
        if mask is not None and (tuple(mask.shape) != batch or mask.dtype != torch.bool):
            raise InputError(
                f"mask must be bool {batch} for these frames, not {mask.dtype} {tuple(mask.shape)}"
            )
        self.check_size(*map(int, frames.shape[3:]))

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for frames of a size that the encoder cannot take."""
        if (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"{self.name} takes frames of {self.image_size}×{self.image_size} pixels, "
                f"not {height}×{width}: resize them first"
            )


_REGISTRY: Registry[VisionEncoder] = Registry(
    "vision encoder", base=VisionEncoder, group="vidllm.encoders"
)
register_vision, vision_names, find_vision = _REGISTRY.register, _REGISTRY.names, _REGISTRY.find
vision_packages = _REGISTRY.packages


def get_vision(name: str, **options: Any) -> VisionEncoder:
    """Build the vision encoder called `name`.

    Raises:
        InputError: no encoder or no option of that name; the message names close matches.
    """
    return _REGISTRY.build(name, options=options)
