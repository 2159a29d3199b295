"""Compressors of the stage "cache" that choose at every decode step what is read of the video.

A hook behind one decoder layer's attention computes what the new token looks at, beside any
attention implementation. The method chooses by it, and the caches of the layers behind then hold
the text and the chosen video entries only; the whole prefix waits in a store, so that a later
step may choose differently. At steps that choose nothing new, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.shared.positions import between, contiguous, turn
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens

from .decoding import Prefix, Views, decoder_layers
from .eviction import check_cache
from .probes import heads


class CacheMethod(Protocol):
    """A compressor that chooses at every decode step (see `DyCokeCache`)."""

    name: str
    positions: str
    offload: bool
    shares_prefix: bool

    def points(self, depth: int) -> list[tuple[int, float]]:
        """[(the layer from which on entries are parked, share kept)]."""
        ...

    def step(self, attention: Tensor, budget: int, state: Any) -> tuple[Tensor | None, Any]:
        """The entries (k,) to read by the attention (V,), or None for all; the next state."""
        ...


class CacheChoice:
    """One method at work while answers are written; every use starts clean.

    Args:
        method: of the stage "cache", with `points` and `step`.
        budget: exact number of video entries that the layers behind the choosing one read.

    Raises:
        InputError: a method that cannot choose at decode steps.
    """

    def __init__(self, method: Compressor, budget: int) -> None:
        if not hasattr(method, "step"):
            raise InputError(
                f"{method.name} cannot choose cache entries: use dycoke-cache as it is"
            )
        self.method, self.budget = cast(CacheMethod, method), budget
        self._clear()

    def _clear(self) -> None:
        self.depth = self.first = 0
        self.video = torch.empty(0, dtype=torch.long)
        self.states: list[Any] = []
        self.chosen: list[Tensor | None] = []
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        self.read: list[float] = []

    @contextmanager
    def attached(self, prefix: Prefix, views: Views) -> Iterator[None]:
        """A hook on the layer that chooses, and off again whatever happens.

        Raises:
            InputError: a decoder of one layer or with sliding windows, a prefix that was pruned
                on the way, or several questions for a method that takes one at a time.
        """
        rows, layers = len(views.shift[0]), decoder_layers(views.llm)
        if prefix.alive:
            raise InputError(f"{self.method.name} chooses from a cache that nothing has left yet")
        if rows > 1 and not self.method.shares_prefix:
            raise InputError(f"{self.method.name}: faithful answers one question at a time")
        check_cache(prefix.cache, self.method.name)
        self._clear()
        self.prefix, self.views, self.video = prefix, views, prefix.video
        self.depth = len(layers)
        self.first = self.method.points(self.depth)[-1][0]
        self.states, self.chosen = [None] * rows, [None] * rows
        attention = cast(nn.Module, layers[self.first - 1].self_attn)
        handle = attention.register_forward_hook(self._choose, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self.store.clear()
            del self.prefix, self.views

    def active(self, tokens: VideoTokens) -> VideoTokens:
        """What the last step of the first answer read of the video tokens in the cache."""
        last = self.chosen[0] if self.chosen else None
        return tokens if last is None else tokens.apply(Keep(last))

    def video_per_layer(self) -> list[float]:
        """Video entries in the cache of every layer, in the mean over steps and answers.

        Entries parked where the model is count too, those in main memory do not.
        """
        whole = float(len(self.video))
        mean = sum(self.read) / len(self.read) if self.read else whole
        if self.read and not self.method.offload:
            mean += whole
        return [whole] * self.first + [mean] * (self.depth - self.first)

    def _choose(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any
    ) -> None:
        if self.views.calls < 2:  # the prompts read the whole video
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        looks = self._attention(attention, hidden[:, -1], *kwargs["position_embeddings"])
        before = list(self.chosen)
        for row, look in enumerate(looks):
            self.chosen[row], self.states[row] = self.method.step(
                look, self.budget, self.states[row]
            )
        if any(not _same(a, b) for a, b in zip(before, self.chosen, strict=True)):
            self._load()
        read = [len(self.video) if row is None else len(row) for row in self.chosen]
        self.read.append(sum(read) / len(read))

    def _attention(self, attention: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(rows, V) attention of the new tokens to the video, mean over heads, on the CPU."""
        number = self.first - 1
        keys = cast(Any, self.prefix.cache).layers[number].keys  # (rows, H_kv, S, d)
        width = int(attention.head_dim)  # type: ignore[arg-type]
        query = heads(attention, "q", hidden, width, cos[:, -1], sin[:, -1])  # (H, rows, d)
        query = query.to(keys.dtype).unflatten(0, (keys.shape[1], -1))
        logits = torch.einsum("kgrd,rksd->rkgs", query, keys).float()
        logits = logits * float(attention.scaling)  # type: ignore[arg-type]
        hide = self.views.columns(number)[:, None, None] == 0
        share = torch.softmax(logits.masked_fill(hide, -torch.inf), dim=-1)
        return share.flatten(1, 2).mean(1)[:, self.video.to(share.device)].cpu()

    def _load(self) -> None:
        """Put what was chosen into the caches of the layers from `first` on."""
        length, views = self.prefix.length, self.views
        index = torch.stack([self._entries(row) for row in self.chosen])  # (rows, A)
        turns = None
        if self.method.positions == "contiguous":
            turns = self._turns(index)
        for number in range(self.first, self.depth):
            layer = cast(Any, self.prefix.cache).layers[number]
            if number not in self.store:  # the rows begin alike: one copy serves all
                parts = (layer.keys[0, :, :length], layer.values[0, :, :length])
                keys, values = (
                    p.to("cpu", copy=True) if self.method.offload else p.clone() for p in parts
                )
                self.store[number] = keys, values
            place = index.to(self.store[number][0].device)
            keys, values = (
                p[:, place].transpose(0, 1).to(layer.keys.device) for p in self.store[number]
            )
            later, rest = (p[:, :, views.held[number] :] for p in (layer.keys, layer.values))
            if turns is not None:
                keys, later = turn(keys, *turns[0]), turn(later, *turns[1])
                views.shift[number] = self.shift
            layer.keys = torch.cat([keys, later], dim=2)
            layer.values = torch.cat([values, rest], dim=2)
            views.held[number] = index.shape[1]

    def _entries(self, chosen: Tensor | None) -> Tensor:
        """(A,) the entries of the prefix to read: the text and the chosen video, in order."""
        stays = torch.ones(self.prefix.length, dtype=torch.bool)
        if chosen is not None:
            stays[self.video] = False
            stays[self.video[chosen]] = True
        return torch.nonzero(stays).flatten()

    def _turns(self, index: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """How stored keys turn to contiguous positions, and keys of the text behind by as much
        as their end has moved since the last choice; sets `shift` (rows,).
        """
        places, rotary = self.prefix.places, self.views.rotary
        is_video = torch.zeros(self.prefix.length, dtype=torch.bool)
        is_video[self.video] = True
        new = torch.stack([contiguous(places, row, is_video) for row in index], dim=-2)
        old = places[..., index]
        ends = new.amax(-1) if new.dim() == 2 else new.amax((0, 2))
        self.shift = self.prefix.next_position - 1 - ends
        moved = (self.shift - self.views.shift[self.first])[:, None]
        back = between(rotary.tables(moved), rotary.tables(torch.zeros_like(moved)))
        return between(rotary.tables(old), rotary.tables(new)), back


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one is two or torch.equal(one, two)
