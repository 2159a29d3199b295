"""Merging inside towers whose grid is pooled by interpolation behind them (LLaVA-OneVision).

A token is interpolated between patches that it shares with its neighbours, so no unit of patches
makes a token by itself. Patches merge inside the tower, to the same share as the tokens; behind its
last layer every patch gets a copy of what it became, the whole grid is projected and pooled, and
the method goes on there to its budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Chain, Compressor
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

from .packed_tower import PackedMerger
from .tower_merger import TowerMerger, TowerPlan, refuse_twice
from .vision_tower import Inside, Sight, calls_for_videos


class PooledMerger(TowerMerger):
    """One method inside one such tower; pictures go past it."""

    def __init__(self, adapter: Any, method: Compressor) -> None:
        super().__init__(adapter, method)
        self.call: Mapping[str, Any] | None = None
        self.watched = bool({"cls-attention", "vision-keys"} & {*method.needs, *method.uses})
        names = dict(self.tower.named_modules())
        self.norm = next(part for name, part in names.items() if name.endswith("post_layernorm"))

    @contextmanager
    def attached(self, sights: deque[Sight]) -> Iterator[None]:
        """As the base has it."""
        with calls_for_videos(self), super().attached(sights):
            yield

    def _forward(self, forward: Any, sights: deque[Sight], *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = {"pixel_values": args[0], **kwargs}
        call, self.call = self.call, None
        if call is None:
            return forward(**kwargs)
        frames = call["pixel_values_videos"].shape[1]
        plan = self._plan(frames)
        if not plan.steps:
            return forward(**kwargs)  # bit for bit what it is without us
        refuse_twice(self.tower, self.method)
        filled: list[Tensor] = []
        inside: dict[int, Inside] = {}
        out: Any = None
        for video, pixels in enumerate(kwargs["pixel_values"].split(frames)):
            out, states, tokens = self._merge(forward, {**kwargs, "pixel_values": pixels}, plan)
            filled.append(states)
            inside[video * tokens.total] = Inside(tokens, plan.rest)
        out.last_hidden_state = torch.cat(filled)
        out.hidden_states = (*out.hidden_states[:-1], out.last_hidden_state)
        sights[-1].inside, sights[-1].method = inside, repr(self.method)
        return out

    def _clip(self, frames: int) -> VideoTokens:
        cells = self.adapter.cells
        return VideoTokens.blank((frames, cells, cells), [float(t) for t in range(frames)], frames)

    def _shape(self, frames: int) -> TowerShape:
        return TowerShape(len(self.layers), self.adapter.special, frames, self.adapter.side**2)

    def _plan(self, frames: int) -> TowerPlan:
        clip = self._clip(frames)
        part, rest = tower_part(self.method, clip)
        if part is None:
            return TowerPlan(None, rest)
        acting, budget = part
        budget = acting.tower_budget(clip) if budget is None else budget
        behind = replace(acting, tower=False)
        goal: int | None = None
        shape = self._shape(frames)
        if budget is not None:
            behind = replace(behind, keep=1.0, budget=budget)
            goal = max(frames, round(budget * shape.tokens * frames / len(clip)))
        chained = self.method.methods[1:]
        after = Chain((behind, *chained), budget=rest.budget) if chained else behind
        return TowerPlan(acting, after, acting.tower_steps(shape, goal), None)

    def _merge(
        self, forward: Any, kwargs: Mapping[str, Any], plan: TowerPlan
    ) -> tuple[Any, Tensor, VideoTokens]:
        """One video: the tower's output, the states of all patches, and the pooled tokens."""
        frames = len(kwargs["pixel_values"])
        states: list[Tensor] = []
        handle = self.norm.register_forward_pre_hook(lambda _norm, args: states.append(args[0]))
        try:
            passed = self._pass(forward, kwargs, plan, self._shape(frames), 1)
        finally:
            handle.remove()
        tokens = passed.read(states[-1])
        planes = {
            name.replace("-", "_"): plane[tokens.source.to(plane.device)].unflatten(0, (frames, -1))
            for name, plane in tokens.signals.items()
        }
        pooled = self._clip(frames).with_signals(**self.adapter.pooled(planes))
        return passed.out, passed.fill(tokens, states[-1]), pooled


def merger_of(adapter: Any, method: Compressor) -> TowerMerger | PackedMerger:
    """What lets a method merge inside a family's tower."""
    if adapter.merging == "packed":
        return PackedMerger(adapter, method)
    return (PooledMerger if adapter.merging == "pooled" else TowerMerger)(adapter, method)
