"""A hub model's vision tower: what it thinks of its own tokens, and merging inside it.

Signals are attention received, and keys: as `encoders.vision.signals`, for towers that run inside a
model of transformers. The input of one attention layer is caught by a hook, and only the queries
and keys of that layer are computed again, beside whatever attention the tower runs.

Merging is for families whose projector looks at one token alone. The cells that make one token (the
square of a pixel shuffle) merge as one. The tower then runs on fewer tokens, layer by layer; behind
its last layer every original cell gets a copy of what it became, so that the projector finds its
grid whole, and of equal tokens one goes to the decoder. That is exact: equal squares give equal
tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import InTower, tower_part
from vidllm.encoders.vision.merging import MergingRun, tower_layers
from vidllm.errors import InputError
from vidllm.tokens import Merge, VideoTokens
from vidllm.tokens.tower_plan import TowerShape

_LEAST = 2**16  # logits of attention that may be held at once
_CALLS = 4  # of a tower that are remembered: images and videos of one prompt are two


@dataclass
class Inside:
    """What merged inside the tower of one video.

    Attributes:
        tokens: of the video behind the tower, without features. rest: what is left to do.
    """

    tokens: VideoTokens
    rest: Compressor

    def join(self, view: VideoTokens) -> VideoTokens:
        """A video's projected tokens, copies among them, as those that are left."""
        found = self.tokens  # the prompt may lack some of the grid, and so does `view` then
        index = torch.searchsorted(view.position, found.position)
        after = view.apply(Merge(found.source[view.position], index, "size"))
        rows = view.features[index.to(view.features.device)]
        deep = {n.replace("-", "_"): plane for n, plane in found.signals.items()}
        return after.with_features(rows).with_signals(**deep)


@dataclass
class Sight:
    """One call of a vision tower.

    Attributes:
        inputs: its keyword arguments. output: what it gave, with `last_hidden_state`.
        attention: the attention layer that was watched, or None; hidden: (..., N, D), the states
            that entered it; arguments: its other ones, by name.
        signals: what was made of these states, once it was (`read`).
        inside: what merged inside the tower, by each video's first token; method: the one that
            did it, by all its options, or "".
    """

    inputs: Mapping[str, Any]
    output: Any = None
    attention: nn.Module | None = None
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    arguments: Mapping[str, Any] = field(default_factory=dict)
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    inside: Mapping[int, Inside] = field(default_factory=dict)
    method: str = ""

    def read(self, signals: Mapping[str, Tensor]) -> None:
        """Keep what was made of the states in their place: they are wide, and as long as the
        video. Zeros of their shape without storage are left."""
        self.signals, self.arguments = dict(signals), {}
        self.hidden = self.hidden.new_zeros(1).expand(self.hidden.shape)


