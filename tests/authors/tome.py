"""ToMe (facebookresearch/ToMe): matching, weighted merge, its k-th variant, counts by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens.matching import Pairs, match


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


def owners(stays: Tensor, pairs: Pairs) -> Tensor:
    """The output row (B, N) of every input row, where the rows `stays` (B, K) make the output."""
    count = stays.shape[1] + pairs.merged.shape[1]
    owner = stays.new_zeros(stays.shape[0], count)
    owner.scatter_(1, stays, torch.arange(stays.shape[1], device=stays.device).expand_as(stays))
    return owner.scatter(1, pairs.merged, owner.gather(1, pairs.into))


def weighted(x: Tensor, size: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Size-weighted means of the rows that share an owner, and their summed sizes.

    Args:
        x: (B, N, C). size: (B, N, 1), a row of size 0 adds nothing. owner: (B, N) output row.
        count: output rows K.

    Returns:
        (B, K, C) in the dtype of `x`, summed in float32 at least, and (B, K, 1).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    weight = size.to(exact)
    index = owner[..., None]
    whole = weight.new_zeros(x.shape[0], count, 1).scatter_add(1, index, weight)
    total = weight.new_zeros(x.shape[0], count, x.shape[2])
    total = total.scatter_add(1, index.expand_as(x), x.to(exact) * weight)
    mean = total / whole.clamp(min=torch.finfo(exact).tiny)
    return mean.to(x.dtype), whole.to(size.dtype)


def check_shapes(x: Tensor, metric: Tensor, size: Tensor | None) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        InputError: not x (B, N, C), metric (B, N, D) and size (B, N, 1).
    """
    if x.dim() != 3 or metric.dim() != 3 or x.shape[:2] != metric.shape[:2]:
        raise InputError(
            f"x and metric must be (B, N, C) and (B, N, D), not {tuple(x.shape)} and "
            f"{tuple(metric.shape)}"
        )
    if size is not None and size.shape != (*x.shape[:2], 1):
        raise InputError(f"size must be {(*x.shape[:2], 1)}, not {tuple(size.shape)}")


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
