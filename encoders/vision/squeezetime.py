"""SqueezeTime (arXiv 2405.08344): a clip's frames as channels of one picture, and a 2-D CNN.

Sixteen frames become 48 channels; from there on there is no axis of time. Every 3×3 convolution
of a ResNet-50 is a channel-time learning (CTL) block, which weighs channels (moments) and lets
objects at different moments meet. A clip of 16 frames ends as 7×7 tokens of width 2048.

The paper's network is tied to 16 frames. Here a clip of any length goes in chunks of 16: the last
chunk is filled up by repeating its last frame, and counts in the recognition head for as many
frames as it really has. Not told in the paper, and ours: the stage entries start as the mean of
2×2 pixels, position maps start at a standard deviation of 0.02 and are added after the norm and
ReLU. No ImageNet weights are brought along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import ClipFeatures, VisionEncoder, group, register_vision

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CHUNKS = 32  # so many chunks at once outside training


class CTLBlock(nn.Module):
    """The channel-time learning block, in the place of a 3×3 convolution: (M, C, h, w) → same.

    With the importance p = σ(W₂ ReLU(BN(W₁ mean(x)))) of every channel it is the sum of
    - temporal focus: a 1×1 convolution of p ⊙ x, and
    - inter-temporal object interaction: conv3×3(x) ⊙ σ(conv3×3(ReLU BN conv7×7(z))), where
      z = ReLU BN conv3×3(p ⊙ x) has `inner` channels and a learned map of positions is added.

    Args:
        side: of the position map; it is resized where the picture has another size.
    """

    def __init__(self, width: int, side: int, inner: int = 16) -> None:
        super().__init__()
        self.importance = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.Sigmoid(),
        )
        self.focus = nn.Conv2d(width, width, 1, bias=False)
        self.objects = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.squeeze = nn.Sequential(
            nn.Conv2d(width, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.place = nn.Parameter(torch.empty(1, inner, side, side))
        self.interact = nn.Sequential(
            nn.Conv2d(inner, inner, 7, padding=3, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weighed = x * self.importance(x.mean((2, 3), keepdim=True))
        place: Tensor = self.place
        if place.shape[2:] != x.shape[2:]:
            place = F.interpolate(place, x.shape[2:], mode="bilinear", align_corners=False)
        gate = self.interact(self.squeeze(weighed) + place)
        return self.focus(weighed) + self.objects(x) * gate


class Bottleneck(nn.Module):
    """1×1, CTL block, 1×1, around a shortcut (He et al., 2016)."""

    def __init__(self, before: int, width: int, after: int, side: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            CTLBlock(width, side, inner),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if before == after
            else nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


@register_vision("squeezetime")
class SqueezeTimeEncoder(VisionEncoder):
    """Chunks of frames, each folded into channels: one slot a chunk, (H/32)·(W/32) tokens.

    Frames may have any size that is a multiple of 32; `image_size` is that of the position maps.

    Args:
        chunk: frames of a chunk (the weights are tied to it).
        widths: inner widths of the stages; a stage gives `expansion` times as many channels.
        blocks: bottlenecks of the stages.
        inner: channels of the object interaction.

    Raises:
        InputError: options that do not fit together.
    """

    paper = "SqueezeTime, arXiv 2405.08344"
    summary = "time folded into channels, a 2-D CNN; one slot for 16 frames"

    def __init__(
        self,
        image_size: int = 224,
        chunk: int = 16,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (3, 4, 6, 3),
        expansion: int = 4,
        inner: int = 16,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4 or min(*widths, *blocks) < 1:
            raise InputError("squeezetime has four stages: give four widths and four blocks")
        if min(chunk, expansion, inner) < 1:
            raise InputError("squeezetime: chunk, expansion and inner must be at least 1")
        self.image_size, self.chunk, self.stride = image_size, chunk, chunk
        self.check_size(image_size, image_size)
        self.side = image_size // 32
        self.hidden_size = expansion * widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3 * chunk, widths[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        channels, side = widths[0], image_size // 4
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                stages.append(nn.Conv2d(channels, channels, 2, stride=2, groups=channels))
                side //= 2
            for _ in range(count):
                stages.append(Bottleneck(channels, width, expansion * width, side, inner))
                channels = expansion * width
        self.stages = nn.Sequential(*stages)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the initial values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if module.groups > 1:
                    nn.init.constant_(module.weight, 0.25)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, CTLBlock):
                nn.init.normal_(module.place, std=0.02)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError for frames whose sides are no multiples of 32."""
        if height % 32 or width % 32 or not height or not width:
            raise InputError(
                f"squeezetime takes frames whose sides are multiples of 32, not {height}×{width}"
            )

    def fold(self, frames: Tensor) -> Tensor:
        """Chunks (M, chunk, 3, H, W) in 0..1 → (M, 3·chunk, H, W): channel c·chunk + t."""
        stats = (frames.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        mean, std = stats
        return ((frames - mean) / std).transpose(1, 2).flatten(1, 2)

    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> ClipFeatures:
        """Frames (B, T, 3, H, W) in 0..1 → features (B, ⌈T/chunk⌉, (H/32)·(W/32), D)."""
        self.check(frames, seconds, mask)
        slots = group(seconds, mask, self.chunk)
        real = slots.frames > 0
        # Only real chunks are run: batch normalisation must not learn from padding.
        chunks = slots.take(frames).unflatten(1, (-1, self.chunk))[real]
        if self.training and len(chunks) < 2:
            raise InputError(
                f"squeezetime trains with batch normalisation: give it two chunks of {self.chunk} "
                "frames or more at a time"
            )
        parts = [chunks] if self.training else list(chunks.split(_CHUNKS))
        kind = next(self.parameters()).dtype
        maps = torch.cat([self.stages(self.stem(self.fold(part).to(kind))) for part in parts])
        cells = maps.flatten(2).transpose(1, 2)
        features = cells.new_zeros(*real.shape, *cells.shape[1:])
        features[real] = cells
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        return ClipFeatures(features, slots.seconds, slots.span, slots.frames, grid)
