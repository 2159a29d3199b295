"""Merging inside a hub model's vision tower that sees frames of one shape.

It is for families whose projector looks at one token alone. The cells that make one token (the
square of a pixel shuffle) merge as one. The tower then runs on fewer tokens, layer by layer; behind
its last layer every original cell gets a copy of what it became, so that the projector finds its
grid whole, and of equal tokens one goes to the decoder. That is exact: equal squares give equal
tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.base import InTower
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.encoders.vision.merging import MergingRun, tower_layers
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

from .vision_tower import Inside, Sight


def runs_twice(module: nn.Module) -> bool:
    """Whether backward will run parts of a module a second time (gradient checkpointing)."""
    if not (torch.is_grad_enabled() and module.training):
        return False
    return any(
        bool(getattr(m, "gradient_checkpointing", False)) or type(m).__name__ == "CheckpointWrapper"
        for m in module.modules()
    )


def refuse_twice(tower: nn.Module, method: Compressor) -> None:
    """Refuse to merge in layers that backward runs a second time.

    Raises:
        InputError: names the method.
    """
    if runs_twice(tower):
        raise InputError(
            f"{method.name} merges inside the vision tower, whose layers gradient "
            "checkpointing runs a second time in backward: call "
            "model.gradient_checkpointing_disable(), or merge behind it with tower=false"
        )


@dataclass(frozen=True)
class TowerPlan:
    """What is to do with one video.

    Attributes:
        method: that merges inside, or None; steps: where. budget: tokens that it leaves, None
            where it knows only what it sees. rest: what acts behind the tower.
    """

    method: InTower | None
    rest: Compressor
    steps: Sequence[Any] = ()
    budget: int | None = None


def plan_in_tower(method: Compressor, clip: VideoTokens, layers: int, special: int) -> TowerPlan:
    """What of a method merges inside a tower of so many layers, and what acts behind it.

    Args:
        clip: the video's tokens without features. special: tokens of a frame before its patches.
    """
    part, rest = tower_part(method, clip)
    if part is None:
        return TowerPlan(None, rest)
    acting, budget = part
    budget = acting.tower_budget(clip) if budget is None else budget
    frames = clip.grid[0]
    goal = None if budget is None else max(budget, frames)  # inside, a frame has one at least
    shape = TowerShape(layers, special, frames, max(1, len(clip) // frames))
    return TowerPlan(acting, rest, acting.tower_steps(shape, goal), budget)


@dataclass
class _Pass:
    """A video that went through a tower: the run, where its cells and special tokens stood before
    it, and the tower's output."""

    run: MergingRun
    cells: Tensor
    front: Tensor
    out: Any = None

    def read(self, hidden: Tensor) -> VideoTokens:
        """The tokens, out of hidden states behind the last layer.

        Raises:
            InputError: numbers that are none.
        """
        tokens = self.run.read(hidden)
        if not bool(torch.isfinite(tokens.features).all()):
            raise InputError("the vision tower gives NaN or infinite values for this video")
        return tokens

    def fill(self, tokens: VideoTokens, hidden: Tensor) -> Tensor:
        """(frames, length, C) hidden states of all cells, each a copy of what it became."""
        device, width, frames = hidden.device, hidden.shape[-1], self.run.shape.frames
        special = hidden.flatten(0, 1)[self.run.front.flatten().to(device)]
        filled = hidden.new_zeros(self.cells.numel() + len(special), width)
        filled[self.front.flatten().to(device)] = special
        copies = tokens.features[tokens.source.clamp(min=0).to(device)]
        filled[self.cells.flatten().to(device)] = copies.reshape(-1, width)
        return filled.view(frames, -1, width)


