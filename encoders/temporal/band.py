"""Attention over the frames of a clip, full or within a window, without a mask of all pairs.

A window is computed as a band: blocks of query frames, each against the keys that one of them may
see, so that memory and time are linear in the number of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROTARY_BASE = 10_000.0
_QUERIES = 64  # a band's block holds at least so many queries: smaller products waste the machine
_FULL_QUERIES = 1024  # and at most so many where full attention needs a mask


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, valid: Tensor | None
) -> Tensor:
    """Attention of every frame to all frames, or to its own and the earlier ones.

    Args:
        q, k, v: (B, H, T, n, d), n tokens a frame that see each other; valid: (B, T) bool or None.

    Returns:
        (B, H, T, n, d).
    """
    frames, n = q.shape[2:4]
    shape = q.shape
    q, k, v = (t.flatten(2, 3) for t in (q, k, v))
    if not causal:
        mask = None
        if valid is not None:
            seen = valid | ~valid.any(1, keepdim=True)  # a softmax over nothing would be NaN
            mask = seen.repeat_interleave(n, 1)[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(shape)
    if n == 1 and valid is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).view(shape)
    # No mask of all pairs: some queries at a time, against the keys up to the last of them.
    size, parts = max(1, _FULL_QUERIES // n), []
    for start in range(0, frames, size):
        stop = min(start + size, frames)
        at = torch.arange(start, stop, device=q.device)[:, None]
        key = torch.arange(stop, device=q.device)
        mask = (key <= at)[None]
        if valid is not None:
            mask = mask & (valid[:, None, :stop] | (key == at))
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, start * n : stop * n],
                k[:, :, : stop * n],
                v[:, :, : stop * n],
                attn_mask=_to_tokens(mask, n)[:, None],
            )
        )
    return torch.cat(parts, 2).view(shape)


def band_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, *, causal: bool, valid: Tensor | None
) -> Tensor:
    """Attention within `window` frames, in memory linear in the number of frames.

    A frame sees itself and the `window` - 1 frames before it, and those after it unless `causal`.

    Args:
        q: (B, H, T, n, d), n tokens a frame that see each other.
        k, v: (B, H, P + T, n, d), with the P <= `window` - 1 frames before those of `q`.
        valid: (B, T) bool or None; only where P is 0.

    Returns:
        (B, H, T, n, d).
    """
    batch, heads, frames, n, dim = q.shape
    held = k.shape[2] - frames
    past = min(window - 1, held + frames - 1)
    ahead = 0 if causal else min(window - 1, frames - 1)
    size = min(frames, max(window, -(-_QUERIES // n)))
    blocks = -(-frames // size)
    tail, span = blocks * size - frames, past + size + ahead
    edges = (past - held, tail + ahead)

    def overlapping(t: Tensor) -> Tensor:
        t = F.pad(t, (0, 0, 0, 0, *edges)).unfold(2, span, size)  # (B, H, blocks, n, d, span)
        return t.permute(0, 2, 1, 5, 3, 4).reshape(batch * blocks, heads, span * n, dim)

    real = k.new_ones(1, k.shape[2], dtype=torch.bool) if valid is None else valid
    real = F.pad(real, edges).unfold(1, span, size)[:, :, None]  # (B, blocks, 1, span)
    place = torch.arange(size, device=q.device)[:, None]
    offset = torch.arange(span, device=q.device) - past - place
    near = (offset >= -past) & (offset <= ahead)
    # A padded frame sees itself: a softmax over nothing would be NaN.
    mask = (near & (real | (offset == 0))).expand(batch, -1, -1, -1).flatten(0, 1)
    queries = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(2, (blocks, size)).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        queries.reshape(batch * blocks, heads, size * n, dim),
        overlapping(k),
        overlapping(v),
        attn_mask=_to_tokens(mask, n)[:, None],
    )
    out = out.view(batch, blocks, heads, size, n, dim).transpose(1, 2)
    return out.reshape(batch, heads, blocks * size, n, dim)[:, :, :frames]


def _to_tokens(mask: Tensor, n: int) -> Tensor:
    """A mask (..., Tq, Tk) over frames of n tokens, (..., Tq * n, Tk * n)."""
    return mask if n == 1 else mask.repeat_interleave(n, -2).repeat_interleave(n, -1)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Turn the pairs of x (B, H, T, n, d) by angles that grow with `positions` (B or 1, T)."""
    half = x.shape[-1] // 2
    power = torch.arange(half, dtype=torch.float64, device=x.device) / half
    angle = positions[:, None, :, None, None].double() * _ROTARY_BASE**-power
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(exact), angle.sin().to(exact)
    a, b = x.to(exact).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
