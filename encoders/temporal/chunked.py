"""The chunked scan of Mamba-2, block by block, with a way back written by hand.

Source: Mamba-2 / SSD (arXiv 2405.21060, section 6, the chunked algorithm).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError

# On a GPU one product carries the state over this many chunks, so that the cost stays linear in
# the length.
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


def _carry(added: Tensor, total: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """States before every chunk (B, n, H, P, S) and after the last (B, H, P, S).

    `added` (B, n, H, P, S) is what each chunk adds, `total` (B, n, H) its summed decay, `held` the
    state before the first.
    """
    batch, n, heads, width, state = added.shape
    parts = []
    if n == 1 or added.device.type == "cpu":
        faded = total.exp()[..., None, None]
        for k in range(n):
            parts.append(held)
            held = torch.addcmul(added[:, k], faded[:, k], held)
        return torch.stack(parts, dim=1), held
    # One product instead of many small calls.
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
