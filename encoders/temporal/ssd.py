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
from typing import Any

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
_BLOCK_SIZE = (1 << 19, 1 << 27)  # numbers in one tensor of a block: (CPU, others)


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
    dtype of `x`. Memory beyond y is one block's, and one state a block in training. First
    derivatives only.

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
    exact = torch.promote_types(x.dtype, torch.float32)
    if D is None:
        D = x.new_zeros(x.shape[2])
    held = None if initial_state is None else initial_state.to(exact)
    b, c, size = B.to(x.dtype), C.to(x.dtype), max(1, min(chunk, x.shape[1]))
    y, final = _Chunked.apply(x, dt.to(exact), A.to(exact), b, c, D.to(x.dtype), held, size)
    return y, final


def _blocks(x: Tensor, size: int) -> list[tuple[slice, slice, int]]:
    """Parts of a batch and of its sequence that stay in the cache, and their chunks' length.

    The parts of one piece of the batch follow one another in time.
    """
    batch, length, heads, width = x.shape
    chunks = max(1, _BLOCK_SIZE[x.device.type != "cpu"] // (heads * size * max(width, size)))
    rows = min(batch, chunks)
    step, whole = chunks // max(1, rows) * size, length - length % size
    spans = [(slice(at, min(at + step, whole)), size) for at in range(0, whole, step)]
    if whole < length:
        spans.append((slice(whole, length), length - whole))
    pieces = [slice(at, at + rows) for at in range(0, batch, rows)]
    return [(piece, span, each) for piece in pieces for span, each in spans]


class _Chunks:
    """What both directions of a block compute: views by chunk (B, n, Q, ...), decays, weights."""

    def __init__(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, size: int) -> None:
        self.n, self.size = x.shape[1] // size, size
        self.groups, self.each = b.shape[2], x.shape[2] // b.shape[2]
        self.x, self.dt = self.cut(x), self.cut(dt)
        self.b, self.c = (self.cut(v).transpose(2, 3) for v in (b, c))  # (B, n, G, Q, S)
        self.u = (self.x * self.dt[..., None]).to(x.dtype)
        # The sum of the decays up to and with every step of its chunk.
        s = (self.dt * a).cumsum(2)
        self.total = s[:, :, -1]
        self.grown = s.exp()[..., None].to(x.dtype)
        self.left = (s[:, :, -1:] - s).exp_()[..., None].to(x.dtype)
        # (C_i . B_j) exp(s_i - s_j) for j <= i. The exponents above the diagonal are positive and
        # could overflow: held at 0 they meet scores of 0.
        s = s.transpose(2, 3).contiguous()
        self.decay = (s[..., :, None] - s[..., None, :]).clamp_(max=0).exp_().to(x.dtype)
        scores = torch.matmul(self.c, self.b.transpose(-1, -2)).tril_()
        self.scores = scores[:, :, :, None]
        self.weights = (self.scores * self.of_groups(self.decay)).view_as(self.decay)

    def cut(self, v: Tensor) -> Tensor:
        return v.reshape(v.shape[0], self.n, self.size, *v.shape[2:])

    def of_groups(self, v: Tensor) -> Tensor:
        """(B, n, H, Q, Q) to (B, n, G, H / G, Q, Q)."""
        return v.unflatten(2, (self.groups, self.each))

    def rows(self, v: Tensor) -> Tensor:
        """Tokens (B, n, Q, H, P) by group, (B, n, G, Q, H / G * P)."""
        return v.unflatten(3, (self.groups, self.each)).flatten(4).transpose(2, 3)

    def tokens(self, v: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return v.transpose(2, 3).unflatten(4, (self.each, -1)).flatten(3, 4)

    def maps(self, v: Tensor) -> Tensor:
        """States (B, n, H, P, S) by group, (B, n, G, H / G * P, S), as factors of a product."""
        return v.to(self.x.dtype).unflatten(2, (self.groups, self.each)).flatten(3, 4)

    def states(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """The states before every chunk and after the last, from the one before the first.

        A chunk adds sum_j exp(s_Q - s_j) u_j B_j^T.
        """
        added = torch.matmul(self.rows(self.u * self.left).transpose(-1, -2), self.b)
        return _carry(self.by_head(added).to(start.dtype), self.total, start)

    def by_head(self, v: Tensor) -> Tensor:
        """The inverse of `maps`."""
        return v.unflatten(3, (self.each, -1)).flatten(2, 3)


class _Chunked(torch.autograd.Function):
    """The scan block by block; the way back computes a block's decays again. See `ssd_chunked`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        initial: Tensor | None,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        y, starts = torch.empty_like(x, memory_format=torch.contiguous_format), []
        if initial is None:
            final = dt.new_zeros(x.shape[0], *x.shape[2:], b.shape[3])
        else:
            final = initial.clone()
        kept = any(ctx.needs_input_grad)
        with torch.autocast(x.device.type, enabled=False):
            for piece, span, each in _blocks(x, size):
                at = piece, span
                k = _Chunks(x[at], dt[at], a, b[at], c[at], each)
                start = final[piece]
                if kept:
                    starts.append(start.clone())
                before, after = k.states(start)
                out = torch.matmul(k.weights, k.u.transpose(2, 3)).transpose(2, 3)
                if k.n > 1 or span.start or initial is not None:
                    old = k.tokens(torch.matmul(k.c, k.maps(before).transpose(-1, -2)))
                    out += old.mul_(k.grown)
                y[at] = out.addcmul_(skip[:, None], k.x).flatten(1, 2)
                final[piece] = after
        if kept:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, dt, a, b, c, skip, *starts)
            ctx.size, ctx.began = size, initial is not None
        return y, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, a, b, c, skip, *starts = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy
        dx, ddt, db, dc = (
            torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, b, c)
        )
        da, dskip = torch.zeros_like(a), torch.zeros_like(a)
        ended = dfinal is not None
        if dfinal is None:
            held = dt.new_zeros(x.shape[0], *x.shape[2:], b.shape[3])
        else:
            held = dfinal.clone()
        blocks = zip(_blocks(x, ctx.size), starts, strict=True)
        with torch.autocast(x.device.type, enabled=False):
            for (piece, span, each), start in reversed(list(blocks)):
                at = piece, span
                k = _Chunks(x[at], dt[at], a, b[at], c[at], each)
                g = k.cut(dy[at])
                ds, du, db_dc = _inside_back(k, g)
                first = k.n == 1 and not span.start and not ctx.began
                last = k.n == 1 and span.stop == x.shape[1] and not ended
                if not (first and last):
                    held[piece] = _across_back(k, g, start, held[piece], ds, du, db_dc)
                db[at], dc[at] = (v.transpose(2, 3).flatten(1, 2) for v in db_dc)
                dz = ds.flip(2).cumsum(2).flip(2)  # of dt a
                ddt[at] = torch.addcmul((du * k.x).sum(-1, dtype=ds.dtype), dz, a).flatten(1, 2)
                da += (dz * k.dt).sum((0, 1, 2))
                dskip += (g * k.x).sum((0, 1, 2, 4), dtype=a.dtype)
                dx[at] = (du * k.dt[..., None]).addcmul_(g, skip[:, None]).flatten(1, 2)
        start_grad = held if ctx.began else None
        return dx, ddt, da, db, dc, dskip.to(skip.dtype), start_grad, None


def _inside_back(k: _Chunks, g: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Gradients of s, u and (B, C) by what a chunk gives itself, `g` (B, n, Q, H, P) that of y."""
    ahead, mine, exact = g.transpose(2, 3).contiguous(), k.u.transpose(2, 3), k.dt.dtype
    du = torch.matmul(k.weights.transpose(-1, -2), ahead).transpose(2, 3)
    dscores = k.of_groups(torch.matmul(ahead, mine.transpose(-1, -2)).mul_(k.decay))
    ds = (dscores * k.scores).flatten(2, 3)
    ds = (ds.sum(-1, dtype=exact) - ds.sum(-2, dtype=exact)).transpose(2, 3)
    dscores = dscores.sum(3).tril_()
    return ds, du, (torch.matmul(dscores.transpose(-1, -2), k.c), torch.matmul(dscores, k.b))


def _across_back(
    k: _Chunks,
    g: Tensor,
    start: Tensor,
    dafter: Tensor,
    ds: Tensor,
    du: Tensor,
    db_dc: tuple[Tensor, Tensor],
) -> Tensor:
    """Add to the gradients what goes through the states; returns that of the block's `start`.

    `dafter` is the gradient of the state after the block.
    """
    before = start[:, None] if k.n == 1 else k.states(start)[0]
    # What earlier chunks gave.
    maps, faded = k.maps(before), g * k.grown
    rows = k.rows(faded)
    db_dc[1].add_(torch.matmul(rows, maps))
    old = k.tokens(torch.matmul(k.c, maps.transpose(-1, -2)))
    dbefore = k.by_head(torch.matmul(rows.transpose(-1, -2), k.c)).to(start.dtype)
    ds += (faded * old).sum(-1, dtype=start.dtype)
    # What the chunks hand on: the same recurrence, from the last to the first.
    handed, dstart = _carry(dbefore.flip(1), k.total.flip(1), dafter)
    handed = handed.flip(1)
    maps = k.maps(handed)
    db_dc[0].add_(torch.matmul(k.rows(k.u * k.left), maps))
    given = k.tokens(torch.matmul(k.b, maps.transpose(-1, -2))) * k.left
    du += given
    lost = given.mul_(k.u).sum(-1, dtype=start.dtype)
    ds -= lost
    ds[:, :, -1] += lost.sum(2) + (handed * before).sum((-1, -2)) * k.total.exp()
    return dstart


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


_BLOCK = 1024  # tokens that a mixer has in work at once


class SSDMixer(Mixer):
    """Mamba-2 mixer on (B, L, D), in one direction or both.

    The directions share the in and out projections; convolution, step bias, decay and skip are
    their own, and run one direction after the other. With one direction, transformers' `Mamba2Mixer` gives the same outputs on the same weights.
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
        # In blocks, so that what is in work stays in the cache; the gradient of a block's place
        # in the whole would cost more than that gains.
        size = x.shape[1] if torch.is_grad_enabled() else _BLOCK
        told = [x, valid, scale]
        parts = [
            [None if v is None else v[:, at : at + size] for v in told]
            for at in range(0, x.shape[1], size)
        ]
        if self.ways == 1:
            out = []
            for part in parts:
                gate, *given = self._projected(*part)
                y, state = self._way(0, *given, state)
                out.append(self._joined(y, gate))
            return out[0] if len(out) == 1 else torch.cat(out, dim=1), state
        # One direction after the other; the way back leaves what it made for the way ahead.
        held, before = [], None
        for part in reversed(parts):
            gate, *given = self._projected(*part)
            y, before = self._way(1, *given, before)
            held.append((gate, given, y))
        out, before = [], None
        while held:
            gate, given, back = held.pop()
            y, before = self._way(0, *given, before)
            out.append(self._joined(y + back, gate))
        return out[0] if len(out) == 1 else torch.cat(out, dim=1), None

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
