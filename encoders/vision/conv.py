"""A small convolutional vision tower that learns from scratch in minutes on a CPU.

Four strided stages with ConvNeXt-like blocks (Liu et al., 2022) end in a grid of cells. It is the
tower of the shipped weights; full-size models use SigLIP, CLIP or DINOv2 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vidllm.errors import InputError


class ConvBlock(nn.Module):
    """x + MLP(norm(depthwise conv(x))), all at one resolution."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, 3 * width, 1)
        self.down = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x))
        return x + self.down(nn.functional.gelu(self.up(hidden)))


class ConvStem(nn.Sequential):
    """Frames (F, 3, S, S) to a grid (F, hidden_size, S / stride, S / stride), in four stages.

    In place of a vision transformer's one large convolution it lets small ones learn from little
    (Xiao et al., 2021, arXiv 2106.14881).

    Args:
        stride: of the whole, 16 or 24 pixels to a cell.
        widths: of the first three stages. blocks: `ConvBlock`s behind the last three.

    Raises:
        InputError: for another stride.
    """

    def __init__(
        self,
        stride: int,
        hidden_size: int,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
    ) -> None:
        if stride not in (16, 24):
            raise InputError(f"a convolutional stem has 16 or 24 pixels to a cell, not {stride}")
        first, (a, b, c) = stride // 8, widths
        super().__init__(
            nn.Conv2d(3, a, 2 * first - 1, stride=first, padding=first - 1),
            nn.BatchNorm2d(a),
            nn.GELU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            *(ConvBlock(b, 5) for _ in range(blocks[0])),
            nn.BatchNorm2d(b),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            *(ConvBlock(c, 5) for _ in range(blocks[1])),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, hidden_size, 3, stride=2, padding=1),
            *(ConvBlock(hidden_size, 3) for _ in range(blocks[2])),
        )

    @property
    def weight(self) -> Tensor:
        """Of the first convolution: transformers asks its patch embedding for the number type."""
        return cast(nn.Conv2d, self[0]).weight


class ConvTower(nn.Module):
    """Frames (F, 3, S, S) in 0..1 to cells (F, (S/16)², hidden_size), row by row.

    `image_size` S must be a multiple of 16. A learned embedding of the cell's place is added.
    """

    #: A convolution attends to nothing: no signals beside the cells.
    provides: tuple[str, ...] = ()

    def __init__(
        self,
        image_size: int = 64,
        hidden_size: int = 192,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.side = image_size // 16
        self.stem = ConvStem(16, hidden_size, widths, blocks)
        self.norm = nn.LayerNorm(hidden_size)
        self.place = nn.Parameter(torch.zeros(self.side**2, hidden_size))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = ((frames - 0.4) * 3.0).contiguous(memory_format=torch.channels_last)
        grid = self.stem(pixels)
        return self.norm(grid.flatten(2).transpose(1, 2)) + self.place
