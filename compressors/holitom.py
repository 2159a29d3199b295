"""HoliTom (arXiv 2505.21334): what stands still over a window of frames is kept once.

First its parts on plain tensors: the windows that save most, and the merge inside the decoder.
Then `HoliTom` on `VideoTokens`, and `HoliTomInner`, its optional stage inside the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens

from .base import Compressor
from .registry import register
from .shared.density import cluster, generator, nearest, top
from .shared.kernels import placed, row_cosine, step_of
from .shared.segments import present_frames, starts

# Rows whose sum is taken one after the other whoever takes it.
_FEW = 16


def programme(still: Tensor, max_window: int = 1024) -> tuple[list[tuple[int, int]], int]:
    """The windows of frames that save most tokens, by dynamic programme.

    A window of w frames saves (cells that are still all through it) * (w - 1). Of equal totals
    a frame alone comes first, then the shorter window at the end. Time O(T^2), memory O(T).

    Args:
        still: (T - 1, N) bool on the CPU, cell i does not change from frame t to t + 1.
        max_window: longest window in frames.

    Returns:
        Windows (first, last frame), in time order over all T frames, and the tokens saved.
    """
    frames = len(still) + 1
    best = torch.zeros(frames + 1, dtype=torch.long)  # best[t]: saved by the first t frames
    length = [1] * frames
    run = torch.zeros(still.shape[1], dtype=torch.long)
    for end in range(1, frames):
        run = (run + 1) * still[end - 1]
        best[end + 1] = best[end]
        steps = min(end, max_window - 1)
        if steps < 1:
            continue
        # count[k - 1]: cells still over the last k steps, the window of k + 1 frames.
        exactly = torch.bincount(run.clamp(max=steps), minlength=steps + 1)
        count = exactly.flip(0).cumsum(0).flip(0)[1:]
        value = best[end - steps : end].flip(0) + count * torch.arange(1, steps + 1)
        step = int(value.argmax())
        if value[step] > best[end]:
            best[end + 1], length[end] = value[step], step + 2
    found, end = [], frames - 1
    while end >= 0:
        found.append((end - length[end] + 1, end))
        end -= length[end]
    return found[::-1], int(best[-1])


def join(x: Tensor, stay: Tensor) -> Merge:
    """Every token (L, D) into the most cosine-similar of those that stay."""
    into = nearest(x, x[stay.to(x.device)])
    into[stay] = torch.arange(len(stay))
    return Merge(into, stay)


def halve(x: Tensor, merge: Merge) -> Tensor:
    """Each slot's token halved with each of its others in turn, so that the last weighs 1/2."""
    other = torch.ones(len(x), dtype=torch.bool)
    other[merge.representative] = False
    rest = torch.nonzero(other).flatten()
    rest = rest[torch.argsort(merge.target[rest], stable=True)]
    slot = merge.target[rest]
    count = torch.bincount(slot, minlength=len(merge))
    turn = torch.arange(len(rest)) - starts(count)[slot]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    weight, own = (
        torch.pow(0.5, power)[:, None].to(exact) for power in (count[slot] - turn, count)
    )
    result = own * exact[merge.representative.to(x.device)]
    halved = result.index_add(0, slot.to(x.device), weight * exact[rest.to(x.device)])
    return halved.to(x.dtype)


