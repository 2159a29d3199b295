"""A hub model's vision tower: what it thinks of its own tokens, and merging inside it.

Signals are attention received, and keys: as `encoders.vision.signals`, for towers that run inside a
model of transformers. The input of one attention layer is caught by a hook, and only the queries
and keys of that layer are computed again, beside whatever attention the tower runs.

How methods merge inside is in `tower_merger`, `packed_tower` and `pooled_tower`; what they did is
noted in a tower's `Sight`.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.tokens import Merge, VideoTokens

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


def fold_parts(
    signals: Mapping[str, Tensor], counts: list[int], groups: Sequence[int]
) -> dict[str, Tensor]:
    """As `fold_groups`, of parts of `counts` patches with a group each."""
    folded = {}
    for name, plane in signals.items():
        parts = zip(plane.split(counts), groups, strict=True)
        folded[name] = torch.cat([part.unflatten(0, (-1, group)).mean(1) for part, group in parts])
    return folded


def fold_fours(
    signals: Mapping[str, Tensor], counts: list[int], grids: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Frames of `counts` patches, on `grids` (h, w) each, to tokens of 2 x 2 patches."""
    folded = {}
    for name, plane in signals.items():
        frames = [
            frame.unflatten(0, (h // 2, 2, w // 2, 2)).mean((1, 3)).flatten(0, 1)
            for frame, (h, w) in zip(plane.split(counts), grids, strict=True)
        ]
        folded[name] = torch.cat(frames)
    return folded


def turned(x: Tensor) -> Tensor:
    """What the sines of a rotary position multiply."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


class VideoCaller(Protocol):
    """Who tells a tower's calls for videos from those for pictures, which no method works on.

    Attributes:
        adapter: of the model. call: the arguments of `get_video_features`, by name, while it is
            under way and its tower was not called yet; else None.
    """

    adapter: Any
    call: Mapping[str, Any] | None


@contextmanager
def calls_for_videos(caller: VideoCaller) -> Iterator[None]:
    """Note in this block when the model makes features of videos."""
    core = caller.adapter.core
    encode = core.get_video_features
    names = inspect.signature(encode)

    @wraps(encode)
    def told(*args: Any, **kwargs: Any) -> Any:
        bound = dict(names.bind_partial(*args, **kwargs).arguments)
        caller.call = bound | bound.pop("kwargs", {})
        try:
            return encode(*args, **kwargs)
        finally:
            caller.call = None

    with instead(core, "get_video_features", told):
        yield


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object in the place of its class's."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
