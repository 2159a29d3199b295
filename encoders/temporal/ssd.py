"""Bidirectional selective state space over space-time, in plain torch (STORM with Mamba-2).

`SSDEncoder` stacks mixers over the chunked scan `ssd_chunked`.

Sources: STORM (arXiv 2503.04130, equation of the temporal module: X + Mixer(LayerNorm(X)),
raster order, both directions) and Mamba-2 / SSD (arXiv 2405.21060, section 6, the chunked
algorithm). STORM does not say how many layers, how large a state, nor how the directions are
joined: the sizes here are ours, and the joining (shared in and out projections, outputs summed
before the out projection) follows BIMBA, its closest public relative.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, Scan, StackEncoder, StackOptions, State, Time, block_by_block, causal_conv
from .chunked import ssd_chunked
from .registry import register_temporal


class SSDMixer(Mixer):
    """Mamba-2 mixer on (B, L, D), in one direction or both.

    The directions share the in and out projections; convolution, step bias, decay and skip are
    their own, and run one direction after the other. With one direction, transformers'
    `Mamba2Mixer` gives the same outputs on the same weights.
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
        groups: int = 1,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        inner = expand * dim
        if inner % head_dim:
            raise InputError(f"head_dim {head_dim} must divide expand * dim = {inner}")
        if min(state, conv, chunk, groups) < 1:
            raise InputError("state, conv, chunk and groups must be at least 1")
        if (inner // head_dim) % groups:
            raise InputError(f"groups {groups} must divide the {inner // head_dim} heads")
        self.inner, self.state, self.head_dim, self.chunk = inner, state, head_dim, chunk
        self.heads, self.ways, self.zero_init = inner // head_dim, 1 + bidirectional, zero_init
        self.groups, self.eps = groups, eps
        self.mixed = inner + 2 * groups * state
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

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`. The state is the convolution's last inputs and the scan's (B, H, P, S).

        At padded tokens the step is 0 and the input of the convolution is 0, so the state
        passes through and a direction that starts in padding starts as if at the edge.
        """

        def project(span: slice) -> tuple[Tensor, Tensor, Tensor]:
            told = (None if v is None else v[:, span] for v in (valid, scale))
            return self._projected(x[:, span], *told)

        return block_by_block(
            x,
            self.ways,
            project,
            lambda way, made, held: self._way(way, made[1], made[2], held),
            lambda y, made: self._joined(y, made[0]),
            state,
        )

    def _projected(
        self, x: Tensor, valid: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (B, L, E), input of the convolution (B, L, C) and steps (B, L, ways, H)."""
        parts = [self.inner, self.mixed, self.ways * self.heads]
        gate, mixed, step = self.in_proj(x).split(parts, dim=-1)
        if valid is not None:
            mixed = mixed.masked_fill(~valid[..., None], 0)
        exact = torch.promote_types(step.dtype, torch.float32)
        dt = F.softplus(step.to(exact) + self.dt_bias.to(exact))
        dt = dt.unflatten(-1, (self.ways, self.heads))
        if scale is not None:
            dt = dt * scale[..., None].to(exact)
        if valid is not None:
            dt = dt.masked_fill(~valid[..., None, None], 0)
        return gate, mixed, dt

    def _way(self, way: int, mixed: Tensor, dt: Tensor, state: State) -> tuple[Tensor, State]:
        """One direction's convolution and scan, (B, L, E), and its state after the last token."""
        dt = dt[:, :, way]
        if way:
            mixed, dt = mixed.flip(1), dt.flip(1)
        wide = slice(way * self.mixed, (way + 1) * self.mixed)
        own = slice(way * self.heads, (way + 1) * self.heads)
        tail, held = (None, None) if state is None else state
        mixed, tail = causal_conv(mixed, self.conv_weight[:, wide], self.conv_bias[wide], tail)
        maps = self.groups * self.state
        u, b, c = F.silu(mixed).split([self.inner, maps, maps], dim=-1)
        y, held = ssd_chunked(
            u.unflatten(-1, (self.heads, self.head_dim)),
            dt,
            -torch.exp(self.A_log[own].to(dt.dtype)),
            b.unflatten(-1, (self.groups, self.state)),
            c.unflatten(-1, (self.groups, self.state)),
            self.chunk,
            D=self.D[own],
            initial_state=held,
        )
        y = y.flatten(2)
        return y.flip(1) if way else y, (tail, held)

    def _joined(self, y: Tensor, gate: Tensor) -> Tensor:
        """The gated norm of the ways' sum, and the out projection."""
        exact = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(exact) * F.silu(gate.to(exact))
        gated = gated.unflatten(-1, (self.groups, -1))
        gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        gated = gated.flatten(-2)
        out: Tensor = self.out_proj((gated * self.norm_weight.to(exact)).to(y.dtype))
        return out


@register_temporal("ssd")
class SSDEncoder(StackEncoder):
    """Bidirectional SSD layers over a clip, each x + Mixer(LayerNorm(x)) (STORM).

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`.
        state: width of the state; head_dim: width of a head, a divisor of expand * dim;
            expand: inner width as a multiple of `dim`; conv: taps of the short convolution.
        chunk: length of the chunks; speed only.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.
        groups: sets of input and output maps, each shared by heads / groups heads and normed for
            itself; eps: of the gated norm. Mamba-2's own are 8 and 1e-5.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "STORM, arXiv 2503.04130; Mamba-2, arXiv 2405.21060"
    summary = "selective state space with scalar decay, chunked matrix form"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        conv: int = 4,
        chunk: int = 64,
        scan: Scan = "raster",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
        groups: int = 1,
        eps: float = 1e-6,
    ) -> None:
        sizes = (state, head_dim, expand, conv, chunk)
        super().__init__(
            dim,
            lambda: SSDMixer(dim, *sizes, bidirectional, zero_init, groups, eps),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
            own_ways=True,
        )
