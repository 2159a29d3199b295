"""One video on its way through a vision tower that packs its frames in one row, and merges there.

A token is a unit of patches that the projector puts together (2 x 2, of one frame or of two); units
merge as a whole, so that the projector gets whole groups. Frames stay segments of the row, or what
a method joins of them; windows (Qwen2.5-VL) stay those of the representatives, and windows at the
same place of joined frames are one. Rotary positions of a merged unit are its representative's.
Attention is proportional, the logarithm of a token's size on the logits, where the method has it;
segments of one length attend together.

Behind the projector every original unit gets a copy of what it became, and of equal ones one goes
to the decoder, as in `tower_merger`. DeepStack's planes, which the tower makes on its way, are
averaged as tokens that merge later are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from vidllm.encoders.vision.merging import received
from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, VideoTokens
from vidllm.tokens.tower_plan import TowerStep

from .tower_merger import TowerPlan
from .vision_tower import keys_of, queries_keys, turned

_ATTENTION = "vidllm-packed"


@dataclass(frozen=True)
class Segments:
    """Which places of a packed row attend to each other.

    Attributes:
        index: for every length n that occurs, (S, n) places of the S segments of that length.
        back: (N,) where each place stands in the rows of all of `index`; None for where it is.
        bias: (N,) added to the logits of every place as a key, or None.
        eager: products and a softmax in float32, not `scaled_dot_product_attention`.
    """

    index: Sequence[Tensor]
    back: Tensor | None
    bias: Tensor | None
    eager: bool

    @classmethod
    def of(cls, segment: Tensor, bias: Tensor | None, eager: bool, device: Any) -> Segments:
        """From the segment (N,) of every place; the places of one stand side by side."""
        counts = torch.unique_consecutive(segment, return_counts=True)[1]
        firsts = counts.cumsum(0) - counts
        index = [firsts[counts == n][:, None] + torch.arange(n) for n in counts.unique().tolist()]
        back = torch.argsort(torch.cat([some.flatten() for some in index]))
        plain = torch.equal(back, torch.arange(len(back)))
        return cls(
            [some.to(device) for some in index],
            None if plain else back.to(device),
            bias,
            eager,
        )

    def _some(self, x: Tensor, some: Tensor) -> Tensor:
        """(S, n, H, d) of (N, H, d), without a copy where all segments are of one length."""
        if len(self.index) == 1:
            return x.unflatten(0, some.shape)
        return x.index_select(0, some.flatten()).unflatten(0, some.shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(N, H, d) out of queries (H, N, d), keys and values (h, N, d)."""
        groups = query.shape[0] // key.shape[0]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=0) for x in (key, value))
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        parts = []
        for some in self.index:
            q, k, v = (self._some(x, some).transpose(1, 2) for x in (query, key, value))
            mask = None if self.bias is None else self.bias[some][:, None, None].to(q.dtype)
            if self.eager:
                logits = q @ k.mT * scale
                logits = logits if mask is None else logits + mask
                out = torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype) @ v
            else:
                if mask is not None:
                    mask = mask.expand(-1, 1, q.shape[2], -1)
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            parts.append(out.transpose(1, 2).flatten(0, 1))
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out if self.back is None else out.index_select(0, self.back)


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None = None,
    *,
    segments: Segments,
    scaling: float,
    **_options: Any,
) -> tuple[Tensor, None]:
    """An attention of transformers, (1, H, N, d) to (1, N, H, d), that is told its segments."""
    return segments.attend(query[0], key[0], value[0], scaling)[None], None


AttentionInterface.register(_ATTENTION, _attention)


@dataclass(frozen=True)
class PackedFacts:
    """What a family tells of the row of one video.

    Attributes:
        unit: patches of a token. frames: of the tower that a token is made of.
        windows: (T * H * W,) long, the window of its frame that every token is in, numbered in the
            tower's order; None where all layers see whole frames. full: layers that do so beside
            windows.
        present: (V,) long, ascending, tokens that go to the decoder; None for all. The others do
            not enter a tower that merges.
    """

    unit: int
    frames: int = 1
    windows: Tensor | None = None
    full: Sequence[int] = ()
    present: Tensor | None = None

    def clip(self, grid: tuple[int, int, int]) -> VideoTokens:
        """The tokens of a grid that go to the decoder, without features or true seconds."""
        every = VideoTokens.blank(grid, [float(t) for t in range(grid[0])], grid[0])
        return every if self.present is None else every.apply(Keep(self.present))


