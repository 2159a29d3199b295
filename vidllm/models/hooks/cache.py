"""The KV cache behind a prefill, and compressors of the stage "cache", which take tokens out of it.

Some evict for good, between the prompt and the answer (`evict`); a decoder's rotary tables then
close the gaps. Others choose at every decode step what is read of the video (`CacheChoice`): behind
one decoder layer's attention the method sees what the new token of every row attends to, beside any
attention implementation. The caches of the layers behind then hold the text and the chosen video
entries only; all of the prompt waits in a store, so that a later step may choose differently. At
steps that choose nothing new, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from vidllm.compressors import Compressor
from vidllm.compressors.shared.positions import between, contiguous, turn
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens

from .batches import gather, pack
from .pruning import heads


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass
class Prefill:
    """The start of one prompt in the KV cache, for the questions that come behind it.

    Attributes:
        cache: holds P positions, in deep layers fewer where tokens were pruned on the way.
        length: P.
        next_position: where the text goes on, counted in the uncompressed sequence.
        alive: for every decoder layer the positions 0..P-1 that its cache holds, (A,) long;
            empty when all layers hold all of them.
        video: the positions 0..P-1 of video tokens.
        kept: the video tokens that are left after pruning on the way; None without.
        places: (P,) where each of them stands for the rotary embedding, or (3, P) for M-RoPE.
        shift: for every decoder layer how far the positions of what comes next have moved back;
            empty when they have not.
    """

    cache: DynamicCache
    length: int
    next_position: int
    alive: list[Tensor] = field(default_factory=list)
    video: Tensor = field(default_factory=_none)
    kept: VideoTokens | None = None
    places: Tensor = field(default_factory=_none)
    shift: list[int] = field(default_factory=list)

    def without_last(self) -> Prefill:
        """The same but for its last position, whose logits are to be computed."""
        for layer in cast(Any, self.cache).layers:
            layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
        alive = [row[row < self.length - 1] for row in self.alive]
        return replace(
            self,
            length=self.length - 1,
            next_position=self.next_position - 1,
            alive=alive,
            places=self.places[..., : self.length - 1],
        )

    def video_per_layer(self) -> list[int]:
        """Video tokens in the cache of every layer; empty when nothing was pruned on the way."""
        return [int(torch.isin(self.video, alive).sum()) for alive in self.alive]


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model of transformers."""
    return cast(nn.ModuleList, llm.base_model.layers)


def check_entries(cache: Any, name: str) -> None:
    """Refuse caches whose entries are not those of the whole prompt, one a token.

    Args:
        name: of the method that takes entries out.

    Raises:
        InputError: a layer with a sliding window, or of another kind than the default.
    """
    layers = list(getattr(cache, "layers", ()))
    if any(getattr(layer, "is_sliding", False) for layer in layers):
        raise InputError(
            f"{name} needs a decoder that attends to the whole prompt in every layer: this one "
            "has sliding windows"
        )
    if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        raise InputError(f"{name} needs the default dynamic cache")


