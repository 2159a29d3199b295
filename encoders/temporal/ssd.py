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

from .base import (
    Mixer,
    Scan,
    StackEncoder,
    StackOptions,
    State,
    Time,
    causal_conv,
    register_temporal,
)

# One product carries the state over this many chunks; longer sequences go block by block, so
# that the cost stays linear in the length.
_CHUNKS_A_BLOCK = 64
_TOKENS_A_BLOCK = 2048


def _check_ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    batch, length, heads, _ = x.shape
    if dt.shape != (batch, length, heads) or a.shape != (heads,):
        raise InputError(
            f"for x {tuple(x.shape)} dt must be {(batch, length, heads)} and A ({heads},), "
            f"not {tuple(dt.shape)} and {tuple(a.shape)}"
        )
    if b.shape != c.shape or b.shape[:2] != (batch, length) or heads % b.shape[2]:
        raise InputError(
            f"B and C must both be (batch, length, groups, state) with groups dividing {heads} "
            f"heads, not {tuple(b.shape)} and {tuple(c.shape)}"
        )


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk: int = 64,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scalar-decay state space with batched matrix products over chunks of the sequence.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t  (per head).

    Any length works (the tail is padded with steps of size 0, which leave the state alone).
    Steps, their running sums and exponentials are float32 at least; the products run in the
    dtype of `x`. Memory is O(L * chunk * H).

    Args:
        x: (B, L, H, P) inputs; dt: (B, L, H) step sizes >= 0; A: (H,) negative decay rates.
        B, C: (B, L, G, S) input and output maps, shared by the H / G heads of a group.
        D: (H,) skip weights. initial_state: (B, H, P, S), zeros when None.

    Returns:
        y (B, L, H, P) and the state after the last token (B, H, P, S).

    Raises:
        InputError: the shapes do not fit together, or a chunk below 1.
    """
    _check_ssd(x, dt, A, B, C)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, not {chunk}")
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[1] <= max(_TOKENS_A_BLOCK, chunk):
            return _chunked(x, dt, A, B, C, min(chunk, x.shape[1]), D, initial_state)
        # Long sequences in blocks that stay in the cache, the state carried between them.
        size = max(_TOKENS_A_BLOCK // chunk, 1) * chunk
        y, state = _chunked(
            x[:, :size], dt[:, :size], A, B[:, :size], C[:, :size], chunk, D, initial_state
        )
        parts = [y]
        for start in range(size, x.shape[1], size):
            at = slice(start, start + size)
            y, state = _chunked(
                x[:, at], dt[:, at], A, B[:, at], C[:, at], min(chunk, x.shape[1] - start), D, state
            )
            parts.append(y)
        return torch.cat(parts, dim=1), state


def _chunked(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    size: int,
    skip: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, width = x.shape
    groups, state = b.shape[2:]
    each = heads // groups
    exact = torch.promote_types(x.dtype, torch.float32)
    dt, a = dt.to(exact), a.to(exact)
    u = (x * dt[..., None]).to(x.dtype)
    b, c = b.to(x.dtype), c.to(x.dtype)
    tail = -length % size
    if tail:
        u, b, c = (F.pad(v, (0, 0, 0, 0, 0, tail)) for v in (u, b, c))
        dt = F.pad(dt, (0, 0, 0, tail))
    n = (length + tail) // size

    # s[i] = sum of the decays up to and with step i of its chunk: (B, n, H, Q)
    s = (dt * a).view(batch, n, size, heads).transpose(2, 3).cumsum(-1)
    b = b.view(batch, n, size, groups, state).transpose(2, 3)
    c = c.view(batch, n, size, groups, state).transpose(2, 3)
    u = u.view(batch, n, size, heads, width).transpose(2, 3)

    # 1. inside a chunk: (C_i . B_j) exp(s_i - s_j) u_j for j <= i. The exponents above the
    # diagonal are positive and could overflow, so they leave before the exponential.
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    decay = (s[..., :, None] - s[..., None, :]).masked_fill(later, -math.inf).exp()
    scores = torch.matmul(c, b.transpose(-1, -2))
    weights = scores[:, :, :, None] * decay.view(batch, n, groups, each, size, size).to(x.dtype)
    y = torch.matmul(weights.view(batch, n, heads, size, size), u)

    # 2. what each chunk adds to the state: sum_j exp(s_Q - s_j) u_j B_j^T
    left = torch.exp(s[..., -1:] - s)[..., None].to(x.dtype)
    rows = (u * left).view(batch, n, groups, each, size, width).transpose(-1, -2)
    rows = rows.reshape(batch, n, groups, each * width, size)
    added = torch.matmul(rows, b).view(batch, n, heads, width, state).to(exact)

    # 3. the state before every chunk, and after the last
    before, final = _carry(added, s[..., -1], initial)

    # 4. what the earlier chunks give: exp(s_i) H C_i
    if n > 1 or initial is not None:
        held = before.to(x.dtype).reshape(batch, n, groups, each * width, state)
        old = torch.matmul(c, held.transpose(-1, -2))
        old = old.view(batch, n, groups, size, each, width).transpose(3, 4)
        y = y + old.reshape(batch, n, heads, size, width) * s.exp()[..., None].to(x.dtype)

    y = y.transpose(2, 3).reshape(batch, n * size, heads, width)[:, :length]
    if skip is not None:
        y = y + skip.to(x.dtype)[:, None] * x
    return y, final


def _carry(added: Tensor, total: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before every chunk (B, n, H, P, S) and after the last (B, H, P, S).

    `added` (B, n, H, P, S) is what each chunk adds, `total` (B, n, H) its summed decay.
    """
    batch, n, heads, width, state = added.shape
    held = added.new_zeros(batch, heads, width, state) if initial is None else initial.to(added)
    if n == 1:
        after = total[:, 0, :, None, None].exp() * held + added[:, 0]
        return held[:, None], after
    parts = []
    for start in range(0, n, _CHUNKS_A_BLOCK):
        block = torch.cat([held[:, None], added[:, start : start + _CHUNKS_A_BLOCK]], dim=1)
        m = block.shape[1]
        summed = total[:, start : start + _CHUNKS_A_BLOCK].transpose(1, 2).cumsum(-1)
        summed = F.pad(summed, (1, 0))
        later = torch.ones(m, m, dtype=torch.bool, device=added.device).triu(1)
        decay = (summed[..., :, None] - summed[..., None, :]).masked_fill(later, -math.inf).exp()
        flat = block.transpose(1, 2).reshape(batch, heads, m, width * state)
        states = torch.matmul(decay, flat).view(batch, heads, m, width, state).transpose(1, 2)
        parts.append(states[:, :-1])
        held = states[:, -1].clone()  # a view would keep the block alive in a stream
    return torch.cat(parts, dim=1), held


