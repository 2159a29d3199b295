"""STORM's temporal module, alone and with its projector.

Source: STORM (arXiv 2503.04130). Disclosed there, and done so here: pixel-shuffle downsampling of
a frame's grid and one linear layer; then L layers X + MambaMixer(LayerNorm(X)) over all tokens of
the clip as one sequence, raster order in a frame and frames in time order, read both ways, without
a feed-forward layer and without a final norm; images go through the same module.

Not disclosed, so that every value here is ours (`OURS` says why): how many layers, the kind and
sizes of the state space, how the directions share weights and are joined, the initialisation.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import TemporalEncoder, Time
from .registry import get_temporal, register_temporal

#: Choices that the paper does not disclose: value and reason. None of them is STORM's number.
OURS: dict[str, tuple[Any, str]] = {
    "layers": (1, "as BIMBA, the closest public relative"),
    "ssm": ("ssd", "Mamba-2 runs fast in plain torch; ssm='mamba' is nearer to the paper's name"),
    "sizes": ({}, "those of the encoder that `ssm` names"),
    "directions": ("shared projections", "as BIMBA: summed before the shared out projection"),
    "zero_init": (True, "step 0 is the projector alone, so that a frozen LLM is not disturbed"),
    "odd grids": ("refused", "a row of zeros at the edge only on request (pad=True)"),
}


@register_temporal("storm")
class StormEncoder(TemporalEncoder):
    """L residual bidirectional state-space layers over space-time, the identity at step 0.

    Args:
        dim: token width D.
        layers: how many (ours; not in the paper).
        ssm: the registered encoder whose mixer stands in the layers (ours).
        sizes: further options of that encoder (ours), e.g. {"state": 16, "expand": 2}.
        bidirectional: the paper's default; False streams, at 0.9 points or less on VideoMME in
            the paper's ablation.
        time, gap: as for every scan; the paper tells the module no time.
        zero_init: start with out projections of zeros (ours).

    Raises:
        InputError: the encoder that `ssm` names does not exist, has no layers that
            scan, or refuses its sizes.
    """

    paper = "STORM, arXiv 2503.04130"
    summary = "bidirectional state space over space-time; sizes are ours, the paper gives none"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        ssm: str = "ssd",
        sizes: dict[str, Any] | None = None,
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if ssm == self.name:
            raise InputError(f"ssm must be another encoder than {ssm!r}: take 'ssd'")
        self.stack = get_temporal(
            ssm,
            dim,
            layers=layers,
            scan="raster",
            bidirectional=bidirectional,
            time=time,
            gap=gap,
            zero_init=zero_init,
            **(sizes or {}),
        )

    @property
    def causal(self) -> bool:
        return self.stack.causal

    @property
    def streams(self) -> bool:
        return self.stack.streams

    def reset_parameters(self) -> None:
        self.stack.reset_parameters()

    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode (B, T, N, D); an image is a clip of one frame."""
        out: Tensor = self.stack(x, seconds, mask)
        return out

    def stream(self, x: Tensor, seconds: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The next frames of a video; see `TemporalEncoder.stream`."""
        return self.stack.stream(x, seconds, state)


def fold_cells(cells: Tensor, k: int, *, pad: bool = False) -> Tensor:
    """Pixel-shuffle downsampling: every k x k cells of a grid become one token k * k times as wide.

    Args:
        cells: (..., H, W, C). pad: fill a grid that k does not divide with zeros below and right.

    Returns:
        (..., H / k, W / k, k * k * C), rounded up; a token holds its cells row by row.

    Raises:
        InputError: k does not divide the grid (and no `pad`), or is below 1.
    """
    if k < 1:
        raise InputError(f"downsample must be at least 1, not {k}")
    height, width = cells.shape[-3:-1]
    below, right = -height % k, -width % k
    if below or right:
        if not pad:
            raise InputError(
                f"downsample {k} does not divide a grid of {height} x {width} cells: "
                "give pad=True to fill it with zeros, or another size of image"
            )
        cells = F.pad(cells, (0, 0, 0, right, 0, below))
    cells = cells.unflatten(-2, (-1, k)).unflatten(-4, (-1, k))  # (..., h, k, w, k, C)
    return cells.transpose(-4, -3).flatten(-3)


class StormProjector(nn.Module):
    """From the vision tower's cells to tokens of the LLM: downsampling, one linear layer, encoder.

    Args:
        in_dim: width of a cell. out_dim: width of the LLM's tokens.
        downsample: cells along a side that become one token (2 in the paper: 32 x 32 cells to
            256 tokens).
        encoder: any registered temporal encoder, so that STORM's can be compared with others.
        pad: fill grids that `downsample` does not divide with zeros, instead of refusing them
            (a 27 x 27 grid then gives 14 x 14 tokens; ours, the paper does not say).
        options: of the encoder.

    Raises:
        InputError: an unknown encoder or option.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        downsample: int = 2,
        encoder: str = "storm",
        pad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if downsample < 1:
            raise InputError(f"downsample must be at least 1, not {downsample}")
        self.in_dim, self.downsample, self.pad = in_dim, downsample, pad
        self.linear = nn.Linear(in_dim * downsample**2, out_dim)
        self.encoder = get_temporal(encoder, out_dim, **options)

    def reset_parameters(self) -> None:
        """Initialise again, after a general initialiser went over the model."""
        self.linear.reset_parameters()
        self.encoder.reset_parameters()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for a frame of `height` x `width` cells."""
        return -(-height // self.downsample), -(-width // self.downsample)

    def project(self, cells: Tensor) -> Tensor:
        """Downsampling and linear layer alone: cells as in `forward` to (B, T, N, out_dim)."""
        if cells.dim() == 4:
            side = math.isqrt(cells.shape[2])
            if side**2 != cells.shape[2]:
                raise InputError(
                    f"{cells.shape[2]} cells are no square grid: give them as (B, T, H, W, C)"
                )
            cells = cells.unflatten(2, (side, side))
        if cells.dim() != 5 or cells.shape[-1] != self.in_dim:
            raise InputError(
                f"cells must be (B, T, H, W, {self.in_dim}) or (B, T, H * H, {self.in_dim}), "
                f"not {tuple(cells.shape)}"
            )
        out: Tensor = self.linear(fold_cells(cells, self.downsample, pad=self.pad).flatten(2, 3))
        return out

    def forward(self, cells: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project and encode a batch of clips.

        Args:
            cells: (B, T, H, W, C), or (B, T, H * H, C) where the grid is square; T = 1 for images.
            seconds, mask: (B, T), see `TemporalEncoder.forward`.

        Returns:
            (B, T, N, out_dim), N = product of `grid(H, W)`, raster order.

        Raises:
            InputError: shapes that do not fit, or a grid that `downsample` does not divide.
        """
        out: Tensor = self.encoder(self.project(cells), seconds, mask)
        return out

    def stream(self, cells: Tensor, seconds: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The next frames of a video; see `TemporalEncoder.stream`."""
        return self.encoder.stream(self.project(cells), seconds, state)