class Rotary:
    """The rotary embedding of a decoder of transformers, 1D or sectioned M-RoPE.

    The model's own module makes the tables, so that its base, scaling and sections hold. It must
    turn the pairs (j, j + r/2), as Llama, Mistral and Qwen do.

    Args:
        llm: the language model, with or without its head.

    Raises:
        InputError: a decoder without rotary tables, or one whose tables change with the length.
    """

    def __init__(self, llm: PreTrainedModel) -> None:
        self.module: Any = getattr(llm.base_model, "rotary_emb", None)
        if self.module is None or getattr(self.module, "rope_type", "") in ("dynamic", "longrope"):
            raise InputError(
                "this decoder has no fixed rotary embedding, so keys cannot be turned to other "
                "positions: leave out positions=contiguous"
            )
        self.device = llm.device

    def tables(self, position: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, r) of positions (B, S), or (3, B, S) for M-RoPE.

        Text of M-RoPE may come as (B, S), the same on all axes.
        """
        like = torch.empty(0, dtype=dtype, device=self.device)
        return cast(tuple[Tensor, Tensor], self.module(like, position.to(self.device)))

    def turns(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, r) that turn keys from old positions to new ones (PIE)."""
        return between(self.tables(old), self.tables(new))

    def move(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys (B, H, S, d), turned from positions old to new, as in `tables`.

        One table serves all rows and one position all entries where B or S is 1.
        """
        cos, sin = self.turns(old, new)
        return turn(keys, cos.to(keys.device), sin.to(keys.device))


@torch.inference_mode()
def close_gaps(prefill: Prefill, llm: PreTrainedModel) -> Prefill:
    """Turn the cached keys of every layer so that its entries stand at contiguous positions.

    Layers that hold different entries have different positions from then on; text that follows
    stands right behind what its layer holds (PIE, see `vidllm.compressors.shared.positions`).

    Args:
        prefill: with the `places` of its tokens; it is used up. llm: its language model.

    Raises:
        InputError: a decoder without fixed rotary tables, or positions that moved before.
    """
    if prefill.shift:
        raise InputError("positions moved before this: give contiguous to one method only")
    rotary, shift = Rotary(llm), []
    is_video = torch.zeros(prefill.length, dtype=torch.bool)
    is_video[prefill.video] = True
    whole = torch.arange(prefill.length)
    for number, layer in enumerate(cast(Any, prefill.cache).layers):
        alive = prefill.alive[number] if prefill.alive else whole
        old, new = prefill.places[..., alive], contiguous(prefill.places, alive, is_video)
        if not torch.equal(old, new):
            layer.keys = rotary.move(layer.keys, old[..., None, :], new[..., None, :])
        shift.append(prefill.next_position - 1 - int(new.max()))
    return replace(prefill, shift=shift)


class CachedVideo(NamedTuple):
    """One video in the cache: its row of the batch, the places (V,) of its tokens in the row's
    prompt, the tokens as they entered the decoder, and how many of them the last layer kept."""

    row: int
    places: Tensor
    tokens: VideoTokens
    kept: int


def evict_rows(
    cache: Any,
    method: Compressor,
    videos: Sequence[CachedVideo],
    held: list[list[Tensor]],
    valid: list[Tensor],
    left: bool = True,
) -> None:
    """Take video tokens out of the layers' caches, for good.

    The method scores the tokens by how many layers read them (signal "prefill-survivors") and
    keeps as many as the last layer has. Layers from `method.first_layer` on lose the others.

    Args:
        cache: of a prefill that pruned between layers; changed.
        method: of the stage "cache".
        held: for every layer and row the places (n,) of the prompt in the cache; changed.
        valid: for every layer (B, W) bool, which entries are no padding; changed.
        left: whether padding goes before the entries.

    Raises:
        InputError: a cache that forgets by itself.
    """
    check_entries(cache, method.name)
    gone: list[dict[int, Tensor]] = [{} for _ in held]
    for row, places, tokens, kept in videos:
        there = torch.stack([torch.isin(places, layer[row]) for layer in held])
        after = method(tokens.with_signals(prefill_survivors=there.sum(0).float()), kept)
        leaves = places[~torch.isin(tokens.position, after.position)]
        first = cast(Any, method).first_layer(there.sum(1).tolist())
        for number in range(first, len(held)):
            gone[number][row] = torch.cat([gone[number].get(row, leaves[:0]), leaves])
    for number, layer in enumerate(cache.layers):
        stays = [
            ~torch.isin(row, gone[number].get(r, row[:0])) for r, row in enumerate(held[number])
        ]
        if all(bool(row.all()) for row in stays):
            continue
        columns = [torch.nonzero(row).flatten() for row in valid[number]]
        index, valid[number] = pack([c[s] for c, s in zip(columns, stays, strict=True)], left)
        layer.keys = gather(layer.keys.transpose(1, 2), index).transpose(1, 2)
        layer.values = gather(layer.values.transpose(1, 2), index).transpose(1, 2)
        held[number] = [row[s] for row, s in zip(held[number], stays, strict=True)]


def evict(
    prefill: Prefill, method: Compressor, tokens: VideoTokens, llm: PreTrainedModel | None = None
) -> Prefill:
    """As `evict_rows`, for one prompt.

    Positions stay those of the full sequence, or with the method's `positions="contiguous"` all
    gaps are closed, also those of tokens that left before (`close_gaps`).

    Args:
        prefill: of a prefill that pruned between layers; it is used up.
        method: of the stage "cache". tokens: the video tokens before the prefill's method.
        llm: the language model, for contiguous positions.

    Raises:
        InputError: nothing was pruned in the prefill, a cache that forgets by itself, or
            contiguous positions in a decoder without fixed rotary tables.
    """
    if not prefill.alive or prefill.kept is None:
        raise InputError(
            f"{method.name} follows what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.name}"
        )
    video = CachedVideo(0, prefill.video, tokens, len(prefill.kept))
    held = [[alive] for alive in prefill.alive]
    valid = [torch.ones(1, len(alive), dtype=torch.bool) for alive in prefill.alive]
    evict_rows(prefill.cache, method, [video], held, valid)
    prefill = replace(prefill, alive=[row for [row] in held])
    if getattr(method, "positions", "original") == "original":
        return prefill
    if llm is None:
        raise InputError(f"{method.name}: contiguous positions need the language model")
    return close_gaps(prefill, llm)


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
