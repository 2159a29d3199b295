"""FastVID (arXiv 2503.11187): salient tokens of a frame, density-peak anchors of a segment.

`segments` is the authors' cut of a clip; `FastVid` is the method on `VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Mix, Selection, VideoTokens
from vidllm.tokens.video_tokens import take

from .base import Compressor
from .registry import register
from .shared.density import by_frame, by_group, gather, generator, peaks, top
from .shared.kernels import mean, placed
from .shared.segments import equal_runs, present_frames, share

_NEIGHBOURS = 4


def segments(frame_global_features: Tensor, DySeg_c: int = 8, DySeg_tau: float = 0.9) -> Tensor:
    """Cut a clip where neighbouring frames differ (FastVID, DySeg).

    Cuts stand at the c - 1 least similar neighbours and wherever the cosine is below tau.
    Where there are fewer neighbours than that, every one is cut (the authors' code fails).

    Args:
        frame_global_features: (T, G), one feature a frame.
        DySeg_c: segments at least. DySeg_tau: a lower cosine is a cut.

    Returns:
        (S,) long, the lengths of the segments in frames; they add up to T.
    """
    alike = _alike(frame_global_features)
    cut = alike < DySeg_tau
    cut[torch.argsort(alike, stable=True)[: max(0, DySeg_c - 1)]] = True
    places = torch.nonzero(cut).flatten() + 1
    ends = torch.tensor([0, len(frame_global_features)])
    return torch.cat([ends[:1], places, ends[1:]]).diff()


@dataclass(frozen=True)
class _Rules:
    """Options; `exact`: no token is lost; `theirs`: the defects that `faithful` names."""

    d: float
    p: int
    beta: float
    ignore: float | None
    exact: bool
    theirs: bool


def _alike(frame: Tensor) -> Tensor:
    rows = frame.detach().float()
    return torch.cosine_similarity(rows[:-1], rows[1:], dim=1).cpu()


def _counts(
    rules: _Rules, worth: list[int], sizes: list[int], lengths: list[int], alike: Tensor
) -> list[tuple[int, int]]:
    """(salient, anchors) of every frame that is worth so many tokens and has so many."""
    result, first = list[tuple[int, int]](), 0
    for length in lengths:
        here = slice(first, first + length)
        if rules.ignore is None:
            result += by_frame(worth[here], sizes[here], rules.d, rules.p, rules.exact)
        else:
            used = [bool(gap < rules.ignore) for gap in alike[first : first + length - 1]]
            used.append(True)
            result += by_group(sum(worth[here]), sizes[here], used, rules.d, rules.p, rules.exact)
        first += length
    return result


def _reduce(
    rules: _Rules,
    x: Tensor,
    saliency: Tensor,
    places: Sequence[Tensor],
    lengths: list[int],
    counts: list[tuple[int, int]],
    noise: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that stay (K,), ascending, their features (K, D), and what carries each (L,) or -1."""
    carrier = torch.full((len(x),), -1)
    index, made = list[Tensor](), list[tuple[Tensor, Tensor]]()
    frames = iter(zip(places, counts, strict=True))
    for length in lengths:
        anchors, left = [], []
        for members, (salient, wanted) in islice(frames, length):
            by_saliency = members[top(saliency[members], len(members))]
            kept, rest = by_saliency[:salient], by_saliency[salient:].sort().values
            carrier[kept] = kept
            index.append(kept)
            left.append(rest)
            if wanted:
                score = peaks(take(x, rest), _NEIGHBOURS, noise, strict=rules.theirs)
                anchors.append(rest[top(score, wanted)].sort().values)
        if anchors:
            pool, together = (torch.cat(parts).sort().values for parts in (left, anchors))
            merged, into = gather(x, pool, together, rules.beta, rules.ignore is None)
            carrier[pool] = together[into]
            if rules.theirs and len(anchors) > 1:
                for alone in anchors:
                    made.append(
                        (alone, gather(x, pool, alone, rules.beta, rules.ignore is None)[0])
                    )
            else:
                made.append((together, merged))
            index.append(together)
    stay = torch.cat(index).sort().values
    return stay, placed(x, stay, made), carrier


@register("fastvid")
@dataclass
class FastVid(Compressor):
    """Segments of like frames; salient tokens stay, the rest gathers around density peaks.

    Every frame gets its share of the budget (the first ones one more), int(share * d) of it as
    anchors of its segment; the remainder that the authors lose is handed to the first anchor
    frames. A budget below the number of frames keeps the most salient token of each of `budget`
    equal runs of frames. Segments are cut by the mean of each frame's tokens, as the authors do
    for Qwen (for LLaVA they load the pooling head of the vision tower). By default a token joins
    one anchor, the most similar of its segment.

    Attributes:
        variant: "llava" or "qwen", the authors' two ways to spread a segment's tokens.
        c: segments at least, where there are as many frames.
        tau: neighbouring frames of a lower cosine are cut; None is 0.9, for qwen 0.84.
        ignore: (qwen) frames of at least this cosine count as one, the last of them.
        d: share of anchors. p: every p-th frame of a segment has them. beta: their least weight.
        noise: seed of the authors' noise on densities; None is no noise.
        faithful: a token joins one anchor of EVERY anchor frame of its segment, as the authors
            have it: it counts several times, and only one of its carriers is on record; and
            equal tokens all make anchors (by default the first of them does).
    """

    variant: Literal["llava", "qwen"] = field(
        default="llava", metadata={"help": "the authors' rules for LLaVA or for Qwen"}
    )
    c: int = field(default=8, metadata={"help": "segments at least"})
    tau: float | None = field(default=None, metadata={"help": "cut below this cosine"})
    ignore: float = field(default=0.95, metadata={"help": "qwen: skip frames as like as this"})
    d: float = field(default=0.4, metadata={"help": "share of anchors, in [0, 1]"})
    p: int = field(default=4, metadata={"help": "every p-th frame has anchors"})
    beta: float = field(default=0.6, metadata={"help": "least weight of an anchor, in [0, 1]"})
    noise: int | None = field(default=None, metadata={"help": "seed of noise on densities"})
    faithful: bool = field(default=False, metadata={"help": "a token joins several anchors"})

    needs = ("cls-attention",)
    paper = "FastVID, arXiv 2503.11187"
    summary = "salient tokens stay, the rest of a segment merges into density peaks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("llava", "qwen"):
            raise InputError(f"fastvid: variant must be 'llava' or 'qwen', not {self.variant!r}")
        if self.c < 1 or self.p < 1:
            raise InputError(f"fastvid: c and p must be at least 1, not {self.c} and {self.p}")
        if not (0 <= self.d <= 1 and 0 <= self.beta <= 1):
            raise InputError(f"fastvid: d and beta are in [0, 1], not {self.d} and {self.beta}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round that meets the budget at once."""
        saliency = self.signal(tokens, "cls-attention").detach().cpu()
        order, _, counts = present_frames(tokens)
        sizes: list[int] = counts.tolist()
        if budget < len(sizes):
            run = equal_runs(torch.arange(len(sizes)), len(sizes), budget)
            ends = counts.new_zeros(budget).index_add_(0, run, counts).tolist()
            best = [members[top(saliency[members], 1)] for members in order.split(ends)]
            return Keep(torch.cat(best).sort().values)
        x, places = tokens.features, order.split(sizes)
        means = torch.stack([mean(x, place) for place in places])
        llava = self.variant == "llava"
        tau = self.tau if self.tau is not None else 0.9 if llava else 0.84
        lengths = segments(means, self.c, tau).tolist()
        ignore = None if llava else self.ignore
        rules = _Rules(self.d, self.p, self.beta, ignore, exact=True, theirs=self.faithful)
        each = _counts(rules, share(budget, sizes), sizes, lengths, _alike(means))
        noise = generator(self.noise)
        stay, features, carrier = _reduce(rules, x, saliency, places, lengths, each, noise)
        in_time = tokens.position[stay].argsort()
        stay = stay[in_time]
        number = torch.full((len(tokens),), -1)
        number[stay] = torch.arange(len(stay))
        target = torch.where(carrier < 0, -1, number[carrier.clamp(min=0)])
        return Mix(take(features, in_time), target, stay)
