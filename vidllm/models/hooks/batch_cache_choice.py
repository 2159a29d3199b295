"""The stage "cache" with a choice at every decode step (DyCoke), for batches of a hub model.

As `models.cache_choice`: behind one layer's attention the method looks at what the new token of
every row attends to, and the caches of the layers behind then hold the text and the chosen video
entries only. All of the prompt waits in a store, so that a later step may choose differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError

from .probes import heads
from .rows import gather, pack


class Choice:
    """One method on one cache.

    Args:
        method: of the stage "cache", with `points` and `step`. layers: of the decoder.
        cache: behind the prefill. valid: for every layer (B, W) bool, entries that are no
            padding; changed when entries leave.
        videos: for every video its row and its columns (V,) in the cache.
        budgets: for every video how many entries a step reads.
        left: whether padding stands before the tokens.

    Raises:
        InputError: a cache that is not the default one, or the same prompt in several rows.
    """

    def __init__(
        self,
        method: Compressor,
        layers: nn.ModuleList,
        cache: Any,
        valid: list[Tensor],
        videos: Sequence[tuple[int, Tensor]],
        budgets: Sequence[int],
        left: bool,
    ) -> None:
        if any(type(layer).__name__ != "DynamicLayer" for layer in cache.layers):
            raise InputError(f"{method.name} needs the default dynamic cache")
        self.method = cast(Any, method)
        self.valid, self.left = valid, left
        self.videos, self.budgets = list(videos), list(budgets)
        self.depth = len(layers)
        self.first = int(self.method.points(self.depth)[-1][0])
        self.width = valid[0].shape[1]
        self.states: list[Any] = [None] * len(self.videos)
        self.chosen: list[Tensor | None] = [None] * len(self.videos)
        self.held = self.width
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        #: For every step what each row reads of the prompt, as numbers among its tokens.
        self.history: list[list[Tensor]] = []

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
        if any(not _same(a, b) for a, b in zip(before, self.chosen, strict=True)):
            self._load(cache)
        rows = self._read()
        order = self.valid[0][:, : self.width].cumsum(1) - 1
        self.history.append([order[r, row] for r, row in enumerate(rows)])

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

    def _read(self) -> list[Tensor]:
        """For every row the columns of the prompt that the layers behind read."""
        stays = self.valid[0][:, : self.width].clone()
        for (row, place), chosen in zip(self.videos, self.chosen, strict=True):
            if chosen is not None:
                stays[row, place] = False
                stays[row, place[chosen]] = True
        return [torch.nonzero(row).flatten() for row in stays]

    def _load(self, cache: Any) -> None:
        index, live = pack(self._read(), self.left)
        grown = torch.cat([live, self.valid[self.first][:, self.held :]], dim=1)
        for number in range(self.first, self.depth):
            layer = cache.layers[number]
            if number not in self.store:
                parts = (layer.keys[:, :, : self.width], layer.values[:, :, : self.width])
                keys, values = (
                    p.to("cpu", copy=True) if self.method.offload else p.clone() for p in parts
                )
                self.store[number] = keys, values
            for name, whole in zip(("keys", "values"), self.store[number], strict=True):
                now = getattr(layer, name)
                some = gather(whole.transpose(1, 2), index).transpose(1, 2).to(now.device)
                setattr(layer, name, torch.cat([some, now[:, :, self.held :]], dim=2))
            self.valid[number] = grown
        self.held = index.shape[1]


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return torch.equal(one, two)