@dataclass
class HoliTomInner(Compressor):
    """HoliTom's stage inside the decoder: the most attended tokens stay, the others join them.

    Every other token merges into the most cosine-similar that stays, as a plain mean.

    Attributes:
        layer: decoder layer, of 28, before which it merges; scaled to other depths.
        faithful: the authors' merge by repeated halving, in which a later token weighs more
            than an earlier one.
    """

    layer: int = field(default=18, metadata={"help": "layer, of 28, before which it merges"})
    faithful: bool = field(default=False, metadata={"help": "the authors' repeated halving"})

    name = "holitom"
    stage = "prefill"
    needs = ("decoder-attention",)
    paper = "HoliTom, arXiv 2505.21334"
    summary = "the last query's attention decides once, and what it leaves out merges"

    def points(self, depth: int) -> list[tuple[int, float]]:
        """One layer of the decoder."""
        return [(max(1, min(depth - 1, round(self.layer * depth / 28))), self.keep)]

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round that meets the budget at once."""
        score = self.signal(tokens, "decoder-attention").detach().cpu()
        result = join(tokens.features, top(score, budget).sort().values)
        if not self.faithful:
            return result.in_order(tokens.position)
        return Mix(halve(tokens.features, result), result.target, result.representative)


@register("holitom")
@dataclass
class HoliTom(Compressor):
    """What is still over a window of frames becomes one set of tokens; of the rest the attended.

    Windows are chosen over the whole clip so that most tokens are saved. Then every frame keeps
    the same share of its other tokens, by attention, and every window the same share of its
    still cells, as clusters: the authors' ceil and round, from which the counts furthest above
    their exact share give one token back (or those furthest below get one) until the budget is
    met. Where the windows alone save more than asked for, the still tokens that are least like
    the frame before leave their set instead, and nothing is dropped.

    A still cell needs a token in every frame of its window. A set stands in the first frame of
    its window.

    Attributes:
        tau: a cell is still from frame to frame above this cosine (the authors take 0.65 to
            keep a tenth). beta: part of a cluster's centre, the mean of the others is the rest.
        neighbours: of the density. max_window: longest window in frames.
        layer: decoder layer, of 28, before which the inner stage merges (`HoliTomInner`).
        inner: share of the tokens that it leaves; 1, the default, is no inner stage. With less
            a model gets keep / inner of the tokens, and `keep` from that layer on. A plan is
            the outer stage alone, and so is this method in a chain.
        noise: seed of the authors' noise on densities; None is no noise.
        faithful: the authors' order (a window's set before its frames; by default the set
            stands in the raster order of its first frame); their density, by which equal
            tokens all make centres (by default the first of them does); and the inner stage's
            own.
    """

    tau: float = field(default=0.8, metadata={"help": "still above this cosine"})
    beta: float = field(default=0.6, metadata={"help": "part of a cluster's centre, in [0, 1]"})
    neighbours: int = field(default=7, metadata={"help": "neighbours of the density"})
    max_window: int = field(default=1024, metadata={"help": "longest window, in frames"})
    layer: int = field(default=18, metadata={"help": "layer, of 28, of the inner stage"})
    inner: float = field(default=1.0, metadata={"help": "share that the inner stage leaves"})
    noise: int | None = field(default=None, metadata={"help": "seed of noise on densities"})
    faithful: bool = field(default=False, metadata={"help": "the authors' order and halving"})

    needs = ("cls-attention",)
    paper = "HoliTom, arXiv 2505.21334"
    summary = "what stands still is kept once, of the rest the attended tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta <= 1 and 0 < self.inner <= 1):
            raise InputError(
                f"holitom: beta is in [0, 1] and inner in (0, 1], not {self.beta} and {self.inner}"
            )
        if min(self.neighbours, self.max_window, self.layer) < 1:
            raise InputError("holitom: neighbours, max_window and layer must be at least 1")

    def points(self, depth: int) -> list[tuple[int, float]]:
        """(layer, share of the video tokens left) of a decoder; layer 0 is the outer stage."""
        if self.inner == 1:
            return [(0, self.keep)]
        return [(0, min(1.0, self.keep / self.inner)), *self._inside().points(depth)]

    def before_decoder(
        self, tokens: VideoTokens, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[tuple[Compressor, int]]]:
        """The outer stage; with `inner` below 1 the inner one comes back with its budget."""
        if self.inner == 1:
            return super().before_decoder(tokens, query)
        goal = self.goal(tokens)
        outer = min(len(tokens), math.ceil(goal / self.inner))
        return self(tokens, outer, query), [(self._inside(), goal)]

    def inside_decoder(self) -> bool:
        """True with an inner stage."""
        return self.inner < 1

    def _inside(self) -> HoliTomInner:
        return HoliTomInner(keep=self.keep, layer=self.layer, faithful=self.faithful)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round that meets the budget at once."""
        saliency = self.signal(tokens, "cls-attention").detach().cpu()
        x, (frames, at) = tokens.features, _lookup(tokens)
        alike = _similarity(x, at)
        still = alike > self.tau
        found, saved = programme(still, self.max_window)
        moving = torch.ones(len(tokens), dtype=torch.bool)
        rank = torch.zeros(len(tokens), dtype=torch.long)  # the authors' order, window by window
        parts: list[tuple[Tensor, bool]] = []  # tokens (frames, m) that are still, (1, m) not
        for number, (first, last) in enumerate(found):
            if last > first:
                block = at[first : last + 1, still[first:last].all(0)]
                moving[block] = False
                parts.append((block, True))
            for members in frames[first : last + 1]:
                rank[members] = 2 * number + moving[members].long()
                parts.append((members[moving[members]][None], False))
        spare = budget - (len(tokens) - saved)
        if spare < 0:
            return self._reduce(tokens, saliency, parts, rank, budget)
        carrier = torch.arange(len(tokens))
        for block, _ in parts:
            carrier[block] = block[0]
        near = torch.zeros(len(tokens))
        # Rounded, so that equal frames tie in spite of the noise of their cosines.
        near[at[1:][at[1:] >= 0]] = (alike[at[1:] >= 0] * 1e5).round()
        merged = torch.nonzero(carrier != torch.arange(len(tokens))).flatten()
        free = merged[torch.argsort(near[merged], stable=True)[:spare]]
        carrier[free] = free
        rank[free] += 1
        stay, target = carrier.unique(return_inverse=True)
        result = Merge(target, stay).in_order(tokens.position)
        return result.in_order(rank) if self.faithful else result

    def _reduce(
        self,
        tokens: VideoTokens,
        saliency: Tensor,
        parts: list[tuple[Tensor, bool]],
        rank: Tensor,
        budget: int,
    ) -> Mix:
        """Cluster what is still and keep the attended of the rest, to the exact budget."""
        x, noise = tokens.features, generator(self.noise)
        carrier = torch.full((len(tokens),), -1)
        index, made = list[Tensor](), list[tuple[Tensor, Tensor]]()
        counts = _counts([block.shape[1] for block, _ in parts], [s for _, s in parts], budget)
        for (block, still), count in zip(parts, counts, strict=True):
            one = block[0]
            if still:
                if count:
                    centres, into, rows = cluster(
                        _means(x, block), count, self.beta, self.neighbours, noise,
                        strict=self.faithful,
                    )  # fmt: skip
                    carrier[block] = one[centres][into]
                    index.append(one[centres])
                    made.append((one[centres], rows))
            else:
                best = one[top(saliency[one], count)]
                carrier[best] = best
                index.append(best)
        stay = torch.cat(index)
        order = tokens.position[stay].argsort()
        if self.faithful:
            order = order[torch.argsort(rank[stay[order]], stable=True)]
        stay = stay[order]
        number = torch.full((len(tokens),), -1)
        number[stay] = torch.arange(len(stay))
        target = torch.where(carrier < 0, -1, number[carrier.clamp(min=0)])
        return Mix(placed(x, stay, made), target, stay)


