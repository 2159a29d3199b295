"""Positions of the tokens that stay in the KV cache when others leave it.

Survivors can keep the positions that they had ("keep"; nothing is computed, the sequence has
gaps), or close the gaps ("rotate"): rotary embeddings form a group, so a cached key moves to
another position by one rotation through the difference (PIE, arXiv 2407.03157). Values hold no
position. "compact" names what some authors do instead: later layers count the survivors from 0
while keys that are cached already keep their old rotation. As an option of the methods of stage
"cache" the first two are `positions="original"`, the default, and `positions="contiguous"`.

A rotary embedding here turns the pairs (j, j + r/2) of the first r = 2 * len(inv_freq) channels,
as Llama and Qwen do; other channels pass. With M-RoPE a frequency reads the time, the row or the
column of a token: `section_axes` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def inverse_frequencies(width: int, base: float = 10000.0) -> Tensor:
    """(width / 2,) float32: base ** (-2 j / width), the standard rotary frequencies."""
    return base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)


def section_axes(sections: Sequence[int], interleaved: bool = False) -> Tensor:
    """(r/2,) long: the position axis (0 time, 1 row, 2 column) that every frequency reads.

    Args:
        sections: frequencies an axis, as [16, 24, 24] (Qwen2-VL, Qwen2.5-VL) or [24, 20, 20].
        interleaved: the axes take turns, time, row, column, time and so on, until rows and
            columns have theirs; the rest is time (Qwen3-VL). Otherwise they stand in blocks.

    Raises:
        InputError: sections that are no three numbers, or too uneven to take turns.
    """
    if len(sections) != 3 or min(sections) < 0:
        raise InputError(f"sections must be three counts of frequencies, not {list(sections)}")
    if not interleaved:
        return torch.arange(3).repeat_interleave(torch.tensor(list(sections)))
    axes = torch.zeros(sum(sections), dtype=torch.long)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    if torch.bincount(axes, minlength=3).tolist() != list(sections):
        raise InputError(f"rows and columns cannot take turns with time in {list(sections)}")
    return axes


def angles(position: Tensor, inv_freq: Tensor, axes: Tensor | None = None) -> Tensor:
    """Rotation angles (..., S, r/2) in float32.

    Args:
        position: (..., S), or with `axes` (3, ..., S); differences of positions will do as well.
        inv_freq: (r/2,). axes: (r/2,) of `section_axes`, for M-RoPE.
    """
    frequencies = inv_freq.to(position.device, torch.float32)
    if axes is None:
        return position.float()[..., None] * frequencies
    return position.movedim(0, -1)[..., axes.to(position.device)].float() * frequencies


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn keys or queries (B, H, S, d) through angles (S, r/2) or (B, S, r/2)."""
    cos, sin = angle.cos(), angle.sin()
    return turn(x, torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, S, d) by tables (S, r) or (B, S, r); float32 inside, the dtype of x outside."""
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    width = cos.shape[-1]
    turning = x[..., :width].float()
    half = torch.cat([-turning[..., width // 2 :], turning[..., : width // 2]], dim=-1)
    turned = (turning * cos + half * sin).to(x.dtype)
    return torch.cat([turned, x[..., width:]], dim=-1)


def rerotate(
    keys: Tensor, old: Tensor, new: Tensor, inv_freq: Tensor, axes: Tensor | None = None
) -> Tensor:
    """Move rotated keys from their old positions to new ones (PIE, one rotation by new - old).

    A scale on cos and sin (YaRN's attention scaling) is in the keys already and stays there.

    Args:
        keys: (B, H, S, d), rotated. old, new: (S,) or (B, S) positions; (3, S) or (3, B, S)
            with `axes`. inv_freq: (r/2,). axes: (r/2,), for M-RoPE.
    """
    # The difference is taken in float64, so that far positions lose nothing.
    return rotate(keys, angles((new.double() - old.double()).to(keys.device), inv_freq, axes))


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


def rerotate_tables(keys: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """As `rerotate`, from a model's own tables (see `between`)."""
    cos, sin = between(old, new)
    return turn(keys, cos.to(keys.device), sin.to(keys.device))


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


def repair(
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    position: Tensor,
    policy: Literal["keep", "rotate"] = "keep",
    inv_freq: Tensor | None = None,
    axes: Tensor | None = None,
    video: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take tokens out of one layer's cache and leave the survivors at sound positions.

    Args:
        keys, values: (B, H, S, d), keys rotated. kept: (K,) long, ascending, for all rows.
        position: (S,) or (3, S), shared by the rows. policy: "keep" or "rotate".
        inv_freq: (r/2,), needed to rotate. axes, video: for M-RoPE, see `contiguous`.

    Returns:
        keys and values (B, H, K, d), and the survivors' positions (K,) or (3, K).

    Raises:
        InputError: an unknown policy, or a rotation without frequencies.
    """
    if policy not in ("keep", "rotate"):
        raise InputError(f"positions must be 'keep' or 'rotate', not {policy!r}")
    keys, values = (x.index_select(2, kept.to(x.device)) for x in (keys, values))
    old = position[..., kept.to(position.device)]
    if policy == "keep":
        return keys, values, old
    if inv_freq is None:
        raise InputError("keys can only be rotated with the model's inverse frequencies")
    new = contiguous(position, kept, video)
    return rerotate(keys, old, new, inv_freq, axes), values, new
