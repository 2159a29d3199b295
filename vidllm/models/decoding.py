"""From a prompt whose video is in the KV cache to answers: several questions about one prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..tokens import VideoTokens


@dataclass
class Prefix:
    """The start of a prompt that every question of a video shares, already in the KV cache.

    Attributes:
        cache: holds P positions, in deep layers fewer where tokens were pruned on the way.
        length: P.
        next_position: where the text goes on, counted in the uncompressed sequence.
        alive: for every decoder layer the positions 0..P-1 that its cache holds, (A,) long;
            empty when all layers hold all of them.
        video: the positions 0..P-1 of video tokens.
        kept: the video tokens that are left after pruning on the way; None without.
    """

    cache: DynamicCache
    length: int
    next_position: int
    alive: list[Tensor] = field(default_factory=list)
    video: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    kept: VideoTokens | None = None

    def without_last(self) -> Prefix:
        """The same prefix but for its last position, whose logits are to be computed."""
        for layer in cast(Any, self.cache).layers:
            layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
        alive = [row[row < self.length - 1] for row in self.alive]
        return replace(
            self, length=self.length - 1, next_position=self.next_position - 1, alive=alive
        )

    def video_per_layer(self) -> list[int]:
        """Video tokens in the cache of every layer; empty when nothing was pruned on the way."""
        return [int(torch.isin(self.video, alive).sum()) for alive in self.alive]


@contextmanager
def pruned_masks(layers: nn.ModuleList, prefix: Prefix) -> Iterator[None]:
    """While answering: every layer's mask without the columns that its cache does not hold."""

    def cut(alive: Tensor) -> Any:
        def hook(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs.get("attention_mask")
            if mask is None:
                return None
            fresh = torch.arange(prefix.length, mask.shape[-1])
            columns = torch.cat([alive, fresh]).to(mask.device)
            return args, {**kwargs, "attention_mask": mask.index_select(-1, columns)}

        return hook

    handles = [
        layer.register_forward_pre_hook(cut(alive), with_kwargs=True)
        for layer, alive in zip(layers, prefix.alive, strict=False)
        if len(alive) < prefix.length
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model of transformers."""
    return cast(nn.ModuleList, llm.base_model.layers)


@torch.inference_mode()
def generate_from(
    llm: PreTrainedModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Answer several prompts about one prefix, which is computed once; it is used up.

    Args:
        llm: the causal language model.
        prefix: what comes before the prompts.
        prompts: ids after the video, of any lengths; one answer each.
        max_new_tokens: the longest answer.
        eos: id that ends an answer (not returned).
        temperature: 0 for the most likely token, else sampling with `generator`.

    Returns:
        New ids of every prompt.
    """
    device = llm.device
    rows, width = len(prompts), max(map(len, prompts))
    if rows > 1:
        prefix.cache.batch_repeat_interleave(rows)
    ids = torch.zeros(rows, width, dtype=torch.long, device=device)
    mask = torch.ones(rows, prefix.length + width, dtype=torch.long, device=device)
    positions = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):  # padding stands between the video and the prompt
        pad = width - len(prompt)
        ids[r, pad:] = torch.tensor(list(prompt), device=device)
        mask[r, prefix.length : prefix.length + pad] = 0
        positions[r, pad:] = prefix.next_position + torch.arange(len(prompt), device=device)
    answers: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    with pruned_masks(decoder_layers(llm), prefix):
        for _ in range(max_new_tokens):
            out = llm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=prefix.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float()
            if temperature > 0:
                share = torch.softmax(logits / temperature, dim=-1)
                ids = torch.multinomial(share, 1, generator=generator)
            else:
                ids = logits.argmax(dim=-1, keepdim=True)
            for r, token in enumerate(ids[:, 0].tolist()):
                running[r] = running[r] and token != eos
                if running[r]:
                    answers[r].append(token)
            if not any(running):
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
    return answers
