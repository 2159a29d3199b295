"""The scalar-decay state space scan, with matrix products over chunks.

Source: Mamba-2 / SSD (arXiv 2405.21060, section 6, the chunked algorithm).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError

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


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The short depthwise convolution that stands before a scan.

    Shift, multiply, add: for four taps faster than a depthwise Conv1d, and no transpose.

    Args:
        x: (B, L, C); weight: (taps, C), the last tap at the token itself; bias: (C,).
        tail: (B, taps - 1, C), the tokens before, zeros when None.

    Returns:
        (B, L, C) and the tail for the tokens that follow.
    """
    taps, weight = weight.shape[0], weight.to(x.dtype)
    if tail is None:
        tail = x.new_zeros(x.shape[0], taps - 1, x.shape[-1])
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    out = bias.to(x.dtype) + padded[:, taps - 1 :] * weight[-1]
    for k in range(taps - 1):
        out = torch.addcmul(out, padded[:, k : k + x.shape[1]], weight[k])
    return out, padded[:, x.shape[1] :].clone()
