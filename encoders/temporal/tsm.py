"""Temporal shift: some channels of a frame come from its neighbours (TSM).

Source: TSM (arXiv 1811.08383): an eighth of the channels from the frame before, an eighth from
the frame after, the rest stays; the online form takes only from the frame before. The shift has no
weights. The paper puts it before a convolution inside a residual branch; here, where tokens have
no spatial neighbourhood, a linear layer stands for that convolution. It starts at zero, so that
step 0 is the identity like everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, StackEncoder, StackOptions, State, Time
from .registry import register_temporal


def shift_channels(x: Tensor, count: int, *, back: bool = True) -> Tensor:
    """Shift channels along the sequence; zeros come in at its ends.

    Args:
        x: (B, L, D). count: the first `count` channels move one step later (so a frame holds
            those of the frame before), the next `count` one step earlier if `back`.

    Returns:
        (B, L, D).
    """
    sizes = [count, count if back else 0]
    past, future, rest = x.split([*sizes, x.shape[-1] - sum(sizes)], dim=-1)
    moved = [F.pad(past, (0, 0, 1, 0))[:, :-1], F.pad(future, (0, 0, 0, 1))[:, 1:], rest]
    return torch.cat(moved, dim=-1)


class ShiftMixer(Mixer):
    """Linear(shift(x))."""

    def __init__(self, dim: int, fold: int, causal: bool, zero_init: bool) -> None:
        super().__init__()
        if fold < 2 or dim < fold:
            raise InputError(f"fold must be between 2 and the token width {dim}, not {fold}")
        self.count, self.ways, self.zero_init = dim // fold, 2 - causal, zero_init
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.zero_init:
            nn.init.zeros_(self.out_proj.weight)
        else:
            self.out_proj.reset_parameters()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`. The state is the shifted channels of the last frame, (B, 1, D / fold).

        Padded frames are zeros, like what stands before and after the clip.
        """
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        moved = shift_channels(x, self.count, back=self.ways == 2)
        if state is not None:
            first = torch.cat([state.to(x.dtype), moved[:, :1, self.count :]], -1)
            moved = torch.cat([first, moved[:, 1:]], 1)
        change: Tensor = self.out_proj(moved)
        return change, x[:, -1:, : self.count].clone() if self.ways == 1 else None


@register_temporal("tsm")
class ShiftEncoder(StackEncoder):
    """Layers x + Linear(shift(LayerNorm(x))), every spatial slot over time.

    Args:
        dim, layers, time, gap: see `StackEncoder`; there is no step to scale.
        fold: dim // fold channels are shifted in a direction (8, the paper's).
        bidirectional: shift from both neighbours; else only from the frame before (the paper's
            online form, which streams).
        zero_init: start with out projections of zeros, so that step 0 is the identity.

    Raises:
        InputError: a fold that does not fit, an unknown time, or `time="step"`.
    """

    paper = "TSM, arXiv 1811.08383"
    summary = "control: an eighth of the channels from the frame before, an eighth from the next"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        fold: int = 8,
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            dim,
            lambda: ShiftMixer(dim, fold, not bidirectional, zero_init),
            StackOptions(layers, "slot", bidirectional, time, gap, zero_init),
            own_ways=True,
            steps=False,
        )
