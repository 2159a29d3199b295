"""A clip through a tower that merges inside: batches of frames, budgets, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, VideoTokens, split_budget
from vidllm.tokens.tower_plan import Reducer, TowerMethod, TowerShape, TowerTokens

from .merging import blank, merging, tower_layers

if TYPE_CHECKING:
    from . import HubTower


def merge_clip(
    tower: HubTower,
    frames: Tensor,
    method: Reducer | TowerMethod,
    budget: int | None,
    *,
    fold: int,
    batch: int,
    signals: bool,
) -> TowerTokens:
    """The work of `HubTower.with_merging`."""
    side, layers = tower.side // fold, len(tower_layers(tower.model))
    if not len(frames) or tower.side % fold:
        raise InputError(f"{len(frames)} frames of {tower.side}² cells do not fold by {fold}")
    if budget is not None and budget < 1:
        raise InputError(f"budget must be at least 1, not {budget}")
    sizes = [len(part) for part in frames.split(batch)]
    acting = cast(TowerMethod, method) if layers and hasattr(method, "tower_steps") else None
    if acting is not None and budget is None:
        budget = acting.tower_budget(blank(len(frames), side))
    goals: list[int | None] = [None] * len(sizes)
    if acting is not None and budget is not None:  # inside, a frame has one token at least
        spare = [size * (side * side - 1) for size in sizes]
        more = max(0, min(budget - len(frames), sum(spare)))
        extra = split_budget(more, spare) if more else [0] * len(sizes)
        goals = [size + e for size, e in zip(sizes, extra, strict=True)]
    parts = []
    for part, goal in zip(frames.split(batch), goals, strict=True):
        shape = TowerShape(layers, tower.special, len(part), side * side)
        whole = goal is not None and goal >= len(part) * side * side
        steps = [] if acting is None or whole else acting.tower_steps(shape, goal)
        proportional = acting is not None and acting.proportional
        watched = tower.watched if signals or method.needs else None
        with merging(
            tower.model,
            steps,
            shape,
            tower.side,
            fold=fold,
            proportional=proportional,
            watched=watched,
        ) as run:
            hidden = tower.run(part).last_hidden_state
        parts.append(run.read(hidden))
    tokens = _joined(parts, side)
    if not bool(torch.isfinite(tokens.features).all()):
        raise InputError("the vision tower gives NaN or infinite values for this video")
    if acting is None or (budget is not None and len(tokens) > budget):
        tokens, _ = method.run(tokens, budget)
    merge = Merge(tokens.source, tokens.position, "size")
    return TowerTokens(tokens.features, merge, dict(tokens.signals))


def _joined(parts: Sequence[VideoTokens], side: int) -> VideoTokens:
    """One clip of clips that follow each other."""
    source, place, slots, cells = [], [], 0, 0
    for part in parts:
        source.append(torch.where(part.source < 0, -1, part.source + slots))
        place.append(part.position + cells)
        slots, cells = slots + len(part), cells + part.total
    features = torch.cat([part.features for part in parts])
    whole = blank(sum(part.grid[0] for part in parts), side)
    whole = whole.apply(Mix(features, torch.cat(source), torch.cat(place)))
    names = parts[0].signals
    planes = {name: torch.cat([part.signals[name] for part in parts]) for name in names}
    return whole.with_signals(**planes)
