"""Merging inside a vision transformer of transformers, by hooks on its encoder layers.

Tokens merge before a layer or, as ToMe does (arXiv 2210.09461), between its attention and its
MLP; later layers see fewer. Attention is proportional: the logarithm of a token's size is added
to the logits, in an additive mask that SDPA and eager attention take. CLS and register tokens
never merge. Which tokens merge is the compressor's decision (`vidllm.tokens.tower_plan.TowerStep`).

The MLP of a layer runs on the merged tokens only. As a layer adds its MLP to what went in, its
output is put back to the merged tokens' representatives, and the merged tokens are added there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vidllm.errors import InputError, WorkError
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from .signals import Watch

#: Attention of transformers that takes an additive mask.
ATTENTION: tuple[str, ...] = ("sdpa", "eager")
_CHUNK = 8  # rows whose full attention map is held at once

#: What is added to the tokens of each row of a clip when rows join (TempMe's embedding of clips):
#: from the number of the join and of the rows that it joins (R, C), or None for nothing.
RowEmbedding = Callable[[int, int], Tensor | None]


def blank(frames: int, side: int) -> VideoTokens:
    """The tokens of a clip of side² tokens a frame, without features or true seconds."""
    return VideoTokens.blank((frames, side, side), [float(t) for t in range(frames)], frames)


def tower_layers(model: nn.Module) -> list[nn.Module]:
    """The encoder layers of a vision transformer, in order."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "mlp") and any(hasattr(part, "k_proj") for part in module.children())
    ]


def _part(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module):
            return found
    raise InputError(
        f"a layer of type {type(layer).__name__} has no {' or '.join(names)}: this tower cannot "
        "merge inside; compress its output (option tower=false)"
    )


