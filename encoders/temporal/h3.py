"""H3: a shift state space and a diagonal one with multiplicative gates between them.

Source: H3 (Fu et al., arXiv 2212.14052, section 3: q * SSM_diag(SSM_shift(k) * v), heads as outer
products; S4D-Lin diagonal, arXiv 2206.11893). The paper's layer also has an MLP, which is no
mixing along the sequence and is left out. That a head is one wide unless told otherwise, and the
scale of the shift's taps at the start, are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidllm.errors import InputError

from .base import Mixer, Scan, StackEncoder, StackOptions, State, Time
from .diagonal import DiagonalSystem, convolve_steps
from .longconv import check_block, check_steps, convolve, fir, silenced
from .registry import register_temporal


class H3Mixer(Mixer):
    """One direction of H3 on (B, L, D)."""

    def __init__(
        self,
        dim: int,
        state: int,
        head_dim: int,
        dt_min: float,
        dt_max: float,
        block: int | None,
        zero_init: bool,
    ) -> None:
        super().__init__()
        if state < 2 or state % 2:
            raise InputError(f"state must be even (conjugate pairs) and at least 2, not {state}")
        if head_dim < 1 or dim % head_dim:
            raise InputError(f"head_dim {head_dim} must divide dim = {dim}")
        check_steps(dt_min, dt_max)
        check_block(block)
        self.head_dim, self.block, self.zero_init = head_dim, block, zero_init
        self.dt_min, self.dt_max = dt_min, dt_max
        heads, pairs = dim // head_dim, state // 2
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.shift_C = nn.Parameter(torch.empty(dim, state))
        self.shift_D = nn.Parameter(torch.empty(dim))
        # complex numbers as (real, imaginary): a complex parameter does not survive .to(bfloat16)
        self.C = nn.Parameter(torch.empty(heads, pairs, 2))
        self.D = nn.Parameter(torch.empty(heads))
        self.log_decay = nn.Parameter(torch.empty(heads, pairs))
        self.frequency = nn.Parameter(torch.empty(heads, pairs))
        self.log_step = nn.Parameter(torch.empty(heads))
        self.out_proj = nn.Linear(dim, dim)
        for own in (self.shift_D, self.D, self.log_decay, self.frequency, self.log_step):
            own._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """S4D-Lin (A_n = -1/2 + i pi n), steps log-uniform, C and D normal, no output.

        The taps of the shift have 1/state as variance: ours, so that it keeps the scale.
        """
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        nn.init.normal_(self.shift_C, std=1 / math.sqrt(self.shift_C.shape[1]))
        nn.init.normal_(self.shift_D)
        nn.init.normal_(self.C, std=math.sqrt(0.5))
        nn.init.normal_(self.D)
        self.log_decay.fill_(math.log(0.5))
        pairs = self.frequency.shape[1]
        self.frequency.copy_((math.pi * torch.arange(pairs)).expand_as(self.frequency))
        self.log_step.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        if self.zero_init:
            self.out_proj.weight.zero_()
            self.out_proj.bias.zero_()

    def system(self, dtype: torch.dtype) -> DiagonalSystem:
        """The diagonal state spaces of all heads under zero-order hold, real parts in `dtype`."""
        value = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
        C = torch.view_as_complex(self.C.to(dtype).contiguous())
        rate = self.log_step.to(dtype).exp()[:, None] * value
        return DiagonalSystem(rate, 1 / value, C[:, None])

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`; `scale` is of the diagonal system's step, the shift counts tokens.

        The state is the shift's last keys (B, state - 1, D) and the diagonal system's states
        (B * head_dim^2, heads, state), both float32 at least.
        """
        exact = torch.promote_types(x.dtype, torch.float32)
        q, k, v = silenced(self.in_proj(x), valid, state).to(exact).chunk(3, dim=-1)
        tail, held = (None, None) if state is None else state
        with torch.autocast(x.device.type, enabled=False):
            shifted, tail = fir(k, self.shift_C, tail)
            shifted = shifted + self.shift_D.to(exact) * k
            width = self.head_dim
            q, shifted, v = (t.unflatten(-1, (-1, width)) for t in (q, shifted, v))
            batch, length, heads, _ = v.shape
            kv = shifted[..., :, None] * v[..., None, :]  # (B, L, heads, width, width)
            # every entry of the outer product is a sequence of its own under the head's system
            u = kv.permute(0, 3, 4, 1, 2).reshape(-1, length, heads)
            system = self.system(exact)
            if scale is None:
                y, held = convolve(u, system.block, held, self.block)
            else:
                steps = scale[..., 0].repeat_interleave(width * width, 0)
                y, held = convolve_steps(u, steps, system, held)
            y = y[..., 0] + self.D.to(exact) * u
            y = y.view(batch, width, width, length, heads)
            y = torch.einsum("blhi,bijlh->blhj", q, y).flatten(2)
        out: Tensor = self.out_proj(y.to(x.dtype))
        return out, (tail, held)


@register_temporal("h3")
class H3Encoder(StackEncoder):
    """H3 layers over a clip, each x + Mixer(LayerNorm(x)).

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`. Under `time="step"` the
            convolution becomes a recurrence over blocks, some times slower.
        state: taps of the shift and (real) width of the diagonal state, even.
        head_dim: width of a head, a divisor of `dim`: keys and values meet in head_dim x head_dim
            outer products, so work and state grow with dim * head_dim.
        dt_min, dt_max: range of the steps at the start; a head remembers about 2/step tokens.
        block: see `longconv.convolve`.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "H3, arXiv 2212.14052; S4D, arXiv 2206.11893"
    summary = "shift and diagonal state spaces with multiplicative gates"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 64,
        head_dim: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        block: int | None = None,
        scan: Scan = "raster",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            dim,
            lambda: H3Mixer(dim, state, head_dim, dt_min, dt_max, block, zero_init),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
        )
