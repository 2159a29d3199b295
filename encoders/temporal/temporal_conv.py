"""A short convolution over time: the control that sees its neighbours and nothing beyond them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, StackEncoder, StackOptions, State, Time
from .registry import register_temporal


class TemporalConvMixer(Mixer):
    """Depthwise convolution along the sequence, SiLU, linear layer."""

    def __init__(self, dim: int, taps: int, causal: bool, zero_init: bool) -> None:
        super().__init__()
        if taps < 1:
            raise InputError(f"taps must be at least 1, not {taps}")
        if not causal and taps % 2 == 0:
            raise InputError(f"a centred convolution needs an odd number of taps, not {taps}")
        self.ways, self.zero_init = 2 - causal, zero_init
        self.ahead = 0 if causal else taps // 2
        self.weight = nn.Parameter(torch.empty(taps, dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[0])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
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
        """See `Mixer`. The state is the last taps - 1 inputs, (B, taps - 1, D).

        Padded frames are zeros, like what stands before and after the clip.
        """
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        taps, length = self.weight.shape[0], x.shape[1]
        if state is None:
            state = x.new_zeros(x.shape[0], taps - 1 - self.ahead, x.shape[-1])
        padded = F.pad(torch.cat([state.to(x.dtype), x], 1), (0, 0, 0, self.ahead))
        # Shift, multiply, add: for few taps faster than a depthwise Conv1d, and no transpose.
        mixed = self.bias + padded[:, :length] * self.weight[0]
        for k in range(1, taps):
            mixed = torch.addcmul(mixed, padded[:, k : k + length], self.weight[k])
        change: Tensor = self.out_proj(F.silu(mixed))
        return change, padded[:, length:].clone() if self.ways == 1 else None


@register_temporal("temporal-conv")
class TemporalConvEncoder(StackEncoder):
    """Layers x + Linear(SiLU(depthwise conv(LayerNorm(x)))), every spatial slot over time.

    Args:
        dim, layers, time, gap: see `StackEncoder`; there is no step to scale.
        taps: length of the kernel in frames (3, ours); odd where it is centred.
        bidirectional: centre the kernel on the frame; else it ends there, and the encoder
            streams with taps - 1 frames.
        zero_init: start with out projections of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, an unknown time, or `time="step"`.
    """

    summary = "control: depthwise convolution over a few frames"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        taps: int = 3,
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            dim,
            lambda: TemporalConvMixer(dim, taps, not bidirectional, zero_init),
            StackOptions(layers, "slot", bidirectional, time, gap, zero_init),
            own_ways=True,
            steps=False,
        )
