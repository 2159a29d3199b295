"""Before the text model: what a method leaves of the videos of a batch, and the shorter prompt.

Embeddings, DeepStack planes, positions and mask are all cut by one index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from ..families.family import Adapter
from .batches import gather, pack
from .state import Call
from .tower_merging import merges_inside
from .tower_signals import Sight


def select(
    adapter: Adapter,
    method: Compressor,
    wants: Sequence[str],
    call: Call,
    planes: Sequence[Tensor],
    sight: Sight | None,
) -> tuple[list[Tensor], list[tuple[Compressor, int]]]:
    """Let a method choose in every video; `call.after` takes what is left.

    Args:
        wants: signals of the tower that it reads. planes: (B, L, D) embeddings, and DeepStack's.
        sight: the call of the tower that made the videos.

    Returns:
        For every video the places (n,) of what is left in its prompt; late methods' budgets.

    Raises:
        InputError: a video that was encoded elsewhere, or a method that does not fit.
    """
    signals = _signals(adapter, method, wants, sight)
    inside = {} if sight is None else sight.inside
    places, budgets = [], []
    for clip in call.clips:
        rows = [plane[clip.row, clip.where.to(plane.device)] for plane in planes]
        tower = {
            n.replace("-", "_"): plane[clip.slots.to(plane.device)] for n, plane in signals.items()
        }
        deep = {f"deepstack_{n}": row for n, row in enumerate(rows[1:])}
        view = clip.tokens.with_features(rows[0]).with_signals(**tower, **deep)
        words = torch.nonzero(call.text[clip.row]).flatten()
        behind = words[words > clip.where[-1]]
        query = planes[0][clip.row, (behind if len(behind) else words).to(planes[0].device)]
        asked = query if method.query_aware else None
        merged = inside.get(int(clip.slots[0]))
        if merged is None and _merging(method, clip.tokens):
            raise InputError(_ELSEWHERE.format(method.name))
        if merged is not None:
            if merged.tokens.total != clip.tokens.total:
                raise InputError(_ELSEWHERE.format(method.name))
            after, late = merged.rest.before_decoder(merged.join(view), asked)
        else:
            after, late = method.before_decoder(view, asked)
        if after.features.shape[1] != view.features.shape[1]:
            raise InputError(f"{method.name} changes the width of tokens: leave it out")
        if bool((after.position.diff() <= 0).any()):
            raise InputError(
                f"{method.name} must leave tokens in time order here: leave out faithful"
            )
        table = torch.full((clip.tokens.total,), -1)
        table[clip.tokens.position] = clip.where
        call.after.append(after)
        places.append(table[after.position])
        budgets += late[:1]
    return places, budgets


_ELSEWHERE = (
    "{} merges inside the vision tower, which did not run on this video with it: let the model "
    "encode the video inside the with block"
)


def _merging(method: Compressor, clip: VideoTokens) -> bool:
    return merges_inside(method) is not None and tower_part(method, clip)[0] is not None


def _signals(
    adapter: Adapter, method: Compressor, wants: Sequence[str], sight: Sight | None
) -> dict[str, Tensor]:
    if sight is not None and sight.method not in ("", repr(method)):
        raise InputError(
            "another method merged this video inside the vision tower: let the model encode it "
            "again inside the with block"
        )
    if not wants or (sight is not None and sight.inside):
        return {}
    if sight is None or not sight.hidden.numel():
        raise InputError(
            f"{method.name} needs {' and '.join(wants)}: let the model encode the video inside "
            "the with block"
        )
    if not sight.signals:
        sight.read(adapter.signals(sight))
    return {name: sight.signals[name] for name in wants}


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
