"""From a prompt whose video is in the KV cache to answers: several questions about one prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from vidllm.tokens import VideoTokens

from .rotary import Rotary

if TYPE_CHECKING:
    from .cache_choice import CacheChoice


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)


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

    def without_last(self) -> Prefix:
        """The same prefix but for its last position, whose logits are to be computed."""
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


class Views:
    """What every decoder layer is told while answering, where layers differ.

    A layer gets the columns of the mask that its cache has entries for, and rotary tables of its
    own where positions have moved.

    Args:
        llm: the causal language model. prefix: what its cache begins with. rows: prompts.

    Attributes:
        held: for every layer how many entries of the prefix its cache holds.
        shift: for every layer (rows,) how far positions of text have moved back.
        calls: passes so far; the first one reads the prompts.
    """

    def __init__(self, llm: PreTrainedModel, prefix: Prefix, rows: int) -> None:
        self.llm, self.length = llm, prefix.length
        depth = len(decoder_layers(llm))
        self.held = [len(alive) for alive in prefix.alive] or [prefix.length] * depth
        self.shift = [torch.full((rows,), s) for s in prefix.shift or [0] * depth]
        self.calls = 0
        self.positions = self.mask = _none()
        self._rotary: Rotary | None = None
        self._tables: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    @property
    def rotary(self) -> Rotary:
        """The decoder's rotary tables.

        Raises:
            InputError: a decoder that has none that hold for every length.
        """
        if self._rotary is None:
            self._rotary = Rotary(self.llm)
        return self._rotary

    def tell(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Begin a pass over tokens at positions (rows, width), in the uncompressed sequence.

        Args:
            mask: (rows, P + tokens so far), over the whole prefix.

        Returns:
            The mask for the model: over what the first layer holds.
        """
        self.positions, self.mask = positions, mask
        self._tables.clear()
        self.calls += 1
        return self.columns(0)

    def columns(self, number: int) -> Tensor:
        """The mask (rows, entries) over the cache of a layer. All that a cache holds of the
        prefix is visible, so that only its count matters.
        """
        return self.mask[:, self.length - self.held[number] :]

    @contextmanager
    def attached(self, every: bool = False) -> Iterator[None]:
        """Hooks on the layers that differ from the first one, or on every layer."""
        handles = [
            layer.register_forward_pre_hook(self._before(i), with_kwargs=True)
            for i, layer in enumerate(decoder_layers(self.llm))
            if every or self.held[i] != self.held[0] or bool(self.shift[i].any())
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, i: int) -> Any:
        def hook(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            told = dict(kwargs)
            mask, fewer = kwargs.get("attention_mask"), self.held[0] - self.held[i]
            if mask is not None and fewer > 0:
                told["attention_mask"] = mask[..., fewer:]
            elif mask is not None and fewer < 0:
                seen = 0.0 if mask.is_floating_point() else 1
                told["attention_mask"] = nn.functional.pad(mask, (-fewer, 0), value=seen)
            if bool(self.shift[i].any()):
                hidden = args[0] if args else kwargs["hidden_states"]
                told["position_embeddings"] = self._turned(i, hidden.dtype)
            return args, told

        return hook

    def _turned(self, i: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        back = tuple(self.shift[i].tolist())
        if back not in self._tables:
            places = self.positions - self.shift[i][:, None].to(self.positions.device)
            self._tables[back] = self.rotary.tables(places, dtype)
        return self._tables[back]


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
    choice: CacheChoice | None = None,
    trace: Trace | None = None,
) -> list[list[int]]:
    """Answer several prompts about one prefix, which is computed once; it is used up.

    Args:
        llm: the causal language model.
        prefix: what comes before the prompts.
        prompts: ids after the video, of any lengths; one answer each.
        max_new_tokens: the longest answer.
        eos: id that ends an answer (not returned).
        temperature: 0 for the most likely token, else sampling with `generator`.
        choice: a method that chooses at every step what is read of the video.
        trace: where log-probabilities are noted, and who hears of every step.

    Returns:
        New ids of every prompt.

    Raises:
        InputError: a choice that does not fit the model, the prefix or several prompts.
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
    scores: list[Tensor] = []
    views = Views(llm, prefix, rows)
    chosen = nullcontext() if choice is None else choice.attached(prefix, views)
    with views.attached(every=choice is not None), chosen:
        for _ in range(max_new_tokens):
            out = llm(
                input_ids=ids,
                attention_mask=views.tell(positions, mask),
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
            if trace is not None:
                shares = torch.log_softmax(logits, dim=-1)
                scores.append(shares.gather(1, ids))
                if views.calls == 1:
                    trace.first = shares
            for r, token in enumerate(ids[:, 0].tolist()):
                running[r] = running[r] and token != eos
                if running[r]:
                    answers[r].append(token)
            if trace is not None and trace.heard is not None:
                trace.heard(answers)
            if not any(running):
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
    if trace is not None:
        told = torch.cat(scores, dim=1).tolist()
        trace.scores = [row[: len(new)] for row, new in zip(told, answers, strict=True)]
    return answers
