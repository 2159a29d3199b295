"""DivPrune: the most diverse tokens by greedy max-min distance (arXiv 2503.02175).

`pick` is the greedy search, `DivPrune` the method on `VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .evs import NOISE
from .registry import register
from .shared.kernels import TINY, blocks, cosines, row_cosine, step_of
from .shared.segments import before_in_cell, unit

# Distances held at a time (256 MiB; on a GPU 4 GiB): all of them, where they are no more.
_BLOCK, _ON_GPU = 2**26, 2**30
# Rows of distances that are made together where not all are kept.
_ROWS = 64


def pick(
    features: Tensor, count: int, faithful: bool = False, near: Tensor | None = None
) -> Tensor:
    """Greedy choice of tokens that lie far from each other, in the order of picking.

    The distance is 1 - cosine. First comes the token whose nearest neighbour is farthest away,
    then again and again the token whose nearest picked token is farthest. All distances are made
    once where there is room for them; else rows of them as they are needed.

    Args:
        features: (N, D). count: tokens to pick, at most N.
        faithful: as the published code, which does not exclude picked tokens: once all others
            equal a picked one, an index comes again and again, as the rounding of the cosine
            has it. By default every token is picked at most once and distances below 1e-6 are
            none. A token of zeros is NaN for the published code; it has distance 1 to all here.
        near: (N,) for every token one that is probably like it, or -1: a hint for the search of
            the first token, which changes nothing but its time.

    Returns:
        (count,) indices into N, on the device of the features. Ties: the earlier token.
    """
    x = features.detach()
    if count == 0:
        return torch.empty(0, dtype=torch.long, device=x.device)
    if len(x) ** 2 <= (_ON_GPU if x.is_cuda else _BLOCK):
        apart, row = _all_rows(x, faithful)
    else:
        apart, row = _lazy_rows(x, faithful, near)
    picked: list[Tensor] = []
    nearest = apart
    for step in range(count):
        best = nearest.argmax(dim=0, keepdim=True)
        picked.append(best)
        distance = row(best, nearest)
        nearest = distance.clone() if step == 0 else torch.minimum(nearest, distance)
        if not faithful:
            nearest.index_fill_(0, best, -torch.inf)
    return torch.cat(picked)


Row = Callable[[Tensor, Tensor], Tensor]


def _settled(cosine: Tensor, faithful: bool) -> Tensor:
    """Distances of cosines, in their place."""
    distance = cosine.neg_().add_(1)
    return distance if faithful else distance.masked_fill_(distance < NOISE, 0.0)


def _all_rows(x: Tensor, faithful: bool) -> tuple[Tensor, Row]:
    """(N,) the distance of each token's nearest other, and what gives the row of a token."""
    distance = torch.empty(len(x), len(x), device=x.device)
    step = len(x) if x.is_cuda else 16 * step_of(x)
    for here, rows in blocks(x, step=step):
        own = unit(rows)
        for there, others in blocks(x[here.start :], step=step):
            to = slice(here.start + there.start, here.start + there.stop)
            some = own if there.start == 0 else unit(others)
            distance[here, to] = _settled(own @ some.T, faithful)
            if there.start:
                distance[to, here] = distance[here, to].T
    return _nearest(distance), lambda best, _: distance.index_select(0, best)[0]


def _nearest(distance: Tensor) -> Tensor:
    """(n,) the second smallest of every row (n, N); the smallest is a token's own."""
    if distance.shape[1] < 2:
        return distance.new_zeros(len(distance))
    parts = distance.split(max(1, 2**22 // distance.shape[1]))
    return torch.cat([part.topk(2, largest=False).values[:, 1] for part in parts])


def _lazy_rows(x: Tensor, faithful: bool, near: Tensor | None) -> tuple[Tensor, Row]:
    """The same where not all rows find room: `apart` is exact at its largest, a bound elsewhere.

    A token's nearest other is at most as far as any other, so that rows are only made while a
    bound exceeds the best that is known. Later a missing row comes with those of the tokens that
    are farthest at that time: most of them are picked soon.
    """
    bound = torch.full((len(x),), torch.inf, device=x.device)
    if near is not None:
        later = torch.nonzero(near >= 0).flatten()
        hint = _settled(row_cosine(x, later, near[later], TINY), faithful)
        if faithful:
            hint += NOISE  # the same distance by another sum may be a little larger
        for which in (later, near[later]):
            bound.scatter_reduce_(0, which.to(x.device), hint, "amin")
    exact = torch.full_like(bound, -torch.inf)

    def rows(which: Tensor) -> Tensor:
        anchors = unit(x[which])
        parts = [_settled(cosine, faithful).T for _, cosine in cosines(x, anchors, TINY)]
        return torch.cat(parts, dim=1)

    while float(bound.max()) > float(exact.max()) or not bool((exact > -torch.inf).any()):
        which = bound.topk(min(4 * _ROWS, len(x))).indices
        exact[which] = _nearest(rows(which))
        bound[which] = -torch.inf
    known: dict[int, Tensor] = {}

    def row(best: Tensor, nearest: Tensor) -> Tensor:
        number = int(best)
        if number not in known:
            if len(known) * len(x) > _BLOCK:
                known.clear()
            score = nearest.clone()
            score[list(known)] = -torch.inf
            score[number] = torch.inf
            which = score.topk(min(_ROWS, len(x) - len(known))).indices
            known.update(zip(which.tolist(), rows(which), strict=True))
        return known[number] if faithful else known.pop(number)

    return exact, row


@register("divprune")
@dataclass
class DivPrune(Compressor):
    """Keep tokens that lie far from each other, over the whole clip at once (DivPrune).

    Places and frames play no part, so it works on any set of tokens, and a frame may lose all of
    its own. The count is the budget itself.

    Attributes:
        faithful: the published code's choice. The defect: picked tokens are not excluded, so
            that on a still clip the same token is chosen again and again. A token cannot stand
            in a clip twice, so the earliest tokens not chosen take the places of the repeats
            and the count stays exact. By default every step chooses a new token.
    """

    faithful: bool = field(default=False, metadata={"help": "picked tokens may be picked again"})

    paper = "DivPrune, arXiv 2503.02175"
    summary = "tokens far from each other stay"

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Pick `budget` tokens."""
        chosen = torch.zeros(len(tokens), dtype=torch.bool)
        chosen[pick(tokens.features, budget, self.faithful, before_in_cell(tokens)).cpu()] = True
        missing = budget - int(chosen.sum())
        chosen[torch.nonzero(~chosen).flatten()[:missing]] = True
        return Keep(torch.nonzero(chosen).flatten())
