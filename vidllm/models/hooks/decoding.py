"""From a prompt whose video is in the KV cache to answers: several questions about one prefill.

Decode steps go on over caches that are shorter than the prompt (`DecodeSteps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vidllm.errors import InputError

from .cache import CacheChoice, Prefill, Rotary
from .generate import is_fixed
from .layers import attends, first_attention, mask_of, step_mask, still_there, views_of


@dataclass
class Past:
    """What a cache holds that was made from a compressed prompt.

    Attributes:
        valid: for every layer (B, n) bool on the CPU, entries that are no padding; layers that
            hold the same share one tensor.
        shift: for every layer (B,) how far the positions of what comes next have moved back;
            empty where they have not.
        ended: why no step may follow; empty where one may.
        seen: columns of the full attention mask so far. next: the positions that come next,
            (B, 1), or (P, B, 1) for M-RoPE. choice: of what a decode step reads, if any.
        places: for every layer (B, n) where its entries stood in the full prompt, as `valid`;
            empty where all layers see all entries of their own.
        grown: new tokens behind the prompt, which may be taken back.
    """

    valid: list[Tensor]
    shift: list[Tensor] = field(default_factory=list)
    seen: int = 0
    next: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    choice: CacheChoice | None = None
    places: list[Tensor] = field(default_factory=list)
    ended: str = ""
    grown: int = 0

    def shrink(self, count: int) -> None:
        """The last `count` tokens were taken out of the cache again, as wrong guesses are."""
        self.valid[:] = _cut(self.valid, count)
        self.places[:] = _cut(self.places, count)
        self.seen -= count
        self.grown -= count
        self.next = self.next - count


def _cut(tables: list[Tensor], count: int) -> list[Tensor]:
    """Tables (B, n) without their last columns; layers that share one share what is left."""
    shorter = {id(table): table[:, :-count] for table in tables}
    return [shorter[id(table)] for table in tables]


class DecodeSteps:
    """The caches of compressed prompts, and the step that is under way.

    A layer gets the mask of what its cache has entries for, and rotary tables of its own where
    positions have moved.

    Args:
        decoder: the text model, without its head.

    Attributes:
        past: what the pass under way goes on from, or None. pasts: of all caches.
    """

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.layers = cast(nn.ModuleList, decoder.layers)
        self.views = views_of(decoder.config, len(self.layers))
        self.first = first_attention(self.layers)
        self.past: Past | None = None
        self.pasts: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()
        self._steps = 0
        self._positions = torch.empty(0, dtype=torch.long)
        self._fresh: Tensor | None = None
        self._masks: dict[Any, Any] = {}
        self._rotary: Rotary | None = None
        self._tables: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def attach(self, stack: ExitStack, *, choosing: bool) -> None:
        """Hooks on the layers, and for a method that chooses at every step on their attention;
        the stack takes them off."""
        for i, layer in enumerate(self.layers):
            handle = layer.register_forward_pre_hook(self._differs(i), with_kwargs=True)
            stack.callback(handle.remove)
            if choosing:
                attention = cast(nn.Module, layer.self_attn)
                handle = attention.register_forward_hook(self._chooses(i), with_kwargs=True)
                stack.callback(handle.remove)

    def close(self) -> None:
        """No step is under way."""
        self.past = None
        self._masks.clear()
        self._tables.clear()

    def grow(self, positions: Tensor, fresh: Tensor) -> Tensor:
        """Begin a pass over new tokens.

        Args:
            positions: (B, W) of them, in the uncompressed sequence. fresh: (B, W) bool, those
                that are no padding.

        Returns:
            (B, n + W) bool on the CPU: what the cache of the first layer of attention will hold.
        """
        past = cast(Past, self.past)
        longer = {id(v): torch.cat([v, fresh.cpu()], dim=1) for v in past.valid}
        past.valid[:] = [longer[id(v)] for v in past.valid]  # a choice changes it as well
        new = (past.seen + torch.arange(fresh.shape[1])).expand(len(fresh), -1)
        further = {id(p): torch.cat([p, new], dim=1) for p in past.places}
        past.places[:] = [further[id(p)] for p in past.places]
        self._positions = positions
        self._masks.clear()
        self._tables.clear()
        return past.valid[self.first]

    def go_on(self, cache: Any, length: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Before a hub model: whether its call fits this cache, and the positions that come next.

        Raises:
            InputError: a call that is no step of this cache's own answer.
        """
        past = self.pasts[cache]
        given = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        batch, fresh = given.shape[:2]
        mask = kwargs.get("attention_mask")
        if past.ended:
            raise InputError(past.ended)
        if is_fixed(cache):  # its mask is laid out for the full prompt; new tokens are no padding
            mask = None
        back = past.valid[self.first].shape[1] - length
        if 0 < back <= past.grown and past.choice is None:
            past.shrink(back)
        fits = past.valid[self.first].shape == (batch, length)
        if not fits or (mask is not None and mask.shape[-1] != past.seen + fresh):
            raise InputError(
                "this cache is shorter than its prompt, so only its own answer can go on: pass the "
                "whole conversation without past_key_values"
            )
        if kwargs.get("position_ids") is None:
            more = torch.arange(fresh, device=past.next.device)
            kwargs = {**kwargs, "position_ids": past.next + more}
        self.past = past
        self._fresh = None if mask is None else mask[:, past.seen :].bool()
        return kwargs

    def resume(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Before its text model: the mask of what the cache holds and of what comes now."""
        past = cast(Past, self.past)
        self._steps = 0 if past.choice is None else len(past.choice.history)
        embeds: Tensor = kwargs["inputs_embeds"]
        whole, fresh = self._fresh is None, self._fresh
        if fresh is None:
            fresh = torch.ones(embeds.shape[:2], dtype=torch.bool)
        valid = self.grow(kwargs["position_ids"], fresh)
        if self.views.kinds:  # every layer gets its own
            return {**kwargs, "attention_mask": dict.fromkeys(self.views.kinds)}
        whole = whole and bool(valid.all())
        return {**kwargs, "attention_mask": None if whole else valid.to(embeds.device, torch.long)}

    def done(self, kwargs: dict[str, Any]) -> bool:
        """Behind it: where the next step stands; False if a choice was passed by."""
        past, position = cast(Past, self.past), kwargs["position_ids"]
        chosen = past.choice is None or len(past.choice.history) > self._steps
        past.next = position[..., -1:] + 1
        past.seen += position.shape[-1]
        past.grown += position.shape[-1]
        self.close()
        return chosen

    def _chooses(self, i: int) -> Any:
        def hook(
            attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any
        ) -> None:
            choice = None if self.past is None else self.past.choice
            if choice is None or choice.first != i + 1:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] != 1:
                raise InputError(f"{choice.method.name} goes on one token at a time")
            choice.step(attention, kwargs["past_key_values"], hidden, kwargs["position_embeddings"])

        return hook

    def _differs(self, i: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            past, own = self.past, {}
            if past is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if past.places:
                own["attention_mask"] = self._viewed(i, hidden)
            elif past.valid[i] is not past.valid[self.first]:
                own["attention_mask"] = self._mask(i, past.valid[i], hidden)
            if past.shift and bool(past.shift[i].any()):
                own["position_embeddings"] = self._turned(past.shift[i], hidden.dtype)
            return (args, {**kwargs, **own}) if own else None

        return hook

    def _mask(self, i: int, valid: Tensor, hidden: Tensor) -> Any:
        layer, how = self.layers[i], str(self.decoder.config._attn_implementation)
        key = id(valid), attends(layer)
        if key not in self._masks:
            self._masks[key] = mask_of(layer, how, valid, hidden.shape[1], hidden)
        return self._masks[key]

    def _viewed(self, i: int, hidden: Tensor) -> Any:
        """The mask of a layer that has a window, or reads another one's keys."""
        past, store = cast(Past, self.past), self.views.stores[i]
        places, valid, window = past.places[store], past.valid[store], self.views.windows[i]
        key = (id(valid), id(past.valid[i]), window, hidden.shape[1])
        if key not in self._masks:
            if past.valid[i] is not valid:  # some of them left behind the layer that has the keys
                mine = [p[v] for p, v in zip(past.places[i], past.valid[i], strict=True)]
                valid = still_there(mine, places, valid)
            how, fresh = str(self.decoder.config._attn_implementation), self._positions.shape[-1]
            self._masks[key] = step_mask(places, valid, fresh, window, how, hidden)
        return self._masks[key]

    def _turned(self, shift: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B, W, r) of positions that have moved back by shift (B,)."""
        key = tuple(shift.tolist())
        if key not in self._tables:
            self._rotary = self._rotary or Rotary(self.decoder)
            places = self._positions - shift[:, None].to(self._positions.device)
            self._tables[key] = self._rotary.tables(places, dtype)
        return self._tables[key]


@dataclass
class Trace:
    """What is noted of answers while they are written; it changes nothing in them.

    Attributes:
        heard: called behind every step with all new ids so far, a row a prompt; what it raises
            ends the work.
        first: (rows, V) float32 log-probabilities of the first tokens, over all tokens.
        scores: for every prompt the natural log-probability of each of its new ids.
    """

    heard: Callable[[list[list[int]]], None] | None = None
    first: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    scores: list[list[float]] = field(default_factory=list)


def past_of(prefill: Prefill, rows: int, depth: int) -> Past:
    """What `rows` prompts go on from that begin with one prefill; `depth` layers."""
    counts = [len(alive) for alive in prefill.alive] or [prefill.length] * depth
    ones = {n: torch.ones(rows, n, dtype=torch.bool) for n in counts}
    shift = [torch.full((rows,), s) for s in prefill.shift or [0] * depth]
    return Past([ones[n] for n in counts], shift)


@torch.inference_mode()
def generate_from(
    llm: PreTrainedModel,
    prefill: Prefill,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int,
    choice: CacheChoice | None = None,
    trace: Trace | None = None,
    draw: Callable[[Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """Answer several prompts about one prefill; it is used up.

    Args:
        llm: the causal language model.
        prefill: what comes before the prompts.
        prompts: ids after the video, of any lengths; one answer each.
        max_new_tokens: the longest answer.
        eos: id that ends an answer (not returned).
        choice: a method that chooses at every step what is read of the video.
        trace: where log-probabilities are noted, and who hears of every step.
        draw: from logits (rows, V) to ids (rows, 1); None for the likeliest.

    Returns:
        New ids of every prompt.

    Raises:
        InputError: a choice that does not fit the model, the prefill or several prompts.
    """
    device, steps = llm.device, DecodeSteps(llm.base_model)
    rows, width = len(prompts), max(map(len, prompts))
    past = steps.past = past_of(prefill, rows, len(steps.layers))
    if choice is not None:
        _begin(choice, past, prefill, llm)
    if rows > 1:
        prefill.cache.batch_repeat_interleave(rows)
    ids = torch.zeros(rows, width, dtype=torch.long, device=device)
    fresh = torch.ones(rows, width, dtype=torch.bool)
    positions = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):  # padding stands between the video and the prompt
        pad = width - len(prompt)
        ids[r, pad:] = torch.tensor(list(prompt), device=device)
        fresh[r, :pad] = False
        positions[r, pad:] = prefill.next_position + torch.arange(len(prompt), device=device)
    answers: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    scores: list[Tensor] = []
    with ExitStack() as stack:
        if choice is not None:
            stack.callback(choice.close)
        if choice is not None or prefill.alive or prefill.shift:
            steps.attach(stack, choosing=choice is not None)
        for _ in range(max_new_tokens):
            out = llm(
                input_ids=ids,
                attention_mask=steps.grow(positions, fresh).to(device, torch.long),
                position_ids=positions,
                past_key_values=prefill.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            past.choice = choice  # the prompts have read the whole video
            logits = out.logits[:, -1].float()
            ids = logits.argmax(dim=-1, keepdim=True) if draw is None else draw(logits)
            if trace is not None:
                shares = torch.log_softmax(logits, dim=-1)
                if not scores:
                    trace.first = shares
                scores.append(shares.gather(1, ids))
            for r, token in enumerate(ids[:, 0].tolist()):
                running[r] = running[r] and token != eos
                if running[r]:
                    answers[r].append(token)
            if trace is not None and trace.heard is not None:
                trace.heard(answers)
            if not any(running):
                break
            positions, fresh = positions[:, -1:] + 1, torch.ones(rows, 1, dtype=torch.bool)
    if trace is not None:
        chances = torch.cat(scores, dim=1).tolist()
        trace.scores = [row[: len(new)] for row, new in zip(chances, answers, strict=True)]
    return answers


def _begin(choice: CacheChoice, past: Past, prefill: Prefill, llm: PreTrainedModel) -> None:
    """Every prompt chooses from the same video.

    Raises:
        InputError: a prefill that was pruned on the way, or a method that takes one at a time.
    """
    rows = len(past.valid[0])
    if prefill.alive:
        raise InputError(f"{choice.method.name} chooses from a cache that nothing has left yet")
    if rows > 1 and not choice.method.shares_prefix:
        raise InputError(f"{choice.method.name}: faithful answers one question at a time")
    videos = [(row, prefill.video) for row in range(rows)]
    choice.begin(prefill.cache, past.valid, past.shift, videos, prefill=prefill, llm=llm)
