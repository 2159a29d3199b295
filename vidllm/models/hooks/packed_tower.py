"""Merging inside vision towers that pack their frames in one row: Qwen's, GLM's and others.

A call for videos goes through the tower video by video, each as `packed_row` runs it. Calls for
pictures are left as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor

from .packed_row import PackedRun
from .tower_merger import TowerPlan, plan_in_tower, refuse_twice
from .vision_tower import Inside, Sight, calls_for_videos, instead

#: What callers may have worked out for the plain row; the tower does it again for each video.
_WORKED_OUT = (
    "cu_seqlens",
    "max_seqlen",
    "position_ids",
    "interp_indices",
    "interp_weights",
    "window_index",
    "cu_window_seqlens",
    "max_window_seqlen",
)


class PackedMerger:
    """One method inside one packed tower. Pictures, which have calls of their own, go past it."""

    def __init__(self, adapter: Any, method: Compressor) -> None:
        self.adapter, self.method = adapter, method
        self.tower: Any = adapter.tower
        self.layers = packed_layers(self.tower)
        self.call: Mapping[str, Any] | None = None
        wants = {want for item in method.methods[1:] for want in (*item.needs, *item.uses)}
        self.watched = -1
        if wants & {"cls-attention", "vision-keys"}:
            places = [any(m is adapter.attention for m in x.modules()) for x in self.layers]
            self.watched = places.index(True)

    def expect(self, _clips: Sequence[Any]) -> None:
        """Which rows are whose, the call for videos tells by itself."""

    @contextmanager
    def attached(self, sights: deque[Sight]) -> Iterator[None]:
        """Let the tower merge in this block; what it did is noted in the call's `Sight`."""
        forward = partial(self._forward, self.tower.forward, sights)
        with calls_for_videos(self), instead(self.tower, "forward", forward):
            yield

    def _forward(self, forward: Any, sights: deque[Sight], *args: Any, **kwargs: Any) -> Any:
        call, self.call = self.call, None
        if call is None:  # pictures
            return forward(*args, **kwargs)
        videos = self.adapter.tower_videos(call)
        clips = [facts.clip(grid) for grid, facts in videos]
        plans = [plan_in_tower(self.method, clip, len(self.layers), 0) for clip in clips]
        if not any(plan.steps for plan in plans):
            return forward(*args, **kwargs)  # bit for bit what it is without us
        refuse_twice(self.tower, self.method)
        outputs: list[Any] = []
        inside: dict[int, Inside] = {}
        first = begin = 0
        for (grid, facts), plan in zip(videos, plans, strict=True):
            run = PackedRun(self.tower, plan, grid, facts, self.watched)
            end = begin + run.tokens.total * facts.unit
            with self._hooks(run, plan):
                part, given = _part_of(args, kwargs, begin, end)
                outputs.append(forward(*part, **given))
            inside[first] = Inside(run.tokens, plan.rest)
            first, begin = first + run.tokens.total, end
        sights[-1].inside, sights[-1].method = inside, repr(self.method)
        return _joined(outputs)

    @contextmanager
    def _hooks(self, run: PackedRun, plan: TowerPlan) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for number, layer in enumerate(self.layers):
                for handle in run.attach(number, layer):
                    handles.append(handle)
            for number, merger in enumerate(getattr(self.tower, "deepstack_merger_list", ())):
                handles.append(merger.register_forward_hook(partial(run.stack, number)))
            end = self.adapter.tower_end
            handles.append(end.register_forward_hook(partial(run.finish, plan)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            run.config._attn_implementation_internal = run.how


def packed_layers(tower: nn.Module) -> list[Any]:
    """The layers of a packed tower, in order."""
    return [
        module
        for module in tower.modules()
        if hasattr(module, "mlp") and (hasattr(module, "attn") or hasattr(module, "self_attn"))
    ]


def _part_of(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], begin: int, end: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a tower for the patches `begin` to `end` of its row."""
    given = {name: value for name, value in kwargs.items() if name not in _WORKED_OUT}
    grid: Tensor = args[1] if len(args) > 1 else given["grid_thw"]
    ends = grid.prod(-1).cumsum(0)
    own = (ends > begin) & (ends <= end)
    sliced: list[Callable[[Any], Any]] = [lambda x: x[begin:end], *[lambda x: x[own]] * 2]
    part = tuple(cut(x) for cut, x in zip(sliced, args, strict=False))
    for names, cut in zip((("hidden_states", "pixel_values"), ("grid_thw",), ("merge_sizes",)),
                          sliced, strict=True):  # fmt: skip
        given |= {name: cut(given[name]) for name in names if name in given}
    return part, given


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs of a tower for several videos as one."""
    out = outputs[0]
    if len(outputs) > 1:
        for name in ("last_hidden_state", "pooler_output"):
            if getattr(out, name, None) is not None:
                setattr(out, name, torch.cat([getattr(one, name) for one in outputs]))
        if getattr(out, "deepstack_features", None):
            planes = zip(*(one.deepstack_features for one in outputs), strict=True)
            out.deepstack_features = [torch.cat(plane) for plane in planes]
    return out
