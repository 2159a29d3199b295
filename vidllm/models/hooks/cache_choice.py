"""Compressors of the stage "cache" that choose at every decode step what is read of the video.

Behind one decoder layer's attention the method sees what the new token of every row attends to,
beside any attention implementation. The caches of the layers behind then hold the text and the
chosen video entries only; all of the prompt waits in a store, so that a later step may choose
differently. At steps that choose nothing new, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vidllm.compressors import Compressor
from vidllm.compressors.shared.positions import contiguous, turn
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens

from .batches import gather, pack
from .kv_cache import Prefill, check_entries
from .positions import Rotary
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
    """One method at work while answers are written; every `begin` starts clean.

    Args:
        method: of the stage "cache", with `points` and `step`.
        budgets: exact number of entries that a step reads, of every video; one for all alike.

    Attributes:
        first: the layer from which on caches hold the choice. depth: the decoder's layers.
        chosen: for every video the entries (k,) that the last step read, None for all.
        history: for every step what each row read of the prompt, as numbers among its tokens.
        read: for every step the entries read of a video, in the mean.

    Raises:
        InputError: a method that cannot choose at decode steps.
    """

    def __init__(self, method: Compressor, *budgets: int) -> None:
        if not hasattr(method, "step"):
            raise InputError(
                f"{method.name} cannot choose cache entries: use dycoke-cache as it is"
            )
        self.method, self._given, self.budgets = cast(CacheMethod, method), budgets, list(budgets)
        self.depth = self.first = 0
        self.videos: list[tuple[int, Tensor]] = []
        self.chosen: list[Tensor | None] = []
        self.history: list[list[Tensor]] = []
        self.read: list[float] = []
        self._prefill: Prefill | None = None
        self._store: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(
        self,
        cache: Any,
        valid: list[Tensor],
        shift: list[Tensor],
        videos: Sequence[tuple[int, Tensor]],
        *,
        left: bool = True,
        prefill: Prefill | None = None,
        llm: PreTrainedModel | None = None,
    ) -> None:
        """Behind a prefill, before the first step.

        Args:
            cache: of the prompts. valid: for every layer (B, W) bool, entries that are no padding;
                the caller lets them grow, and a choice changes those of the layers behind it.
            shift: for every layer (B,) how far positions of text have moved back; changed.
            videos: for every video its row and its columns (V,) in the cache.
            left: whether padding stands before the tokens.
            prefill: what all rows begin with, if they do. llm: for contiguous positions, which
                need both.

        Raises:
            InputError: a cache that is not the default one, or a decoder of one layer.
        """
        check_entries(cache, self.method.name)
        self.valid, self.shift, self.left, self.depth = valid, shift, left, len(valid)
        self.first = int(self.method.points(self.depth)[-1][0])
        self.videos = list(videos)
        self.budgets = list(self._given) * (1 if len(self._given) > 1 else len(videos))
        self.states: list[Any] = [None] * len(videos)
        self.chosen, self.history, self.read = [None] * len(videos), [], []
        self._prompt, self._held = valid[0], valid[0].shape[1]  # columns of the prompt, and now
        self._store, self._prefill = {}, prefill
        self._rotary: Rotary | None = None
        if self.method.positions == "contiguous":
            self._rotary = Rotary(cast(PreTrainedModel, llm))

    def close(self) -> None:
        """The answers are there: nothing waits any more."""
        self._store, self._prefill, self._rotary = {}, None, None

    def active(self, tokens: VideoTokens) -> VideoTokens:
        """What the last step of the first answer read of the video tokens in the cache."""
        last = self.chosen[0] if self.chosen else None
        return tokens if last is None else tokens.apply(Keep(last))

    def video_per_layer(self) -> list[float]:
        """Entries of a video in the cache of every layer, in the mean over steps and answers.

        Entries parked where the model is count too, those in main memory do not.
        """
        whole = float(len(self.videos[0][1]))
        mean = sum(self.read) / len(self.read) if self.read else whole
        if self.read and not self.method.offload:
            mean += whole
        return [whole] * self.first + [mean] * (self.depth - self.first)

    def step(
        self, attention: nn.Module, cache: Any, hidden: Tensor, angles: tuple[Tensor, Tensor]
    ) -> None:
        """Behind the choosing layer's attention: choose, and load what was chosen.

        Args:
            attention: of the layer before `first`. hidden: (B, 1, D) that entered it; angles:
                cos and sin (B, 1, d).
        """
        looks, before = self._looks(attention, cache, hidden[:, -1], angles), list(self.chosen)
        for n, look in enumerate(looks):
            self.chosen[n], self.states[n] = self.method.step(look, self.budgets[n], self.states[n])
        changed = any(not _same(a, b) for a, b in zip(before, self.chosen, strict=True))
        if changed:
            self._load(cache)
        if changed or not self.history:
            order = self._prompt.cumsum(1) - 1
            self.history.append([order[r, row] for r, row in enumerate(self._columns())])
        else:
            self.history.append(self.history[-1])
        counts = [
            len(place if some is None else some)
            for (_, place), some in zip(self.videos, self.chosen, strict=True)
        ]
        self.read.append(sum(counts) / len(counts))

    def _looks(
        self, attention: nn.Module, cache: Any, hidden: Tensor, angles: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """For every video (V,) attention of its row's new token, mean over heads, on the CPU."""
        keys = cache.layers[self.first - 1].keys  # (B, H_kv, S, d)
        cos, sin = (t[:, -1] if len(t) > 1 else t[0, -1:] for t in angles)
        width = int(cast(Any, attention).head_dim)
        query = heads(attention, "q", hidden, width, cos, sin).to(keys.dtype)  # (H, B, d)
        query = query.unflatten(0, (keys.shape[1], -1))
        logits = torch.einsum("kgbd,bksd->bkgs", query, keys).float()
        logits = logits * float(cast(Any, attention).scaling)
        hide = ~self.valid[self.first - 1].to(logits.device)[:, None, None]
        share = torch.softmax(logits.masked_fill(hide, -torch.inf), dim=-1).flatten(1, 2).mean(1)
        return [share[row, place.to(share.device)].cpu() for row, place in self.videos]

    def _columns(self) -> list[Tensor]:
        """For every row the columns (n,) of the prompt that the layers behind read."""
        stays = self._prompt.clone()
        for (row, place), some in zip(self.videos, self.chosen, strict=True):
            if some is not None:
                stays[row, place] = False
                stays[row, place[some]] = True
        return [torch.nonzero(row).flatten() for row in stays]

    def _load(self, cache: Any) -> None:
        """Put what was chosen into the caches of the layers from `first` on."""
        index, live = pack(self._columns(), self.left)
        grown = torch.cat([live, self.valid[self.first][:, self._held :]], dim=1)
        turns = None if self._rotary is None else self._turns(index, self._rotary)
        rows = slice(0, 1) if self._prefill is not None else slice(None)  # one copy serves all
        for number in range(self.first, self.depth):
            layer = cache.layers[number]
            if number not in self._store:
                parts = (x[rows, :, : self._prompt.shape[1]] for x in (layer.keys, layer.values))
                keys, values = (
                    p.to("cpu", copy=True) if self.method.offload else p.clone() for p in parts
                )
                self._store[number] = keys, values
            keys, values = (
                gather(x.transpose(1, 2), index).transpose(1, 2).to(layer.keys.device)
                for x in self._store[number]
            )
            later, rest = (x[:, :, self._held :] for x in (layer.keys, layer.values))
            if turns is not None:
                keys, later = turn(keys, *turns[0]), turn(later, *turns[1])
                self.shift[number] = turns[2]
            layer.keys = torch.cat([keys, later], dim=2)
            layer.values = torch.cat([values, rest], dim=2)
            self.valid[number] = grown
        self._held = index.shape[1]

    def _turns(
        self, index: Tensor, rotary: Rotary
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """How stored keys turn to contiguous positions, how keys of the text behind turn by as
        much as their end has moved since the last choice, and how far that is from the start (B,).
        """
        prefill = cast(Prefill, self._prefill)
        is_video = torch.zeros(prefill.length, dtype=torch.bool)
        is_video[prefill.video] = True
        new = torch.stack([contiguous(prefill.places, row, is_video) for row in index], dim=-2)
        ends = new.amax(-1) if new.dim() == 2 else new.amax((0, 2))
        shift = prefill.next_position - 1 - ends
        moved = (shift - self.shift[self.first])[:, None]
        back = rotary.turns(moved, torch.zeros_like(moved))
        return rotary.turns(prefill.places[..., index], new), back, shift


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one is two or torch.equal(one, two)