class PackedRun:
    """One video on its way through a packed tower; hooks call it.

    Attributes:
        tokens: what is left, features included once a step has run; a token is `unit` patches.
        rows: (T,) the segment that every frame is in.
        cells: (L, unit) long, where the patches of every token stand in the packed row.
    """

    def __init__(
        self,
        tower: Any,
        plan: TowerPlan,
        grid: tuple[int, int, int],
        facts: PackedFacts,
        watched: int,
    ) -> None:
        self.config, self.facts = tower.config, facts
        self.proportional = plan.method is not None and plan.method.proportional
        self.how = str(self.config._attn_implementation)
        self.rows = torch.arange(grid[0])
        self.watched, self.merged = watched, False
        self.steps: dict[tuple[int, str], list[TowerStep]] = {}
        for step in plan.steps:
            self.steps.setdefault((step.layer, step.place), []).append(step)
        self.key: Tensor | None = None
        self.held: tuple[Tensor, Tensor | None] | None = None
        self.deep: list[Tensor] = []
        self._turns: tuple[Any, Any] = (None, None)
        self.tokens = replace(facts, present=None).clip(grid)
        self._lay_out()
        self.plain = self.cells
        self.fewer = facts.present is not None and bool(plan.steps)
        if self.fewer:
            self.tokens = facts.clip(grid)

    # Where things stand.

    def _lay_out(self) -> None:
        """Segments one after the other, in them windows, in these tokens in their order."""
        facts, tokens = self.facts, self.tokens
        frames = torch.arange(facts.unit) // (facts.unit // facts.frames)
        segment = self.rows[tokens.frame][:, None] * facts.frames + frames
        window = segment if facts.windows is None else facts.windows[tokens.position][:, None]
        windows = segment * (int(window.max()) + 1) + window
        order = torch.argsort(windows.flatten(), stable=True)
        self.cells = torch.argsort(order).view_as(segment)
        self.order = order
        self._segment = {False: segment.flatten()[order], True: windows.flatten()[order]}
        self._segments: dict[bool, Segments] = {}

    def segments(self, number: int, device: Any) -> Segments:
        """Those of a layer."""
        windowed = self.facts.windows is not None and number not in self.facts.full
        if windowed not in self._segments:
            size = self._sizes()
            bias = size.log().to(device) if self.proportional and bool((size > 1).any()) else None
            self._segments[windowed] = Segments.of(
                self._segment[windowed], bias, self.how == "eager", device
            )
        return self._segments[windowed]

    def _sizes(self) -> Tensor:
        """(N,) of the tokens that the patches of the row belong to."""
        return self.tokens.size.repeat_interleave(self.facts.unit)[self.order]

    def _unpack(self, hidden: Tensor) -> Tensor:
        """Patches of the row (N, C) to tokens (L, unit * C)."""
        if self.facts.frames == 1:  # those of a token stand side by side
            rows = hidden.reshape(len(self.cells), -1)
            return rows.index_select(0, self._places(self.cells).to(hidden.device))
        rows = hidden.index_select(0, self.cells.flatten().to(hidden.device))
        return rows.view(len(self.cells), -1)

    def _pack(self, features: Tensor) -> Tensor:
        """Tokens (L, unit * C) to patches of the row (N, C)."""
        if self.facts.frames == 1:
            order = self._places(self.order.view(-1, self.facts.unit)).to(features.device)
            return features.index_select(0, order).view(len(self.order), -1)
        rows = features.reshape(len(self.order), -1)
        return rows.index_select(0, self.order.to(rows.device))

    # On the way.

    def attach(self, number: int, layer: Any) -> Iterator[Any]:
        """Hooks of one layer."""
        attention = _part(layer, "attn", "self_attn")
        if attention.config is not self.config:  # it would not be told its segments
            raise WorkError("a layer of the vision tower has another config than the tower")
        yield layer.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
        if number == self.watched:
            hook = partial(self._watch, number)
            yield attention.register_forward_pre_hook(hook, with_kwargs=True)
        if (number, "attention") in self.steps:
            yield _part(attention, "qkv", "k_proj", "k").register_forward_hook(
                partial(self._note, attention)
            )
            norm = _part(layer, "norm2", "layer_norm2")
            yield norm.register_forward_pre_hook(partial(self._between, number))
            yield layer.mlp.register_forward_hook(self._behind_mlp)
            yield layer.register_forward_hook(self._leave)

    def _decide(self, steps: Sequence[TowerStep], keys: Tensor | None) -> bool:
        """Carry steps out; whether anything changed."""
        before, changed = len(self.tokens), False
        for step in steps:
            seen = self.tokens if keys is None else self.tokens.with_signals(vision_keys=keys)
            for selection in step.decide(seen):
                self.tokens = self.tokens.apply(selection)
            if step.rows is not None and not torch.equal(step.rows, self.rows):
                self.rows, changed = step.rows, True
        return changed or len(self.tokens) < before

    def _changed(self) -> Tensor:
        """Lay out anew; (N,) where in the plain row the representatives' patches stood."""
        self.merged, self._turns = True, (None, None)
        self._lay_out()
        # Not the setter, which would tell parts of the config and warn of what it does not know.
        self.config._attn_implementation_internal = _ATTENTION
        self.stood = self.plain[self.tokens.position].flatten()[self.order]
        return self.stood

    def _enter(self, number: int, _layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        named = "hidden_states" in kwargs
        hidden: Tensor = kwargs["hidden_states"] if named else args[0]
        if self.fewer:  # at the first layer
            self.fewer = False
            hidden = hidden.index_select(0, self._changed().to(hidden.device))
        steps = self.steps.get((number, "before"))
        if steps:
            self.tokens = self.tokens.with_features(self._unpack(hidden))
            if self._decide(steps, None):
                self._changed()
                hidden = self._pack(self.tokens.features)
        if not self.merged:
            return None  # bit for bit the plain tower
        ends = torch.tensor([0, len(hidden)], dtype=torch.int32, device=hidden.device)
        kwargs = {**kwargs, "cu_seqlens": ends, "max_seqlen": None}
        kwargs["segments"] = self.segments(number, hidden.device)
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = self._turn(kwargs["position_embeddings"])
        if named:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    def _turn(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Rotary positions (N, d) of the representatives, out of those of the plain row."""
        if self._turns[0] is not given:
            found = tuple(x.index_select(0, self.stood.to(x.device)) for x in given)
            self._turns = (given, found)
        return self._turns[1]

    def _note(self, attention: Any, _part: Any, _args: Any, output: Tensor) -> None:
        self.key = keys_of(attention, output).mean(1)

    def _between(self, number: int, _norm: Any, args: tuple[Any, ...]) -> Any:
        """Behind the attention: merge by its keys, and hand the MLP merged tokens only."""
        key, self.key = self.key, None
        if key is None:
            raise WorkError("a layer of the vision tower went past its own projection of keys")
        self.tokens = self.tokens.with_features(self._unpack(args[0]))
        if not self._decide(self.steps[number, "attention"], self._unpack(key)):
            return None
        self._changed()
        rows = self._pack(self.tokens.features)
        self.held = (rows, None)
        return (rows,)

    def _behind_mlp(self, _mlp: Any, _args: Any, output: Tensor) -> Tensor | None:
        """The layer adds what an MLP gives to longer states: of nothing, one row; see `_leave`."""
        if self.held is None:
            return None
        self.held = (self.held[0], output)
        return output.new_zeros(1, output.shape[-1])

    def _leave(self, _layer: Any, _args: Any, _output: Any) -> Tensor | None:
        if self.held is None:
            return None
        (rows, added), self.held = self.held, None
        return rows if added is None else rows + added

    def _watch(self, number: int, attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Read a layer's attention and keys; a merged token counts as one of those behind it."""
        states = (args[0] if args else kwargs["hidden_states"]).detach()
        query, key = q, k = queries_keys(attention, states)
        if kwargs.get("position_embeddings") is not None:
            cos, sin = (t.float()[:, None] for t in kwargs["position_embeddings"])
            q, k = (x * cos + turned(x) * sin for x in (query, key))
        size = self._sizes() if self.proportional else torch.ones(len(self.order))
        size, seen = size.to(key.device), key.new_zeros(len(key))
        segments = self.segments(number, key.device)
        for some in segments.index:
            ask = size[some] / size[some].sum(1, keepdim=True)
            bias = None if segments.bias is None else segments.bias[some]
            seen[some] = received(q[some], k[some], ask, bias) / size[some]
        self.tokens = self.tokens.with_signals(
            cls_attention=self._unpack(seen[:, None]).mean(1),
            vision_keys=self._unpack(key.mean(1)).unflatten(1, (self.facts.unit, -1)).mean(1),
        )

    def stack(self, number: int, _merger: Any, _args: Any, output: Tensor) -> Tensor:
        """A plane of DeepStack of what is left; `finish` fills the one of the full length."""
        plane = output.index_select(0, self._places(self.cells).to(output.device))
        self.tokens = self.tokens.with_signals(**{f"deepstack_{number}": plane})
        self.deep.append(output.new_zeros(self.tokens.total, output.shape[-1]))
        return self.deep[-1]

    # Behind the tower.

    def _places(self, cells: Tensor) -> Tensor:
        """(L,) places of tokens where a projector has put the patches of each together."""
        return cells[:, 0] // self.facts.unit

    def finish(self, plan: TowerPlan, _end: Any, _args: Any, output: Tensor) -> Tensor:
        """Behind the projector (or what stands before it): the row as long as it was."""
        folded = len(output) == len(self.tokens)
        places = self._places(self.cells) if folded else self.cells.flatten()
        rows = output.index_select(0, places.to(output.device))
        tokens = self.tokens.with_features(rows.reshape(len(self.tokens), -1))
        if not bool(torch.isfinite(tokens.features).all()):
            raise InputError("the vision tower gives NaN or infinite values for this video")
        if plan.method is not None and plan.budget is not None and len(tokens) > plan.budget:
            tokens, _ = plan.method.run(tokens, plan.budget)
        places = self._places(self.plain) if folded else self.plain.flatten()
        order = torch.argsort(places)
        copies = tokens.source[order if folded else order // self.facts.unit].clamp(min=0)
        for number, plane in enumerate(self.deep):
            stacked = tokens.signals[f"deepstack-{number}"]
            plane.copy_(stacked[copies.to(plane.device)])
        copies = copies if folded else copies * self.facts.unit + order % self.facts.unit
        features = tokens.features.reshape(-1, output.shape[-1])
        self.tokens = tokens.with_features(tokens.features[:, :0].detach().clone())
        return features.index_select(0, copies.to(output.device))


def _part(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))