_BLOCK = 2048  # tokens that a causal mixer has in work at once


class SSDMixer(Mixer):
    """Mamba-2 mixer on (B, L, D), in one direction or both.

    The directions share the in and out projections; convolution, step bias, decay and skip are
    their own. Both run as one call: the reversed copy takes further groups and heads. With one
    direction, transformers' `Mamba2Mixer` gives the same outputs on the same weights.
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
        if self.ways == 2 or x.shape[1] <= _BLOCK:
            return self._mix(x, valid, scale, state)
        # Block by block with the state carried, so that what is in work stays in the cache.
        out = []
        for start in range(0, x.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            here = [None if v is None else v[:, part] for v in (valid, scale)]
            y, state = self._mix(x[:, part], here[0], here[1], state)
            out.append(y)
        return torch.cat(out, dim=1), state

    def _mix(
        self, x: Tensor, valid: Tensor | None, scale: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
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
        if self.ways == 2:
            mixed = torch.cat([mixed, mixed.flip(1)], dim=-1)
            dt = torch.stack([dt[..., 0, :], dt[..., 1, :].flip(1)], dim=2)

        tail, held = (None, None) if state is None else state
        mixed, tail = causal_conv(mixed, self.conv_weight, self.conv_bias, tail)
        mixed = F.silu(mixed).unflatten(-1, (self.ways, self.mixed))
        maps = self.groups * self.state
        u, b, c = mixed.split([self.inner, maps, maps], dim=-1)
        y, held = ssd_chunked(
            u.reshape(*u.shape[:2], self.ways * self.heads, self.head_dim),
            dt.flatten(2),
            -torch.exp(self.A_log.to(exact)),
            b.reshape(*b.shape[:2], self.ways * self.groups, self.state),
            c.reshape(*c.shape[:2], self.ways * self.groups, self.state),
            self.chunk,
            D=self.D,
            initial_state=held,
        )
        y = y.unflatten(2, (self.ways, self.heads)).flatten(3)
        joined = y[:, :, 0] if self.ways == 1 else y[:, :, 0] + y[:, :, 1].flip(1)

        gated = joined.to(exact) * F.silu(gate.to(exact))
        gated = gated.unflatten(-1, (self.groups, -1))
        gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        gated = gated.flatten(-2)
        out: Tensor = self.out_proj((gated * self.norm_weight.to(exact)).to(joined.dtype))
        return out, (tail, held) if self.ways == 1 else None


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
