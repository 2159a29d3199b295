"""ToMe (arXiv 2210.09461): bipartite merging by keys, size weighted.

`merge`, `merge_kth`, `unmerge` and `parse_r` are the authors' functions, order and arithmetic;
`Tome` is the method on `VideoTokens`, and `one_round` what the methods built on it share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Merge, Selection, VideoTokens
from vidllm.tokens.matching import Pairs, check_shapes, match, owners, weighted
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from .registry import register
from .shared.in_tower import InTower, falling, rounds
from .shared.segments import equal_runs, merge_groups, present_frames, share


class Merged(NamedTuple):
    """Tokens after a merge.

    Attributes:
        x: (B, K, C) tokens. size: (B, K, 1) source tokens behind each.
        owner: (B, N) the output token that carries every input token.
    """

    x: Tensor
    size: Tensor
    owner: Tensor

    @property
    def source(self) -> Tensor:
        """(B, K, N) float, 1 where an input token went into an output token."""
        return F.one_hot(self.owner, self.x.shape[1]).transpose(1, 2).to(self.x.dtype)


def pair(
    metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False
) -> tuple[Tensor, Pairs]:
    """Even tokens matched with odd ones: what stays (B, N - r), in ToMe's order, and the pairs."""
    every = torch.arange(metric.shape[1], device=metric.device)
    even, odd = every[::2], every[1::2]
    front = int(class_token and even.numel() > 0)
    behind = int(distill_token and odd.numel() > 1)
    r = max(0, min(r, (every.numel() - class_token - distill_token) // 2))
    if r == 0:
        none = every.new_empty(metric.shape[0], 0)
        whole = every.expand(metric.shape[0], -1)
        return whole, Pairs(whole, none, none)
    pairs = match(metric, r, even[front:], odd[behind:])
    kept, odd = pairs.kept, odd.expand(metric.shape[0], -1)
    if class_token:
        first = even[:1].expand(metric.shape[0], -1)
        kept = torch.cat([first, kept.sort(dim=1).values], dim=1)
    if distill_token:
        return torch.cat([kept[:, :1], odd[:, :1], kept[:, 1:], odd[:, 1:]], dim=1), pairs
    return torch.cat([kept, odd], dim=1), pairs


def merge(
    metric: Tensor,
    x: Tensor,
    r: int,
    size: Tensor | None = None,
    class_token: bool = False,
    distill_token: bool = False,
) -> Merged:
    """ToMe's bipartite soft matching and weighted merge of r tokens.

    Args:
        metric: (B, N, D) features to compare; ToMe takes the attention keys, mean over heads.
        x: (B, N, C) tokens. r: tokens to remove, at most half of the unprotected ones.
        size: (B, N, 1) source tokens behind each token; None for ones.
        class_token, distill_token: token 0, token 1 is one and never merges.

    Returns:
        The sources that stay, then all destinations in their order. The sources stand by
        falling score without a class token, else in their order; with a distill token the
        output starts with the first source and the first destination.

    Raises:
        InputError: shapes that do not fit.
    """
    check_shapes(x, metric, size)
    stays, pairs = pair(metric, r, class_token, distill_token)
    owner = owners(stays, pairs)
    if pairs.merged.shape[1] == 0:
        return Merged(x, torch.ones_like(x[..., :1]) if size is None else size, owner)
    sizes = torch.ones_like(x[..., :1]) if size is None else size
    return Merged(*weighted(x, sizes, owner, stays.shape[1]), owner)


def merge_kth(metric: Tensor, x: Tensor, k: int, size: Tensor | None = None) -> Merged:
    """ToMe's k-th variant: every k-th token stays and all others join the one most like them.

    Arguments as in `merge`. N // k tokens come out; the N % k tokens at the end vanish, as in
    the authors' code, so that `owner` is (B, N - N % k). k <= 1 changes nothing.

    Raises:
        InputError: shapes that do not fit, or fewer than k tokens.
    """
    check_shapes(x, metric, size)
    if k > x.shape[1]:
        raise InputError(f"every {k}th of {x.shape[1]} tokens is none: choose a smaller k")
    sizes = torch.ones_like(x[..., :1]) if size is None else size
    every = torch.arange(x.shape[1], device=x.device)
    if k <= 1:
        return Merged(x, sizes, every.expand(x.shape[0], -1))
    whole = every.numel() // k * k
    every = every[:whole]
    last = every % k == k - 1
    pairs = match(metric[:, :whole], whole, every[~last], every[last])
    stays = every[last].expand(x.shape[0], -1)
    owner = owners(stays, pairs)
    return Merged(*weighted(x[:, :whole], sizes[:, :whole], owner, stays.shape[1]), owner)


def unmerge(x: Tensor, owner: Tensor) -> Tensor:
    """Copies of merged tokens (B, K, C) at the places (B, N) that `Merged.owner` tells."""
    return x.gather(1, owner[..., None].expand(-1, -1, x.shape[2]))


def parse_r(num_layers: int, r: int | Sequence[int] | tuple[int, float]) -> list[int]:
    """Merges at every layer: a constant, (r, slope), or a list that zeros fill up.

    A tuple (r, f) goes in a line from int(r (1 - f)) to twice r less that, so that (r, -1) falls
    from 2 r to 0 and (r, 1) rises from 0 to 2 r.
    """
    if isinstance(r, tuple) and len(r) == 2:
        low = int(r[0] * (1.0 - r[1]))
        step = (2 * r[0] - 2 * low) / max(1, num_layers - 1)
        return [int(low + step * layer) for layer in range(num_layers)]
    counts = [int(r)] * num_layers if isinstance(r, int) else [int(n) for n in r]
    return counts + [0] * (num_layers - len(counts))


def rows_of(label: Tensor) -> list[Tensor]:
    """The tokens of every label (L,), in their present order; labels ascend."""
    order = torch.argsort(label, stable=True)
    _, counts = torch.unique_consecutive(label[order], return_counts=True)
    return list(order.split(counts.tolist()))


def matching_metric(tokens: VideoTokens) -> Tensor:
    """The keys of the vision tower where the model gives them, else the features: (L, D)."""
    keys = tokens.signals.get("vision-keys")
    return (tokens.features if keys is None else keys).detach()


def one_round(
    metric: Tensor,
    rows: Sequence[Tensor],
    goals: Sequence[int],
    *,
    ascending: bool = False,
    front: Sequence[int] | None = None,
) -> tuple[Merge, list[tuple[Tensor, Tensor]]]:
    """Merge inside rows of tokens towards `goals` tokens a row, each at most halving its row.

    Args:
        metric: (L, D) what is compared. rows: the tokens of every row, without gaps in all.
        goals: tokens that shall remain of every row, at least 1.
        ascending: sources that stay keep their order (TempMe) and do not stand by score (ToMe).
        front: for every row the tokens that stand before it in a tower and never merge (CLS):
            behind an odd number of them the authors' sources are the odd tokens.

    Returns:
        The size-weighted merge, rows one after the other and each in the authors' order, and
        the pairs, (F, r) sources and destinations for rows that are alike.
    """
    count = sum(row.numel() for row in rows)
    alike: dict[tuple[int, int, int], list[int]] = {}
    for i, row in enumerate(rows):
        size, odd = row.numel(), 0 if front is None else front[i] % 2
        alike.setdefault((size, min(size // 2, size - goals[i]), odd), []).append(i)
    joins, stays, found = torch.arange(count), list(rows), []
    for (size, r, odd), which in alike.items():
        if r == 0:
            continue
        index = torch.stack([rows[i] for i in which])
        sources, sinks = torch.arange(odd, size, 2), torch.arange(1 - odd, size, 2)
        pairs = match(metric[index.to(metric.device)], r, sources, sinks)
        kept, merged, into = (part.cpu() for part in pairs)
        kept = kept.sort(dim=1).values if ascending else kept
        left = index.gather(1, torch.cat([kept, sinks.expand(len(which), -1)], dim=1))
        for row, i in zip(left, which, strict=True):
            stays[i] = row
        merged, into = index.gather(1, merged), index.gather(1, into)
        joins[merged] = into
        found.append((merged, into))
    representative = torch.cat(stays)
    slot = torch.empty_like(joins)
    slot[representative] = torch.arange(representative.numel())
    return Merge(slot[joins], representative, "size"), found


def neighbours(tokens: VideoTokens, budget: int) -> Merge:
    """`budget` equal runs of neighbouring tokens in time: for one token a frame, and too many."""
    order = torch.argsort(tokens.frame, stable=True)
    group = torch.empty_like(order)
    group[order] = equal_runs(torch.arange(len(tokens)), len(tokens), budget)
    merged = merge_groups(tokens, group)
    return Merge(merged.target, merged.representative, "size")


@register("tome")
@dataclass
class Tome(InTower):
    """Merge similar tokens of a frame in rounds, each at most halving it, by size (ToMe).

    Tokens are compared by the vision tower's keys where the model gives them ("vision-keys"),
    else by their features. ToMe takes a fixed number at every layer; here every frame gets its
    share of the budget (the first ones one more) and a round takes min(N // 2, N - share) of
    its tokens. A budget below the number of frames first merges every frame to one token and
    then the frames' tokens in `budget` equal runs of neighbours.

    In a vision transformer it acts between the attention and the MLP of every layer, by that
    layer's keys, and equally many tokens leave at each (see `in_tower.falling`); else, and with
    `tower` false, on the tower's output.

    Attributes:
        faithful: the authors' order inside a frame: sources that stayed by falling score, then
            destinations. By default tokens stand in time and raster order, in the next round too
            (the defect: without a CLS token the order of the picture is lost).
    """

    faithful: bool = field(default=False, metadata={"help": "the authors' order of tokens"})

    uses = ("vision-keys",)
    paper = "ToMe, arXiv 2210.09461"
    summary = "similar tokens of a frame merge by their keys, weighed by size"

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round over all frames."""
        return self._round(tokens, budget)

    def tower_steps(self, shape: TowerShape, budget: int | None) -> list[TowerStep]:
        """One merge at every layer."""
        counts = falling(shape, shape.frames if budget is None else budget, shape.layers)
        plan = partial(self._round, front=shape.special)
        return [
            TowerStep(layer, "attention", partial(rounds, plan, goal=count))
            for layer, count in enumerate(counts)
        ]

    def _round(self, tokens: VideoTokens, budget: int, front: int = 0) -> Selection:
        _, frames, counts = present_frames(tokens)
        if len(tokens) == frames.numel():
            return neighbours(tokens, budget)
        goals = share(max(budget, frames.numel()), counts.tolist())
        merged, _ = one_round(
            matching_metric(tokens),
            rows_of(tokens.frame),
            goals,
            ascending=front > 0,
            front=[front] * len(goals),
        )
        return merged if self.faithful else merged.in_order(tokens.position)