@contextmanager
def watch(tower: nn.Module, attention: nn.Module | None = None) -> Iterator[deque[Sight]]:
    """Keep the last calls of a tower, and what goes into one of its attention layers.

    Yields:
        The calls, the last one behind; whoever has read them clears them.
    """
    sights: deque[Sight] = deque(maxlen=_CALLS)
    under_way: list[Sight] = []  # none while backward runs a layer a second time

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("pixel_values", "grid_thw"), args, strict=False))
        sights.append(Sight({**named, **kwargs}, attention=attention))
        under_way[:] = [sights[-1]]

    def behind(_module: nn.Module, _args: Any, output: Any) -> None:
        for sight in under_way:
            sight.output = output
        under_way.clear()

    def enters(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for sight in under_way:
            sight.hidden = (args[0] if args else kwargs["hidden_states"]).detach()
            sight.arguments = kwargs

    handles = [
        tower.register_forward_pre_hook(before, with_kwargs=True),
        tower.register_forward_hook(behind),
    ]
    if attention is not None:
        handles.append(attention.register_forward_pre_hook(enters, with_kwargs=True))
    try:
        yield sights
    finally:
        for handle in handles:
            handle.remove()


def queries_keys(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, d) queries and keys of hidden states (..., D), before rotation, in float32."""
    heads = int(getattr(attention, "num_heads", 0) or attention.config.num_attention_heads)
    if hasattr(attention, "qkv"):
        query, key = _split(attention, attention.qkv(hidden))
    else:
        names = ("q_proj", "k_proj") if hasattr(attention, "q_proj") else ("q", "k")
        query, key = (getattr(attention, name)(hidden) for name in names)
    width = query.shape[-1] // heads
    norms: list[Any] = [getattr(attention, f"{name}_norm", None) for name in "qk"]
    sizes = [getattr(norm, "weight", torch.empty(0)).shape[-1] for norm in norms]
    each = sizes == [width, width]
    if norms[0] is not None and not each:  # over all heads at once
        query, key = norms[0](query), norms[1](key)
    query, key = query.unflatten(-1, (heads, -1)), key.unflatten(-1, (-1, width))
    if each:
        query, key = norms[0](query), norms[1](key)
    return query.float(), key.repeat_interleave(heads // key.shape[-2], dim=-2).float()


def _split(attention: Any, fused: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., H * d) out of a fused projection."""
    heads = int(attention.num_heads)
    groups = int(getattr(attention, "num_key_value_heads", heads))
    width = fused.shape[-1] // (heads + 2 * groups)
    query, key, _ = fused.split([heads * width, groups * width, groups * width], dim=-1)
    return query, key


def keys_of(attention: Any, projected: Tensor) -> Tensor:
    """(..., h, d) keys before rotation, of what an attention's `qkv`, `k_proj` or `k` gave."""
    heads = int(attention.num_heads)
    key = _split(attention, projected)[1] if hasattr(attention, "qkv") else projected
    return key.unflatten(-1, (int(getattr(attention, "num_key_value_heads", heads)), -1))


def received(query: Tensor, key: Tensor, states: Tensor) -> Tensor:
    """(n,) attention that keys (n, H, d) get, mean over queries (q, H, d) and heads.

    Some queries at a time: fewer logits than the layer's MLP has activations for all `states`, so
    that the peak of memory stays the tower's own.
    """
    heads, count = query.shape[1], len(key)
    total = key.new_zeros(count)
    most = max(_LEAST, states.numel() // 4) // (heads * count)
    for some in query.split(max(1, most)):
        logits = torch.einsum("qhd,khd->hqk", some * key.shape[-1] ** -0.5, key)
        total += torch.softmax(logits, dim=-1).sum((0, 1))
    return total / (heads * len(query))


def dense_signals(sight: Sight, patches: int) -> dict[str, Tensor]:
    """Signals of a tower that sees frames (F, N, D), its last `patches` tokens being patches.

    Returns:
        "cls-attention" (F, patches): softmax row of the CLS token, or where there is none the
        mean of all rows; mean over heads. "vision-keys" (F, patches, d): mean over heads.
    """
    attention, attended, keys = sight.attention, [], []
    for hidden in sight.hidden.split(1):
        query, key = queries_keys(attention, hidden)
        special = hidden.shape[1] - patches
        rows = query[:, :1] if special else query
        attended.append(received(rows[0], key[0], sight.hidden)[None, special:])
        keys.append(key.mean(2)[:, special:])
    return {"cls-attention": torch.cat(attended), "vision-keys": torch.cat(keys)}


def packed_signals(sight: Sight) -> dict[str, Tensor]:
    """Signals (N,) and (N, d) of a tower without CLS token that packs all frames into (N, D).

    Attention is within a frame and after rotation, where the tower has one; keys are those before.
    """
    attention, kwargs = sight.attention, sight.arguments
    bounds: list[int] = kwargs["cu_seqlens"].tolist()
    states = sight.hidden.flatten(0, -2)
    angles = [t.float()[:, None] for t in kwargs.get("position_embeddings") or ()]
    attended, keys = [], []
    for start, end in pairwise(bounds):
        query, key = q, k = queries_keys(attention, states[start:end])
        if angles:
            cos, sin = (t[start:end] for t in angles)
            q, k = (x * cos + turned(x) * sin for x in (query, key))
        attended.append(received(q, k, sight.hidden))
        keys.append(key.mean(1))
    return {"cls-attention": torch.cat(attended), "vision-keys": torch.cat(keys)}


def fold_square(signals: Mapping[str, Tensor], fold: int) -> dict[str, Tensor]:
    """Patches (F, S * S, ...) to tokens of fold x fold patches, (F * (S / fold)², ...)."""
    planes = {}
    for name, plane in signals.items():
        side = int(plane.shape[1] ** 0.5)
        cells = plane.unflatten(1, (side // fold, fold, side // fold, fold)).mean((2, 4))
        planes[name] = cells.flatten(0, 2)
    return planes


def fold_groups(signals: Mapping[str, Tensor], group: int) -> dict[str, Tensor]:
    """Patches (N, ...) whose tokens are `group` patches in a row each, to (N / group, ...)."""
    return {name: plane.unflatten(0, (-1, group)).mean(1) for name, plane in signals.items()}


def turned(x: Tensor) -> Tensor:
    """What the sines of a rotary position multiply."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def merges_inside(method: Compressor) -> InTower | None:
    """The method that merges inside a vision tower: of a chain only the first does."""
    first = method.methods[0]
    return first if isinstance(first, InTower) and first.tower else None


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
        frames, fold = len(kwargs["pixel_values"]), adapter.fold
        shape = TowerShape(len(self.layers), adapter.special, frames, adapter.cells**2)
        method, budget = plan.method, plan.budget
        weighs = method is not None and method.proportional
        run = MergingRun(plan.steps, shape, adapter.side, fold, weighs, self._watched())
        cells, front = run.cells, run.front
        handles: list[Any] = []
        try:
            for number, layer in enumerate(self.layers):
                for handle in run.attach(number, layer):
                    handles.append(handle)
            out = forward(**kwargs)
        finally:
            for handle in handles:
                handle.remove()
        hidden: Tensor = out.last_hidden_state
        tokens = run.read(hidden)
        if not bool(torch.isfinite(tokens.features).all()):
            raise InputError("the vision tower gives NaN or infinite values for this video")
        if method is not None and budget is not None and len(tokens) > budget:
            tokens, _ = method.run(tokens, budget)
        length, width = adapter.special + adapter.side**2, hidden.shape[-1]
        filled = hidden.new_zeros(frames * length, width)
        special = hidden.flatten(0, 1)[run.front.flatten().to(hidden.device)]
        filled[front.flatten().to(hidden.device)] = special
        copies = tokens.features[tokens.source.clamp(min=0).to(hidden.device)]
        filled[cells.flatten().to(hidden.device)] = copies.reshape(-1, width)
        books = tokens.with_features(tokens.features[:, :0].clone())
        return out, filled.view(frames, length, width), books

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
