"""Positions of the tokens that stay in the KV cache when others leave it.

Survivors can keep the positions that they had ("keep"; nothing is computed, the sequence has
gaps), or close the gaps ("rotate"): rotary embeddings form a group, so a cached key moves to
another position by one rotation through the difference (PIE, arXiv 2407.03157). Values hold no
position. "compact" names what some authors do instead: later layers count the survivors from 0
while keys that are cached already keep their old rotation. As an option of the methods of stage
"cache" the first two are `positions="original"`, the default, and `positions="contiguous"`.

A rotary embedding here turns the pairs (j, j + r/2) of the first r = 2 * len(inv_freq) channels,
as Llama and Qwen do; other channels pass.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from vidllm.errors import InputError

Policy = Literal["keep", "rotate", "compact"]
#: The option of methods of stage "cache"; the model's driver carries it out.
Positions = Literal["original", "contiguous"]


def check_positions(name: str, positions: str) -> None:
    """Refuse what is no `Positions`; `name` is the method's.

    Raises:
        InputError: another word.
    """
    if positions not in get_args(Positions):
        raise InputError(f"{name}: positions must be 'original' or 'contiguous', not {positions!r}")


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, S, d) by tables (S, r) or (B, S, r); float32 inside, the dtype of x outside."""
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    width = cos.shape[-1]
    turning = x[..., :width].float()
    half = torch.cat([-turning[..., width // 2 :], turning[..., : width // 2]], dim=-1)
    turned = (turning * cos + half * sin).to(x.dtype)
    return torch.cat([turned, x[..., width:]], dim=-1)


def between(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Tables (cos, sin) of the turn from old positions to new ones, free of a model's scale.

    Args:
        old, new: a model's own tables (cos, sin), each (S, r) or (B, S, r), already scaled and,
            for M-RoPE, already put together by sections.
    """
    cos_old, sin_old = (t.float() for t in old)
    cos_new, sin_new = (t.float() for t in new)
    scale = cos_old.square() + sin_old.square()  # the tables' scale squared
    cos = (cos_new * cos_old + sin_new * sin_old) / scale
    return cos, (sin_new * cos_old - cos_new * sin_old) / scale


def contiguous(position: Tensor, kept: Tensor, video: Tensor | None = None) -> Tensor:
    """New positions of one sequence's survivors, without the gaps of those that left.

    1D: they count on from the first position. M-RoPE: in every run of video tokens each axis
    loses the values that no survivor has, with the distance to the next value (frames that are
    two positions apart stay so), and text starts after the largest position before it. With
    everything kept nothing changes.

    Args:
        position: (S,), or (3, S) for M-RoPE, before tokens left. kept: (K,) long, ascending.
        video: (S,) bool, which tokens are video; needed for M-RoPE.

    Returns:
        (K,) or (3, K), in the dtype of `position`.

    Raises:
        InputError: M-RoPE positions without `video`.
    """
    kept = kept.to(position.device)
    if position.dim() == 1:
        return position.min() + torch.arange(kept.numel(), device=position.device).to(position)
    if video is None:
        raise InputError("M-RoPE positions need to know which tokens are video")
    result = position[:, kept].clone()
    _, lengths = torch.unique_consecutive(video, return_counts=True)
    ends: list[int] = lengths.cumsum(0).tolist()
    following, start = position[:, 0].min(), 0
    for end in ends:
        inside = (kept >= start) & (kept < end)
        if bool(inside.any()):
            if not bool(video[start]):
                count = torch.arange(int(inside.sum()), device=position.device)
                result[:, inside] = following + count.to(position)
            else:
                for axis, row in enumerate(position[:, start:end]):
                    values, number = torch.unique(row, return_inverse=True)
                    width = torch.cat([values.diff(), values.new_ones(1)])
                    used = number[kept[inside] - start]
                    width[~torch.isin(torch.arange(values.numel()).to(used), used)] = 0
                    result[axis, inside] = following + (width.cumsum(0) - width)[used]
            following = result[:, inside].max() + 1
        start = end
    return result