class TowerMerger:
    """One method inside one tower.

    Attributes:
        videos: for every video of the next call the pictures that are its frames; None when it
            is unknown, and all pictures are the frames of one.
    """

    def __init__(self, adapter: Any, method: Compressor) -> None:
        self.adapter, self.method = adapter, method
        self.tower: Any = adapter.tower
        self.plain = tower_layers(self.tower)
        self.layers = [adapter.merging_layer(layer) for layer in self.plain]
        self.videos: list[Tensor] | None = None
        wants = {want for item in method.methods[1:] for want in (*item.needs, *item.uses)}
        self.watched = bool(wants & {"cls-attention", "vision-keys"})

    def expect(self, clips: Sequence[Any]) -> None:
        """Tell which pictures of the next call are whose frames."""
        cells = self.adapter.cells**2
        first = {int(clip.slots[0]): clip.slots for clip in clips}  # rows may stand there twice
        self.videos = [torch.unique(slots // cells) for slots in first.values()]

    @contextmanager
    def attached(self, sights: deque[Sight]) -> Iterator[None]:
        """Let the tower merge in this block; what it did is noted in the call's `Sight`."""
        own = vars(self.tower).get("forward")
        forward = self.tower.forward
        self.tower.forward = partial(self._forward, forward, sights)
        try:
            yield
        finally:
            if own is None:
                del self.tower.forward
            else:
                self.tower.forward = own

    def _forward(self, forward: Any, sights: deque[Sight], *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = {"pixel_values": args[0], **kwargs}
        count = len(kwargs["pixel_values"])
        every = [torch.arange(count)] if self.videos is None else self.videos
        self.videos, inside, hidden = None, {}, None
        plans = [(pictures, self._plan(len(pictures))) for pictures in every]
        if not any(plan.steps for _, plan in plans):
            return forward(**kwargs)  # bit for bit what it is without us
        refuse_twice(self.tower, self.method)
        others = torch.ones(count, dtype=torch.bool)
        for pictures, _ in plans:
            others[pictures] = False
        out: Any = None
        if bool(others.any()):
            out = forward(**_some(kwargs, others.nonzero().flatten()))
            hidden = self._place(hidden, count, others.nonzero().flatten(), out.last_hidden_state)
        for pictures, plan in plans:
            out, filled, tokens = self._merge(forward, _some(kwargs, pictures), plan)
            hidden = self._place(hidden, count, pictures, filled)
            inside[int(pictures[0]) * self.adapter.cells**2] = Inside(tokens, plan.rest)
        out.last_hidden_state = hidden
        sights[-1].inside, sights[-1].method = inside, repr(self.method)
        return out

    def _plan(self, frames: int) -> TowerPlan:
        grid = (frames, self.adapter.cells, self.adapter.cells)
        clip = VideoTokens.blank(grid, [float(t) for t in range(frames)], frames)
        return plan_in_tower(self.method, clip, len(self.layers), self.adapter.special)

    def _merge(
        self, forward: Any, kwargs: Mapping[str, Any], plan: TowerPlan
    ) -> tuple[Any, Tensor, VideoTokens]:
        """One video through the tower: its output, all cells filled again, and the books."""
        adapter, mask = self.adapter, kwargs.get("patch_attention_mask")
        if mask is not None and not bool(mask.all()):
            raise InputError(
                f"{self.method.name}: frames with padding cannot merge inside the tower: write "
                f"{self.method.name}:tower=false"
            )
        shape = TowerShape(
            len(self.layers), adapter.special, len(kwargs["pixel_values"]), adapter.cells**2
        )
        passed = self._pass(forward, kwargs, plan, shape, adapter.fold)
        hidden: Tensor = passed.out.last_hidden_state
        tokens = passed.read(hidden)
        method, budget = plan.method, plan.budget
        if method is not None and budget is not None and len(tokens) > budget:
            tokens, _ = method.run(tokens, budget)
        books = tokens.with_features(tokens.features[:, :0].clone())
        return passed.out, passed.fill(tokens, hidden), books

    def _pass(
        self,
        forward: Any,
        kwargs: Mapping[str, Any],
        plan: TowerPlan,
        shape: TowerShape,
        fold: int,
    ) -> _Pass:
        """One video through the tower, merging squares of `fold` cells a side."""
        weighs = plan.method is not None and plan.method.proportional
        run = MergingRun(plan.steps, shape, self.adapter.side, fold, weighs, self._watched())
        passed = _Pass(run, run.cells, run.front)
        handles: list[Any] = []
        try:
            for number, layer in enumerate(self.layers):
                for handle in run.attach(number, layer):
                    handles.append(handle)
            passed.out = forward(**kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return passed

    def _watched(self) -> int | None:
        if not self.watched:
            return None
        attention = self.adapter.attention
        found = (n for n, x in enumerate(self.plain) if any(m is attention for m in x.modules()))
        return next(found)

    @staticmethod
    def _place(whole: Tensor | None, count: int, pictures: Tensor, part: Tensor) -> Tensor:
        whole = part.new_zeros(count, *part.shape[1:]) if whole is None else whole
        whole[pictures.to(part.device)] = part
        return whole


def _some(kwargs: Mapping[str, Any], pictures: Tensor) -> dict[str, Any]:
    """The arguments of a tower for some of its pictures."""
    count = len(kwargs["pixel_values"])
    return {
        name: value[pictures.to(value.device)]
        if isinstance(value, Tensor) and value.dim() and len(value) == count
        else value
        for name, value in kwargs.items()
    }


class _Handles:
    """Several hooks that go together."""

    def __init__(self, *handles: Any) -> None:
        self.handles = handles

    def remove(self) -> None:
        """All of them."""
        for handle in self.handles:
            handle.remove()


class _Normed(nn.Module):
    """Queries and keys of an attention layer behind its own norms."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads = int(attention.num_heads)
        self.q_proj, self.k_proj = attention.q_norm, attention.k_norm


class MaskedLayer:
    """A layer whose attention takes a mask while the layer does not hand one on (InternVL's).

    What `MergingRun` does to a layer of SigLIP, it does to this one by the same names.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.attention = _Normed(self.layer.attention)
        self.mlp, self.layer_norm2 = self.layer.mlp, self.layer.layernorm_after
        self.register_forward_hook = self.layer.register_forward_hook

    def register_forward_pre_hook(self, hook: Any, *, with_kwargs: bool = True) -> _Handles:
        """The mask that `hook` hands to the layer goes to its attention."""
        held: list[Tensor | None] = [None]

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            held[0], found = None, hook(module, args, kwargs)
            if found is None:
                return None
            args, kwargs = found
            held[0] = cast(Tensor | None, kwargs.get("attention_mask"))
            return args, {k: v for k, v in kwargs.items() if k != "attention_mask"}

        def inside(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return None if held[0] is None else (args, {**kwargs, "attention_mask": held[0]})

        return _Handles(
            self.layer.register_forward_pre_hook(before, with_kwargs=with_kwargs),
            self.layer.attention.register_forward_pre_hook(inside, with_kwargs=True),
        )
