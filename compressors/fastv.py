"""FastV (arXiv 2403.06764): after two decoder layers, what the last prompt token looks at stays.

`select` is the authors' choice, `FastV` the method on `VideoTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of (N,) scores, ascending; of equal ones the earlier."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def select(
    attention_prev_layer: Tensor, sys_length: int, image_len: int, attention_rank: int
) -> Tensor:
    """The sequence indices that FastV keeps (the in-place path of the authors' code).

    Args:
        attention_prev_layer: (1, H, L, L) softmax attention of the layer before the cut.
        sys_length: tokens before the visual ones. image_len: visual tokens.
        attention_rank: visual tokens that stay.

    Returns:
        (L - image_len + attention_rank,) long, ascending: all text and the best visual tokens.
        They are also the position ids afterwards (kept tokens keep their positions).

    Raises:
        InputError: a batch of more than one, or counts that do not fit.
    """
    if attention_prev_layer.dim() != 4 or attention_prev_layer.shape[0] != 1:
        raise InputError(
            f"attention must be (1, H, L, L), one row at a time, not "
            f"{tuple(attention_prev_layer.shape)}"
        )
    length = attention_prev_layer.shape[-1]
    end = sys_length + image_len
    if not 0 <= attention_rank <= image_len or sys_length < 0 or end > length:
        raise InputError(
            f"cannot keep {attention_rank} of {image_len} tokens from {sys_length} on, of {length}"
        )
    row = attention_prev_layer[0, :, -1, sys_length:end].float().mean(dim=0)
    stay = torch.ones(length, dtype=torch.bool, device=row.device)
    stay[sys_length:end] = False
    stay[sys_length + top(row, attention_rank)] = True
    return torch.nonzero(stay).flatten()


@register("fastv")
@dataclass
class FastV(Scorer):
    """Keep the video tokens that the last prompt token attends to most, from layer `layer` on.

    The question is read through that token; no query is needed. A clip is planned alone, so
    that rows of a batch may have any lengths (the authors read row 0 only), and of equal
    tokens the earlier stays. The last token favours late frames; nothing is done against it.

    Attributes:
        layer: the decoder layer (from 0) before which tokens leave; the last one where a model
            has fewer.
    """

    layer: int = field(default=2, metadata={"help": "decoder layer before which tokens leave"})

    stage = "prefill"
    needs = ("decoder-attention",)
    paper = "FastV, arXiv 2403.06764"
    summary = "what the last prompt token looks at stays, from the third decoder layer on"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise InputError(f"fastv: layer must be at least 1, not {self.layer}")

    def points(self, depth: int) -> list[tuple[int, float]]:
        """One cut, before `layer`.

        Raises:
            InputError: a decoder of one layer, where no layer comes before another.
        """
        if depth < 2:
            raise InputError("fastv: a decoder of one layer has no layer to prune before")
        return [(min(self.layer, depth - 1), self.keep)]

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """The last row of the layer before, mean over heads."""
        return self.signal(tokens, "decoder-attention")
