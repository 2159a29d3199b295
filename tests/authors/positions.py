"""Rotary embeddings written out: what a cache holds when keys are turned to new positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vidllm.compressors.shared.positions import between, contiguous, turn
from vidllm.errors import InputError


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


def rerotate_tables(keys: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """As `rerotate`, from a model's own tables (see `between`)."""
    cos, sin = between(old, new)
    return turn(keys, cos.to(keys.device), sin.to(keys.device))


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
