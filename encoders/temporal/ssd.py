"""Bidirectional selective state space over space-time, in plain torch (STORM with Mamba-2).

`SSDEncoder` stacks mixers over the chunked scan of `scan.py`.

Sources: STORM (arXiv 2503.04130, equation of the temporal module: X + Mixer(LayerNorm(X)),
raster order, both directions) and Mamba-2 / SSD (arXiv 2405.21060, section 6, the chunked
algorithm). STORM does not say how many layers, how large a state, nor how the directions are
joined: the sizes here are ours, and the joining (shared in and out projections, outputs summed
before the out projection) follows BIMBA, its closest public relative.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import TemporalEncoder, register_temporal
from .scan import ssd_chunked


class SSDMixer(nn.Module):
    """Mamba-2 mixer on (B, L, D), in one direction or both.

    The directions share the in and out projections; convolution, step bias, decay and skip are
    their own. Both run as one call: the reversed copy takes further groups and heads.
    """

    def __init__(
        self,
        dim: int,
        state: int,
        head_dim: int,
        expand: int,
        conv: int,
        chunk: int,
        bidirectional: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        inner = expand * dim
        if inner % head_dim:
            raise InputError(f"head_dim {head_dim} must divide expand * dim = {inner}")
        if min(state, conv, chunk) < 1:
            raise InputError("state, conv and chunk must be at least 1")
        self.inner, self.state, self.head_dim, self.chunk = inner, state, head_dim, chunk
        self.heads, self.ways, self.zero_init = inner // head_dim, 1 + bidirectional, zero_init
        self.mixed = inner + 2 * state
        self.in_proj = nn.Linear(dim, inner + self.mixed + self.ways * self.heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(conv, self.ways * self.mixed))
        self.conv_bias = nn.Parameter(torch.empty(self.ways * self.mixed))
        self.A_log = nn.Parameter(torch.empty(self.ways * self.heads))
        self.D = nn.Parameter(torch.empty(self.ways * self.heads))
        self.dt_bias = nn.Parameter(torch.empty(self.ways * self.heads))
        self.norm_weight = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for own in (self.A_log, self.D, self.dt_bias):
            own._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba-2's initialisation: A ~ U[1, 16], D = 1, steps log-uniform in [1e-3, 1e-1].

        Call it again after a general weight initialiser went over the model.
        """
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.conv_weight.shape[0])
        self.conv_weight.uniform_(-bound, bound)
        self.conv_bias.zero_()
        self.A_log.uniform_(1, 16).log_()
        self.D.fill_(1)
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.empty(self.dt_bias.shape, device=self.dt_bias.device).uniform_(low, high).exp()
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.norm_weight.fill_(1)
        if self.zero_init:
            self.out_proj.weight.zero_()
        else:
            nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Mix (B, L, D); `mask` (B, L) True at real tokens; `scale` (B, L, ways) of the steps.

        At padded tokens the step is 0 and the input of the convolution is 0, so the state
        passes through and a direction that starts in padding starts as if at the edge.
        """
        parts = [self.inner, self.mixed, self.ways * self.heads]
        gate, mixed, step = self.in_proj(x).split(parts, dim=-1)
        if mask is not None:
            mixed = mixed.masked_fill(~mask[..., None], 0)
        exact = torch.promote_types(step.dtype, torch.float32)
        dt = F.softplus(step.to(exact) + self.dt_bias.to(exact))
        dt = dt.unflatten(-1, (self.ways, self.heads))
        if scale is not None:
            dt = dt * scale[..., None].to(exact)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None, None], 0)
        if self.ways == 2:
            mixed = torch.cat([mixed, mixed.flip(1)], dim=-1)
            dt = torch.stack([dt[..., 0, :], dt[..., 1, :].flip(1)], dim=2)

        mixed = F.silu(self._conv(mixed)).unflatten(-1, (self.ways, self.mixed))
        u, b, c = mixed.split([self.inner, self.state, self.state], dim=-1)
        y, _ = ssd_chunked(
            u.reshape(*u.shape[:2], self.ways * self.heads, self.head_dim),
            dt.flatten(2),
            -torch.exp(self.A_log.to(exact)),
            b,
            c,
            self.chunk,
            D=self.D,
        )
        y = y.unflatten(2, (self.ways, self.heads)).flatten(3)
        joined = y[:, :, 0] if self.ways == 1 else y[:, :, 0] + y[:, :, 1].flip(1)

        gated = joined.to(exact) * F.silu(gate.to(exact))
        gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-6)
        out: Tensor = self.out_proj((gated * self.norm_weight.to(exact)).to(joined.dtype))
        return out

    def _conv(self, x: Tensor) -> Tensor:
        # Shift, multiply, add: for four taps faster than a depthwise Conv1d, and no transpose.
        taps = self.conv_weight.shape[0]
        weight = self.conv_weight.to(x.dtype)
        padded = F.pad(x, (0, 0, taps - 1, 0))
        out = self.conv_bias.to(x.dtype) + padded[:, taps - 1 :] * weight[-1]
        for k in range(taps - 1):
            out = torch.addcmul(out, padded[:, k : k + x.shape[1]], weight[k])
        return out


@register_temporal("ssd")
class SSDEncoder(TemporalEncoder):
    """Bidirectional SSD layers over a clip, each x + Mixer(LayerNorm(x)) (STORM).

    Args:
        dim: token width D.
        layers: number of mixers.
        state: width of the state; head_dim: width of a head, a divisor of expand * dim;
            expand: inner width as a multiple of `dim`; conv: taps of the short convolution.
        chunk: length of the chunks; speed only.
        scan: "raster" reads a clip as one sequence of T * N tokens (STORM); "slot" reads each
            spatial slot over time alone (cheaper, mixes nothing in space).
        bidirectional: also read the clip backwards.
        time_in_step: scale the steps of a frame by its true gap to the frame read before it,
            over the mean gap of the clip (held in [0.1, 10]), so that the state decays by
            seconds and not by frames.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan.
    """

    paper = "STORM, arXiv 2503.04130; Mamba-2, arXiv 2405.21060"
    summary = "bidirectional selective state space, chunked matrix form"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        conv: int = 4,
        chunk: int = 64,
        scan: Literal["raster", "slot"] = "raster",
        bidirectional: bool = True,
        time_in_step: bool = False,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if scan not in ("raster", "slot"):
            raise InputError(f"scan must be 'raster' or 'slot', not {scan!r}")
        self.dim, self.scan, self.time_in_step = dim, scan, time_in_step
        self.bidirectional = bidirectional
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.mixers = nn.ModuleList(
            SSDMixer(dim, state, head_dim, expand, conv, chunk, bidirectional, zero_init)
            for _ in range(layers)
        )

    def reset_parameters(self) -> None:
        """Give every layer its own initialisation again (after a general initialiser)."""
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            norm.reset_parameters()  # type: ignore[operator]
            mixer.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode (B, T, N, D) at `seconds` (B, T), real where `mask` (B, T); same shape out."""
        self.check(x, seconds, mask)
        batch, frames, slots, dim = x.shape
        scale = self._scale(seconds, mask) if self.time_in_step else None
        if self.scan == "slot":
            tokens = x.transpose(1, 2).reshape(batch * slots, frames, dim)
            valid = None if mask is None else mask.repeat_interleave(slots, dim=0)
            scale = None if scale is None else scale.repeat_interleave(slots, dim=0)
        else:
            tokens = x.reshape(batch, frames * slots, dim)
            valid = None if mask is None else mask.repeat_interleave(slots, dim=1)
            scale = None if scale is None else scale.repeat_interleave(slots, dim=1)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            change = mixer(norm(tokens), valid, scale)
            if valid is not None:
                change = change.masked_fill(~valid[..., None], 0)
            tokens = tokens + change.to(tokens.dtype)
        if self.scan == "slot":
            return tokens.view(batch, slots, frames, dim).transpose(1, 2)
        return tokens.view(batch, frames, slots, dim)

    def _scale(self, seconds: Tensor, mask: Tensor | None) -> Tensor:
        """Gap to the frame read before, over the clip's mean gap: (B, T, ways) float32.

        The first frame of a direction has no gap and gets 1.
        """
        gap = seconds.double().diff(dim=1)
        real = torch.ones_like(gap, dtype=torch.bool)
        if mask is not None:
            real = mask[:, 1:] & mask[:, :-1]
        gap = gap.masked_fill(~real, 0)
        mean = gap.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        ratio = torch.where(real & (mean > 0), gap / mean.clamp(min=1e-9), 1.0)
        ratio = ratio.clamp(0.1, 10).float()
        ways = [F.pad(ratio, (1, 0), value=1.0)]
        if self.bidirectional:
            ways.append(F.pad(ratio, (0, 1), value=1.0))
        return torch.stack(ways, dim=-1)
