"""Where a compressed prompt goes on: decode steps over a cache that is shorter than the prompt."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError

from .batch_cache_choice import Choice
from .masks import layer_mask
from .state import Call, Past


class Decoding:
    """The caches of compressed prompts, and the step that is under way.

    Args:
        decoder: the text model. late: methods at work inside it.
    """

    def __init__(self, decoder: Any, late: list[Compressor]) -> None:
        self.decoder, self.late = decoder, late
        self.layers = cast(nn.ModuleList, decoder.layers)
        self.past: Past | None = None
        self.pasts: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()
        self.masks: dict[int, Any] = {}
        self.steps = 0

    def attach(self, stack: ExitStack) -> None:
        """Hooks for layers whose caches differ; the stack takes them off."""
        if not self.late:
            return
        for i, layer in enumerate(self.layers):
            handle = layer.register_forward_pre_hook(self._mask(i), with_kwargs=True)
            stack.callback(handle.remove)
            if any(hasattr(item, "step") for item in self.late):
                attention = cast(nn.Module, layer.self_attn)
                handle = attention.register_forward_hook(self._chooses(i), with_kwargs=True)
                stack.callback(handle.remove)

    def close(self) -> None:
        """No step is under way."""
        self.past = None
        self.masks.clear()

    def go_on(self, cache: Any, length: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Before the model: whether its call fits this cache, and the positions that come next."""
        past = self.pasts[cache]
        given = kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        batch, fresh = given.shape[:2]
        mask = kwargs.get("attention_mask")
        fits = past.valid[0].shape == (batch, length)
        if not fits or (mask is not None and mask.shape[-1] != past.seen + fresh):
            raise InputError(
                "this cache is shorter than its prompt, so only its own answer can go on: pass the "
                "whole conversation without past_key_values, and no assisted decoding"
            )
        if kwargs.get("position_ids") is None:
            more = torch.arange(fresh, device=past.next.device)
            kwargs = {**kwargs, "position_ids": past.next + more}
        self.past = past
        return kwargs

    def resume(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A decode step: the mask of what the cache holds and of what comes now."""
        past = cast(Past, self.past)
        self.steps = 0 if past.choice is None else len(past.choice.history)
        embeds: Tensor = kwargs["inputs_embeds"]
        batch, fresh = embeds.shape[:2]
        mask = kwargs.get("attention_mask")
        now = torch.ones(batch, fresh, dtype=torch.bool)
        if mask is not None:
            now = mask[:, past.seen :].cpu().bool()
        longer = {id(v): torch.cat([v, now], dim=1) for v in past.valid}
        past.valid[:] = [longer[id(v)] for v in past.valid]  # a choice changes it as well
        self.masks.clear()
        whole = mask is None and bool(past.valid[0].all())
        columns = None if whole else past.valid[0].to(embeds.device, torch.long)
        return {**kwargs, "attention_mask": columns}

    def done(self, kwargs: dict[str, Any]) -> bool:
        """Behind the text model: where the next step stands; False if a choice was passed by."""
        past, position = cast(Past, self.past), kwargs["position_ids"]
        chosen = past.choice is None or len(past.choice.history) > self.steps
        past.next = position[..., -1:] + 1
        past.seen += position.shape[-1]
        self.close()
        return chosen

    def choice(self, call: Call, cache: Any, valid: list[Tensor]) -> Choice:
        """A method that chooses at every decode step, for this cache."""
        videos, seen = [], set()
        for clip, place in zip(call.clips, call.places, strict=True):
            first = int(clip.slots[0])
            if first in seen:
                raise InputError(
                    f"{self.late[0].name} chooses for every answer alone: one answer a prompt, "
                    "without beams"
                )
            seen.add(first)
            columns = torch.nonzero(valid[0][clip.row]).flatten()
            at = torch.searchsorted(call.rows[clip.row], place)
            videos.append((clip.row, columns[at]))
        budgets = [budget for _, budget in call.late]
        return Choice(self.late[0], self.layers, cache, valid, videos, budgets, call.left)

    def _chooses(self, i: int) -> Any:
        def hook(
            attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _out: Any
        ) -> None:
            past = self.past
            if past is None or past.choice is None or past.choice.first != i + 1:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] != 1:
                raise InputError(f"{self.late[0].name} goes on one token at a time")
            past.choice.step(
                attention, kwargs["past_key_values"], hidden, kwargs["position_embeddings"]
            )

        return hook

    def _mask(self, i: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            past = self.past
            if past is None or past.valid[i] is past.valid[0]:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            key = id(past.valid[i])
            if key not in self.masks:
                how = str(self.decoder.config._attn_implementation)
                self.masks[key] = layer_mask(how, past.valid[i], hidden.shape[1], hidden)
            return args, {**kwargs, "attention_mask": self.masks[key]}

        return hook
