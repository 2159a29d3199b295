"""DivPrune: the most diverse tokens by greedy max-min distance (arXiv 2503.02175).

`pick` is the greedy search, `DivPrune` the method on `VideoTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .evs import NOISE
from .registry import register

# Distances held at a time while the first token is searched (64 MiB in float32).
_BLOCK = 2**24


def pick(features: Tensor, count: int, faithful: bool = False) -> Tensor:
    """Greedy choice of tokens that lie far from each other, in the order of picking.

    The distance is 1 - cosine. First comes the token whose nearest neighbour is farthest away,
    then again and again the token whose nearest picked token is farthest. The distances to the
    picked are kept as a running minimum: memory is linear in N, time is count x N x D, and
    nothing waits for a GPU between the steps.

    Args:
        features: (N, D). count: tokens to pick, at most N.
        faithful: as the published code, which does not exclude picked tokens: once all others
            equal a picked one, an index comes again and again, as the rounding of the cosine
            has it. By default every token is picked at most once and distances below 1e-6 are
            none. A token of zeros is NaN for the published code; it has distance 1 to all here.

    Returns:
        (count,) indices into N, on the device of the features. Ties: the earlier token.
    """
    x = features.detach().float()
    unit = x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)

    def settle(distance: Tensor) -> Tensor:
        return distance if faithful else torch.where(distance < NOISE, 0.0, distance)

    apart = settle(_nearest(unit))
    picked: list[Tensor] = []
    for step in range(count):
        best = apart.argmax(dim=0, keepdim=True)
        picked.append(best)
        distance = settle(1 - (unit @ unit.index_select(0, best)[0]))
        apart = distance if step == 0 else torch.minimum(apart, distance)
        if not faithful:
            apart.index_fill_(0, best, -torch.inf)
    return torch.cat(picked) if picked else torch.empty(0, dtype=torch.long, device=x.device)


def _nearest(unit: Tensor) -> Tensor:
    """(N,) the second smallest distance of every token (the smallest is its own), in blocks."""
    if unit.shape[0] < 2:
        return unit.new_zeros(unit.shape[0])
    blocks = unit.split(max(1, _BLOCK // unit.shape[0]))
    return torch.cat([(1 - rows @ unit.T).topk(2, largest=False).values[:, 1] for rows in blocks])


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
        chosen[pick(tokens.features, budget, self.faithful).cpu()] = True
        missing = budget - int(chosen.sum())
        chosen[torch.nonzero(~chosen).flatten()[:missing]] = True
        return Keep(torch.nonzero(chosen).flatten())
