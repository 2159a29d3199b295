"""Fewer tokens before the text model: embeddings, DeepStack, positions and mask by one index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rows import gather, pack
from .state import Call


def dense_planes(kwargs: dict[str, Any], embeds: Tensor) -> list[Tensor]:
    """DeepStack's planes as (B, L, D), 0 where there are no pictures."""
    deep, where = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
    if deep is None or where is None:
        return []
    planes = []
    for rows in deep:
        plane = torch.zeros_like(embeds)
        plane[where.to(embeds.device)] = rows.to(embeds)
        planes.append(plane)
    return planes


def reduce(
    call: Call,
    planes: list[Tensor],
    places: list[Tensor],
    position: Tensor,
    kwargs: dict[str, Any],
) -> tuple[list[Tensor], dict[str, Any]]:
    """Embeddings, planes, positions and mask of what is left."""
    stays = call.real.clone()
    planes = [plane.clone() for plane in planes]
    for clip, after, place in zip(call.clips, call.after, places, strict=True):
        stays[clip.row, clip.where] = False
        stays[clip.row, place] = True
        deep = [after.signals[f"deepstack-{n}"] for n in range(len(planes) - 1)]
        for plane, rows in zip(planes, [after.features, *deep], strict=True):
            plane[clip.row, place.to(plane.device)] = rows.to(plane)
    call.rows = [torch.nonzero(row).flatten() for row in stays]
    planes, call.valid, new = take(call.rows, call.left, planes, position, kwargs)
    return planes, new


def take(
    rows: Sequence[Tensor],
    left: bool,
    planes: list[Tensor],
    position: Tensor,
    kwargs: dict[str, Any],
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """Some columns of a batch.

    Args:
        rows: for every row its columns (n,). left: padding goes before them.
        planes: (B, L, D) each, embeddings first. position: (B, L) or (P, B, L).

    Returns:
        The planes, which of their columns (B, W) hold a token, and the text model's arguments.
    """
    index, valid = pack(rows, left)
    device = planes[0].device
    planes = [gather(plane, index) for plane in planes]
    new = {**kwargs, "inputs_embeds": planes[0], "attention_mask": valid.to(device, torch.long)}
    flat = position.dim() == 2
    new["position_ids"] = (
        gather(position, index) if flat else torch.stack([gather(p, index) for p in position])
    )
    if kwargs.get("cache_position") is not None:
        new["cache_position"] = torch.arange(index.shape[1], device=device)
    if len(planes) > 1:
        where = gather(kwargs["visual_pos_masks"], index) & valid.to(device)
        new["visual_pos_masks"] = where
        new["deepstack_visual_embeds"] = [plane[where] for plane in planes[1:]]
    return planes, valid, new
