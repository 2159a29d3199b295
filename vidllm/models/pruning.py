"""Compressors of the stage "prefill": video tokens leave between the decoder's layers.

While a prompt is read, hooks on the layers take out the tokens that a method names, for good:
later layers neither compute nor cache them. Positions stay those of the full sequence. What a
method needs of the layer before is computed from that layer's queries and keys for the few rows
that count, beside any attention implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.selection import Selection, chosen
from vidllm.tokens import VideoTokens

#: Signals that the decoder gives to methods of this stage.
DECODER_SIGNALS: tuple[str, ...] = (
    "decoder-attention",
    "decoder-text-attention",
    "decoder-keys",
    "decoder-importance",
    "decoder-normed",
    "prefill-survivors",
)
_PIVOTS = 4  # words of the question that a method may compare with (DART)


class PrefillMethod(Protocol):
    """A compressor that says before which layers it prunes."""

    def points(self, depth: int) -> list[tuple[int, float]]:
        """(layer, share of the original video tokens left after it), ascending."""
        ...


class Pruner:
    """What one pass over a prompt needs: which tokens are still there, and the next cut.

    Args:
        layers: the decoder layers.
        norm: the decoder's last norm, for methods that compare normed states.
        method: the compressor, with `points`.
        tokens: the video tokens that the prompt holds, before this method.
        video: (V,) where they stand in the prompt of `length` tokens.
        budget: exact number of video tokens after the last cut.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        method: Compressor,
        tokens: VideoTokens,
        video: Tensor,
        length: int,
        budget: int,
    ) -> None:
        self.layers, self.norm, self.method = layers, norm, method
        self.tokens, self.video = tokens, video
        self.budget, self.length = budget, length
        if len(video) and bool((video.diff() <= 0).any()):
            raise InputError(f"{method.name} needs video tokens in time order: leave out faithful")
        self.here = torch.arange(length)
        self.alive: list[Tensor] = []
        self.cuts = self._cuts()
        self.caught: dict[str, Tensor] = {}
        self.text_keys = torch.empty(0)

    def _cuts(self) -> dict[int, int]:
        """Layer → exact count left before it runs; the last cut lands on the budget."""
        depth, total = len(self.layers), len(self.tokens)
        method = self.method
        if all(getattr(method, option) is None for option in method.fixed):
            method = replace(method, keep=self.budget / total, budget=None)
        points = cast(PrefillMethod, method).points(depth)
        if not points or not 0 <= points[0][0] <= points[-1][0] < depth:
            raise InputError(f"{method.name} prunes at no layer of a model with {depth}")
        counts = {layer: max(self.budget, round(total * left)) for layer, left in points}
        return {**counts, points[-1][0]: self.budget}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, and off again whatever happens."""
        handles = []
        try:
            for i, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(self._before(i), with_kwargs=True))
                if i + 1 in self.cuts and self.method.needs and not self.method.own_layer:
                    attention = cast(nn.Module, layer.self_attn)
                    handles.append(
                        attention.register_forward_pre_hook(self._watch, with_kwargs=True)
                    )
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, i: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if i in self.cuts and self.cuts[i] < len(self.tokens):
                if self.method.own_layer:
                    index = self.here.to(hidden.device)
                    cos, sin = (t[..., index, :] for t in kwargs["position_embeddings"])
                    normed = cast(nn.Module, layer.input_layernorm)(hidden)
                    self._watch(
                        cast(nn.Module, layer.self_attn),
                        (normed,),
                        {"position_embeddings": (cos, sin)},
                    )
                hidden = self._cut(hidden, self.cuts[i])
            self.alive.append(self.here)
            if len(self.here) == self.length:
                return None
            index = self.here.to(hidden.device)
            cut = dict(kwargs)
            cos, sin = kwargs["position_embeddings"]
            cut["position_embeddings"] = cos[..., index, :], sin[..., index, :]
            if kwargs.get("position_ids") is not None:
                cut["position_ids"] = kwargs["position_ids"][..., index]
            mask = kwargs.get("attention_mask")
            if mask is not None:
                cut["attention_mask"] = mask[..., index, :][..., index]
            if args:
                return (hidden, *args[1:]), cut
            return args, {**cut, "hidden_states": hidden}

        return hook

    def _watch(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"])[0]
        cos, sin = (t[0] if t.dim() == 3 else t for t in kwargs["position_embeddings"])
        self.caught = self._signals(attention, hidden, cos, sin)

    def _signals(
        self, attention: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> dict[str, Tensor]:
        """The method's needs, from hidden states (L, D) that enter an attention layer."""
        width = int(attention.head_dim)  # type: ignore[arg-type]
        keys = _heads(attention, "k", hidden, width, cos, sin)  # (H_kv, L, d)
        video = self.video.to(hidden.device)
        self.text_keys = keys[:, int(self.video[-1]) + 1 :].abs().sum((0, 2))
        out: dict[str, Tensor] = {}
        for need in self.method.needs:
            if need == "decoder-keys":
                out[need] = keys[:, video].transpose(0, 1).flatten(1)
            elif need == "decoder-attention":
                rows = _rows(attention, hidden, keys, cos, sin, len(hidden) - 1, len(hidden))
                out[need] = rows.mean(0)[-1, video]
            elif need == "decoder-text-attention":
                first = int(self.video[-1]) + 1
                if first == len(hidden):
                    raise InputError(f"{self.method.name} needs a question after the video")
                rows = _rows(attention, hidden, keys, cos, sin, first, len(hidden))
                out[need] = rows.mean(0)[:, video].T
            elif need == "decoder-importance":
                from vidllm.compressors.aim_prune import importance_rows

                def block(start: int, stop: int) -> Tensor:
                    return _rows(attention, hidden, keys, cos, sin, start, stop, sharp=True)

                out[need] = importance_rows(block, len(hidden), temperature=0.1)[video]
        return out

    def _cut(self, hidden: Tensor, budget: int) -> Tensor:
        """Let the method choose, and take the others out of the hidden states (1, L, D)."""
        device = hidden.device
        signals = {**self.tokens.signals, **self.caught}
        query: Tensor | None = None
        if "decoder-normed" in self.method.uses:
            normed = self.norm(hidden[0])
            signals["decoder-normed"] = normed[self.video.to(device)]
            # The words behind the video that have the largest keys.
            text = normed[int(self.video[-1]) + 1 :]
            query = (
                text[self.text_keys.topk(min(_PIVOTS, len(text))).indices] if len(text) else None
            )
        view = replace(self.tokens, features=hidden[0, self.video.to(device)], signals=signals)
        after, rounds = self.method.run(view, budget, query)
        rest = torch.ones(hidden.shape[1], dtype=torch.bool)
        rest[self.video] = False
        others = torch.nonzero(rest).flatten()
        stay = self.video[_survivors(rounds, len(view))]
        order = torch.argsort(torch.cat([others, stay]))
        rows = torch.cat([hidden[0, others.to(device)], after.features.to(hidden.dtype)])
        where = torch.cat([others, stay])[order]
        is_video = torch.cat([torch.zeros(len(others)), torch.ones(len(stay))])[order] > 0
        self.here, self.video = self.here[where], torch.nonzero(is_video).flatten()
        self.tokens = after
        return rows[order.to(device)][None]


