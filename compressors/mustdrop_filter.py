"""MustDrop in the decoder (arXiv 2411.10803): tokens that no word of the question reads leave."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .pyramiddrop import staged_points
from .registry import register
from .shared.positions import Policy
from .shared.segments import present_frames, starts


def key_tokens(tokens: VideoTokens, attention: Tensor, share: float = 0.08) -> Tensor:
    """(L,) bool: the key set of every frame by attention (L,), after the window merge.

    A driver may carry it on to the filter as the signal "key-tokens".
    """
    order = torch.argsort(attention.cpu(), descending=True, stable=True)
    order = order[torch.argsort(tokens.frame[order], stable=True)]
    _, _, counts = present_frames(tokens)
    sizes = counts.repeat_interleave(counts)
    rank = torch.arange(len(tokens)) - starts(counts).repeat_interleave(counts)
    result = torch.zeros(len(tokens), dtype=torch.bool)
    result[order] = rank < torch.ceil(share * sizes.double())
    return result


@register("mustdrop-filter")
@dataclass
class MustDropFilter(Scorer):
    """Four cuts in the decoder's first half, by two measures of what the question reads.

    The authors drop a token whose share of all attention is below one threshold and whose
    largest attention is below another. Both raised by the same factor give this method's
    order: the larger of share / global_threshold and largest / individual_threshold, best
    first, so that every budget is a run of theirs with some thresholds, and only the ratio of
    the two options counts. Cuts fall in equal proportions to `keep`; of equal tokens the
    earlier stays, and a clip is planned alone, without the authors' limits on batch, padding
    and depth.

    Key tokens go ahead of all others: those of the signal "key-tokens" (L,), or else each
    frame's by the signal "cls-attention", or none where the model gives neither.

    Attributes:
        global_threshold, individual_threshold: the authors' (1e-3 each for 192 of 576 tokens).
        key_share: share of a frame's tokens in the key set.
        faithful: the authors' positions: survivors are counted from 0 again while keys that
            are cached keep their old rotation. By default tokens keep their positions.
    """

    global_threshold: float = field(
        default=0.001, metadata={"help": "share of the attention, against individual_threshold"}
    )
    individual_threshold: float = field(
        default=0.001, metadata={"help": "largest attention, against global_threshold"}
    )
    key_share: float = field(default=0.08, metadata={"help": "share of a frame in the key set"})
    faithful: bool = field(
        default=False, metadata={"help": "the authors' positions: count survivors from 0"}
    )

    stage = "prefill"
    needs = ("decoder-text-attention",)
    uses = ("cls-attention",)  # the key set; without it every token may leave
    paper = "MustDrop, arXiv 2411.10803"
    summary = "tokens that no word of the question reads leave, in four cuts"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.global_threshold > 0 or not self.individual_threshold > 0:
            raise InputError("mustdrop-filter: both thresholds must be above 0")
        if not 0 <= self.key_share <= 1:
            raise InputError(f"mustdrop-filter: key_share must be in [0, 1], not {self.key_share}")

    @property
    def positions(self) -> Policy:
        """What happens to positions after a cut."""
        return "compact" if self.faithful else "keep"

    def points(self, depth: int) -> list[tuple[int, float]]:
        """Behind layers 2, 6, 10 and 14 of 32, in proportion to the depth."""
        layers = [layer * depth / 32 for layer in (3, 7, 11, 15)]
        return staged_points(self.name, depth, layers, self.keep)

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """Ranks: key tokens above all others, each kind in the order of the two measures."""
        attention = self.signal(tokens, "decoder-text-attention")
        if attention.dim() != 2 or attention.shape[1] < 1:
            raise InputError("mustdrop-filter needs a question after the video")
        if not bool(torch.isfinite(attention).all()):
            raise InputError("mustdrop-filter: the attention holds NaN or infinite values")
        total, peak = attention.sum(dim=1), attention.amax(dim=1)
        share = total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)
        read = torch.maximum(share / self.global_threshold, peak / self.individual_threshold)
        order = torch.argsort(read.cpu(), descending=True, stable=True)
        rank = torch.empty(len(tokens), dtype=torch.float64)
        rank[order] = torch.arange(len(tokens), 0, -1, dtype=torch.float64)
        return rank + len(tokens) * self._keys(tokens)

    def _keys(self, tokens: VideoTokens) -> Tensor:
        if "key-tokens" in tokens.signals:
            return (self.signal(tokens, "key-tokens") > 0).cpu()
        if "cls-attention" in tokens.signals and self.key_share:
            return key_tokens(tokens, self.signal(tokens, "cls-attention"), self.key_share)
        return torch.zeros(len(tokens), dtype=torch.bool)