def _lookup(tokens: VideoTokens) -> tuple[tuple[Tensor, ...], Tensor]:
    """The tokens of each present frame, and (F, C) the token of each present cell, or -1."""
    order, _, counts = present_frames(tokens)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(counts)).repeat_interleave(counts)
    placed = torch.nonzero((tokens.cell >= 0).all(1)).flatten()
    code = tokens.cell[placed, 0] * tokens.grid[2] + tokens.cell[placed, 1]
    cells, column = code.unique(return_inverse=True)
    at = torch.full((len(counts), len(cells)), -1)
    at[rank[placed], column] = placed
    return order.split(counts.tolist()), at


def _similarity(x: Tensor, at: Tensor) -> Tensor:
    """(F - 1, C) cosine of each cell from frame to frame, -inf where a token is missing."""
    alike = torch.full((len(at) - 1, at.shape[1]), float("-inf"))
    both = (at[:-1] >= 0) & (at[1:] >= 0)
    alike[both] = row_cosine(x, at[:-1][both], at[1:][both]).cpu()
    return alike


def _means(x: Tensor, block: Tensor) -> Tensor:
    """(m, D) float32 mean over the frames of a window of its still tokens (frames, m)."""
    exact, means = torch.promote_types(x.dtype, torch.float32), []
    grows = x.requires_grad and torch.is_grad_enabled()
    if x.device.type == "cpu" and x.dtype == exact and len(block) <= _FEW and not grows:
        # The same sums, of rows where they stand.
        bags = torch.arange(0, block.numel(), len(block))
        return embedding_bag(block.T.flatten(), x, bags, mode="sum").div_(len(block))
    for part in block.split(max(1, step_of(x) // len(block)), dim=1):
        rows = x.index_select(0, part.flatten().to(x.device))
        means.append(rows.view(*part.shape, -1).to(exact).mean(0))
    return torch.cat(means)


def _counts(sizes: list[int], still: list[bool], budget: int) -> list[int]:
    """What each part keeps: the authors' rounding (still) or ceiling, brought to the budget."""
    exact = [Fraction(size * budget, sum(sizes)) for size in sizes]
    given = [round(e) if s else math.ceil(e) for e, s in zip(exact, still, strict=True)]
    over = [g - e for g, e in zip(given, exact, strict=True)]
    surplus = sum(given) - budget
    # Of equals the later part gives a token back, and the earlier one gets one.
    by_excess = sorted(range(len(sizes)), key=lambda i: (over[i], i))
    for i in by_excess[-surplus:] if surplus > 0 else by_excess[:-surplus]:
        given[i] -= 1 if surplus > 0 else -1
    return given
