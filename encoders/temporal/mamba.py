"""Mamba-1 over a clip: selective state space with a decay of its own for every channel and state.

Source: Mamba (arXiv 2312.00752), its block as the authors publish it (`mamba_ssm.Mamba`) and as
transformers has it (`MambaMixer`); with one direction the same weights give the same outputs.

Both directions as in BIMBA (CVPR 2025), the closest public relative of STORM: in and out
projection are shared; convolution, step, B, C, A and D are each direction's own; their outputs are
summed before the out projection. `directions="separate"` takes two whole mixers instead.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, Scan, StackEncoder, StackOptions, State, Time, block_by_block, causal_conv
from .registry import register_temporal
from .selective import selective_scan

Directions = Literal["shared", "separate"]
_STEPS = (1e-3, 1e-1, 1e-4)  # the first steps: from, to, and never below


class Mamba1Mixer(Mixer):
    """Mamba-1 mixer on (B, L, D), in one direction or both (BIMBA's way).

    x, z = in_proj(u); x = SiLU(conv(x)); dt, B, C = x_proj(x); dt = softplus(dt_proj(dt));
    out_proj(scan(x, dt, A, B, C, D) * SiLU(z)).

    Args:
        dim: width D; state: N, numbers of state a channel; expand: inner width E over D;
            conv: taps of the causal convolution; dt_rank: width of the step's low-rank
            projection, None for ceil(D / 16).
        bidirectional: also read backwards. zero_init: start with an out projection of zeros.
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        dt_rank: int | None = None,
        bidirectional: bool = False,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(dim, state, expand, conv, rank) < 1:
            raise InputError("dim, state, expand, conv and dt_rank must be at least 1")
        self.inner, self.state, self.rank, self.zero_init = expand * dim, state, rank, zero_init
        self.ways = ways = 1 + bidirectional
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(conv, ways * self.inner))
        self.conv_bias = nn.Parameter(torch.empty(ways * self.inner))
        self.x_proj = nn.Parameter(torch.empty(ways, rank + 2 * state, self.inner))
        self.dt_proj = nn.Parameter(torch.empty(ways, self.inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(ways * self.inner))
        self.A_log = nn.Parameter(torch.empty(ways * self.inner, state))
        self.D = nn.Parameter(torch.empty(ways * self.inner))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        for own in (self.A_log, self.D, self.dt_bias):
            own._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation: A = -(1..N) in every channel, D = 1, steps in [1e-3, 1e-1].

        Call it again after a general weight initialiser went over the model.
        """
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        for weight, fan in (
            (self.conv_weight, self.conv_weight.shape[0]),
            (self.conv_bias, self.conv_weight.shape[0]),
            (self.x_proj, self.inner),
            (self.dt_proj, self.rank),
        ):
            weight.uniform_(-(fan**-0.5), fan**-0.5)
        low, high, floor = _STEPS
        step = torch.empty(self.dt_bias.shape, device=self.dt_bias.device)
        step = step.uniform_(math.log(low), math.log(high)).exp().clamp(min=floor)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_log.copy_(torch.arange(1, self.state + 1, device=self.A_log.device).log())
        self.D.fill_(1)
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
        """See `Mixer`. The state is the convolution's last inputs and the scan's (B, E, N).

        At padded tokens the input of the convolution and the step are 0, so the state passes
        through and a direction that starts in padding starts as if at the edge.
        """

        def project(span: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
            real, told = (None if v is None else v[:, span] for v in (valid, scale))
            mine = x[:, span] if real is None else x[:, span].masked_fill(~real[..., None], 0)
            mixed, gate = self.in_proj(mine).chunk(2, dim=-1)
            return mixed, gate, real, told

        return block_by_block(
            x,
            self.ways,
            project,
            lambda way, made, held: self._way(way, made[0], made[2], made[3], held),
            lambda y, made: self.out_proj(y * F.silu(made[1])),
            state,
            whole=x.is_cuda,  # where a kernel may serve, and calls cost
        )

    def _way(
        self, way: int, x: Tensor, valid: Tensor | None, scale: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        """One direction's convolution and scan (B, L, E), and its state after the last token."""
        if way:
            x = x.flip(1)
            valid, scale = (None if v is None else v.flip(1) for v in (valid, scale))
        own = slice(way * self.inner, (way + 1) * self.inner)
        tail, held = (None, None) if state is None else state
        x, tail = causal_conv(x, self.conv_weight[:, own], self.conv_bias[own], tail)
        x = F.silu(x)
        parts = [self.rank, self.state, self.state]
        low, b, c = F.linear(x, self.x_proj[way]).split(parts, dim=-1)
        exact = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(F.linear(low, self.dt_proj[way]).to(exact) + self.dt_bias[own].to(exact))
        if scale is not None:
            dt = dt * scale[..., way : way + 1].to(exact)
        if valid is not None:
            dt = dt.masked_fill(~valid[..., None], 0)
        y, held = selective_scan(
            x,
            dt,
            -torch.exp(self.A_log[own].to(exact)),
            b[:, :, None],
            c[:, :, None],
            D=self.D[own],
            initial_state=held,
        )
        return y.flip(1) if way else y, (tail, held)


@register_temporal("mamba")
class MambaEncoder(StackEncoder):
    """Mamba-1 layers over a clip, each x + Mixer(LayerNorm(x)), bidirectional as in BIMBA.

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`.
        state, expand, conv, dt_rank: see `Mamba1Mixer`; the defaults are the authors'.
        directions: "shared" shares in and out projection (BIMBA: `out_proj(y_f + flip(y_b))`, own
            conv, x_proj, dt_proj, A, D); "separate" sums two mixers that share nothing.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan, time or directions.
    """

    paper = "Mamba, arXiv 2312.00752; both directions as in BIMBA"
    summary = "selective state space with a decay per channel and state (Mamba-1)"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        dt_rank: int | None = None,
        scan: Scan = "raster",
        bidirectional: bool = True,
        directions: Directions = "shared",
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        if directions not in ("shared", "separate"):
            raise InputError(f"directions must be 'shared' or 'separate', not {directions!r}")
        joined = directions == "shared"
        options: dict[str, Any] = {
            "state": state,
            "expand": expand,
            "conv": conv,
            "dt_rank": dt_rank,
            "bidirectional": bidirectional and joined,
            "zero_init": zero_init,
        }
        super().__init__(
            dim,
            lambda: Mamba1Mixer(dim, **options),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
            own_ways=joined,
        )