class MergingRun:
    """One clip on its way through a tower; hooks call it, `read` gives what came out.

    Attributes:
        tokens: what is left of the clip, features included once a step has run. Every token
            holds fold² cells, which stay neighbours.
        rows: (T,) the row of the batch that every frame is in.
    """

    def __init__(
        self,
        steps: Sequence[TowerStep],
        shape: TowerShape,
        side: int,
        fold: int,
        proportional: bool,
        watched: int | None,
        embedding: RowEmbedding | None = None,
    ) -> None:
        self.embedding, self.joins = embedding, 0
        self.shape, self.proportional, self.watched = shape, proportional, watched
        self.squares = fold * fold
        frames, cells, part = shape.frames, side * side, side // fold
        self.tokens = blank(frames, part)
        self.rows = torch.arange(frames)
        # Where things are in the hidden states (rows * length, C), flat.
        self.rect = (frames, shape.special + cells)
        raster = torch.arange(frames * cells).view(frames, part, fold, part, fold)
        raster = raster.permute(0, 1, 3, 2, 4).reshape(-1, self.squares)
        self.cells = raster + (raster // cells + 1) * shape.special
        self.front = self.rows[:, None] * self.rect[1] + torch.arange(shape.special)
        self.mask: Tensor | None = None
        self.merged = False
        self.steps: dict[tuple[int, str], list[TowerStep]] = {}
        for step in steps:
            self.steps.setdefault((step.layer, step.place), []).append(step)
        self.held: tuple[Tensor, Tensor, Tensor] | None = None

    def attach(self, number: int, layer: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks of one layer, as far as something is to be done there."""
        attention = _part(layer, "self_attn", "attention")
        seen = Watch(attention)
        yield layer.register_forward_pre_hook(self._enter(number), with_kwargs=True)
        if number == self.watched:
            yield _part(attention, "q_proj").register_forward_hook(seen.hook("q"))
        if number == self.watched or (number, "attention") in self.steps:
            yield _part(attention, "k_proj").register_forward_hook(seen.hook("k"))
            norm = _part(layer, "layer_norm2", "norm2")
            yield norm.register_forward_pre_hook(self._between(number, seen))
        if (number, "attention") in self.steps:
            yield _part(layer, "mlp").register_forward_hook(self._widen)
            yield layer.register_forward_hook(self._leave)

    def read(self, hidden: Tensor) -> VideoTokens:
        """The tokens of the clip, their features out of the tower's last hidden states."""
        return self.tokens.with_features(self._unpack(hidden)[1])

    def _unpack(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Special tokens (T * special, C) and tokens (L, fold² C) of hidden states."""
        if hidden.shape[:2] != self.rect:
            raise WorkError(f"the tower gives {tuple(hidden.shape)} where {self.rect} is due")
        flat = hidden.flatten(0, 1)
        front, cells = (index.flatten().to(flat.device) for index in (self.front, self.cells))
        return flat[front], flat[cells].view(len(self.cells), -1)

    def _pack(self, flat: Tensor) -> Tensor:
        """Hidden states (rows, length, C) of special tokens and cells (S + L * fold², C)."""
        index = torch.cat([self.front.flatten(), self.cells.flatten()]).to(flat.device)
        empty = flat.new_zeros(self.rect[0] * self.rect[1], flat.shape[1])
        return empty.index_copy(0, index, flat).view(*self.rect, -1)

    def _decide(
        self, steps: Sequence[TowerStep], front: Tensor, keys: Tensor | None
    ) -> tuple[bool, Tensor]:
        """Carry steps out on the tokens; whether anything changed, and the special tokens."""
        before, changed = len(self.tokens), False
        for step in steps:
            seen = self.tokens if keys is None else self.tokens.with_signals(vision_keys=keys)
            selections = step.decide(seen)
            joins = step.rows is not None and not torch.equal(step.rows, self.rows)
            if joins:  # compared before the place is added, as TempMe's authors do
                front = self._embed_rows(front)
            for selection in selections:
                self.tokens = self.tokens.apply(selection)
            if step.rows is not None and joins:
                self.rows, changed = step.rows, True
        return changed or len(self.tokens) < before, front

    def _embed_rows(self, front: Tensor) -> Tensor:
        """Tell every token, and the special ones, in which row of its clip it stands."""
        rows = (int(self.rows.max()) + 1) // self.shape.clips
        added = None if self.embedding is None else self.embedding(self.joins, rows)
        self.joins += 1
        if added is None:
            return front
        features = self.tokens.features
        place = added[(self.rows % rows).to(added.device)].to(features.dtype)
        own = place[self.tokens.frame.to(place.device)].repeat(1, self.squares)
        self.tokens = self.tokens.with_features(features + own)
        return front + place.repeat_interleave(self.shape.special, dim=0)

    def _lay_out(self, like: Tensor) -> None:
        """Place the tokens in rows of one length, special tokens of a row first."""
        special, row = self.shape.special, self.rows[self.tokens.frame]
        count = int(self.rows.max()) + 1
        frames = torch.bincount(self.rows, minlength=count)
        ahead, own = frames * special, torch.bincount(row, minlength=count)
        length = int((ahead + own * self.squares).max())
        order = torch.argsort(row, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - (own.cumsum(0) - own)[row[order]]
        first = row * length + ahead[row] + place * self.squares
        self.cells = first[:, None] + torch.arange(self.squares)
        nth = torch.arange(len(self.rows)) - (frames.cumsum(0) - frames)[self.rows]
        self.front = (self.rows * length + nth * special)[:, None] + torch.arange(special)
        self.rect, self.merged = (count, length), True
        bias = torch.full((count * length,), -torch.inf)
        bias[self.front.flatten()] = 0.0
        size = self.tokens.size if self.proportional else torch.ones_like(self.tokens.size)
        bias[self.cells] = size.log()[:, None].expand(-1, self.squares)
        plain = not bool(bias.any())
        self.mask = None if plain else bias.view(count, 1, 1, length).to(like.device, like.dtype)

    def _enter(self, number: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            named = "hidden_states" in kwargs
            hidden: Tensor = kwargs["hidden_states"] if named else args[0]
            steps = self.steps.get((number, "before"))
            if steps:
                front, cells = self._unpack(hidden)
                self.tokens = self.tokens.with_features(cells)
                changed, front = self._decide(steps, front, None)
                if changed:
                    self._lay_out(hidden)
                    rows = self.tokens.features.reshape(-1, hidden.shape[-1])
                    hidden = self._pack(torch.cat([front, rows]))
            if not self.merged:
                return None  # bit for bit the plain tower
            mask = self.mask
            if mask is not None:
                mask = mask.expand(-1, -1, hidden.shape[1], -1)
            kwargs = {**kwargs, "attention_mask": mask}
            if named:
                return args, {**kwargs, "hidden_states": hidden}
            return (hidden, *args[2:]), kwargs

        return hook

    def _between(self, number: int, seen: Watch) -> Any:
        """Behind the attention: read it, and hand the MLP merged tokens only."""

        def hook(_norm: nn.Module, args: tuple[Any, ...]) -> Any:
            key = seen.caught.pop("k").unflatten(-1, (seen.heads, -1))
            if number == self.watched:
                query = seen.caught.pop("q").unflatten(-1, (seen.heads, -1))
                self.tokens = self.tokens.with_signals(**self._signals(query, key))
            steps = self.steps.get((number, "attention"))
            if not steps:
                return None
            hidden: Tensor = args[0]
            front, cells = self._unpack(hidden)
            self.tokens = self.tokens.with_features(cells)
            index = torch.full((self.tokens.total,), -1)
            index[self.tokens.position] = torch.arange(len(self.tokens))
            was = self.cells
            if not self._decide(steps, front, self._unpack(key.mean(2))[1])[0]:
                return None
            stays = was[index[self.tokens.position]]
            places = torch.cat([self.front.flatten(), stays.flatten()]).to(hidden.device)
            rows = torch.cat([front, self.tokens.features.reshape(-1, hidden.shape[-1])])
            self.held = (hidden, places, rows)
            return (rows[None],)

        return hook

    def _widen(self, _mlp: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if self.held is None:
            return None
        hidden, places, _ = self.held
        flat = torch.zeros_like(hidden).flatten(0, 1)
        return flat.index_copy(0, places, output[0].to(flat.dtype)).view_as(hidden)

    def _leave(self, _layer: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if self.held is None:
            return None
        hidden, places, rows = self.held
        self.held = None
        added = (output - hidden).flatten(0, 1)[places]
        self._lay_out(hidden)
        return self._pack(rows + added)

    def _signals(self, query: Tensor, key: Tensor) -> dict[str, Tensor]:
        """See `signals.Watch.read`; a merged token counts as one of those behind it."""
        device, special = key.device, self.shape.special
        size = self.tokens.size if self.proportional else torch.ones_like(self.tokens.size)
        flat = torch.zeros(self.rect[0] * self.rect[1])
        flat[self.cells] = size[:, None].expand(-1, self.squares)
        cells = flat.view(self.rect).to(device)
        if special:  # the CLS tokens of a row stand at its head
            most = int(torch.bincount(self.rows).max()) * special
            ask, query = torch.zeros_like(cells)[:, :most:special], query[:, :most:special]
            ask[self.rows, (self.front[:, 0] % self.rect[1]) // special] = 1.0
        else:
            ask = cells
        bias = None if self.mask is None else self.mask[:, 0, 0].float()
        attention = received(query, key, ask / ask.sum(1, keepdim=True), bias)
        attention = attention / cells.clamp(min=1.0)
        return {
            "cls_attention": self._unpack(attention[..., None])[1].mean(1),
            "vision_keys": self._unpack(key.float().mean(2))[1]
            .unflatten(1, (self.squares, -1))
            .mean(1),
        }


def received(query: Tensor, key: Tensor, ask: Tensor, bias: Tensor | None) -> Tensor:
    """Attention that every token gets, mean over heads: (R, n).

    Args:
        query: (R, q, H, d). key: (R, n, H, d). ask: (R, q) weights of the queries, 1 a row in all.
        bias: (R, n) added to the logits, or None.
    """
    parts = []
    for some in torch.arange(len(key), device=key.device).split(_CHUNK):
        asking = query[some].float() * query.shape[-1] ** -0.5
        logits = torch.einsum("rqhd,rkhd->rhqk", asking, key[some].float())
        if bias is not None:
            logits = logits + bias[some][:, None, None]
        looked = torch.softmax(logits, dim=-1).mean(1)
        parts.append((looked * ask[some][..., None].to(looked)).sum(1))
    return torch.cat(parts)


def _one_token(_head: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
    """A pooling head pools one token, without a mask: nobody reads what it gives."""
    return (args[0][:, :1],), {}


@contextmanager
def merging(
    model: nn.Module,
    steps: Sequence[TowerStep],
    shape: TowerShape,
    side: int,
    *,
    fold: int = 1,
    proportional: bool = True,
    watched: int | None = None,
    embedding: RowEmbedding | None = None,
) -> Iterator[MergingRun]:
    """Let the next forward pass of `model` merge tokens between its layers.

    The pass must take the frames of one clip as its batch, or of `shape.clips` clips one after
    the other; it may train. Nothing is left on the model after the block, also after an exception.

    Args:
        model: a SigLIP, CLIP or DINOv2 vision model of transformers.
        steps: what happens where; without any, the pass is the plain one bit for bit.
        shape, side: of the clip, and the cells along a side of a frame.
        fold: side of the square of cells that merges as one token.
        proportional: add log sizes to the attention logits.
        watched: the layer whose attention and keys are read into the tokens' signals.
        embedding: added to the tokens of the rows that a join puts together.

    Raises:
        InputError: an attention implementation without additive masks, or unknown layers.
    """
    kind = str(getattr(model.config, "_attn_implementation", "eager"))
    if steps and kind not in ATTENTION:
        raise InputError(
            f"merging inside a tower needs attention that takes a mask, not {kind}: load the "
            f"model with attn={' or '.join(ATTENTION)}, or give the compressor tower=false"
        )
    run = MergingRun(steps, shape, side, fold, proportional, watched, embedding)
    handles: list[RemovableHandle] = []
    try:
        head = getattr(model, "head", None)
        if steps and isinstance(head, nn.Module):
            handles.append(head.register_forward_pre_hook(_one_token, with_kwargs=True))
        for number, layer in enumerate(tower_layers(model)):
            for handle in run.attach(number, layer):
                handles.append(handle)  # one by one: an attach that fails leaves its own as well
        yield run
    finally:
        for handle in handles:
            handle.remove()