def _survivors(rounds: list[Selection], count: int) -> Tensor:
    index = torch.arange(count)
    for selection in rounds:
        index = index[chosen(selection)]
    return index


def _heads(
    attention: nn.Module, kind: str, hidden: Tensor, width: int, cos: Tensor, sin: Tensor
) -> Tensor:
    """Queries or keys (H, L, d) of hidden states (L, D), as the attention layer makes them."""
    projected = getattr(attention, f"{kind}_proj")(hidden).unflatten(-1, (-1, width))
    norm = getattr(attention, f"{kind}_norm", None)
    heads = (projected if norm is None else norm(projected)).transpose(0, 1)
    half = heads.shape[-1] // 2
    turned = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
    return cast(Tensor, heads * cos + turned * sin).float()


def _rows(
    attention: nn.Module,
    hidden: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: int,
    stop: int,
    sharp: bool = False,
) -> Tensor:
    """Causal attention (H, stop - start, L) of some query rows; `sharp` gives its logits."""
    width = keys.shape[-1]
    query = _heads(attention, "q", hidden[start:stop], width, cos[start:stop], sin[start:stop])
    every = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    logits = query @ every.transpose(-1, -2) * float(attention.scaling)  # type: ignore[arg-type]
    late = (
        torch.arange(keys.shape[1], device=hidden.device)[None]
        > torch.arange(start, stop, device=hidden.device)[:, None]
    )
    logits = logits.masked_fill(late, torch.finfo(logits.dtype).min)
    return logits if sharp else torch.softmax(logits, dim=-1)
