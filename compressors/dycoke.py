"""DyCoke: frames in groups, of which only the first stays whole (arXiv 2411.15024).

What it does while answering is in `dycoke_cache`; "dycoke,dycoke-cache" is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register
from .shared.kernels import row_cosine
from .shared.segments import present_frames, share


def allocate(sizes: Sequence[int], budget: int, group: int) -> list[int]:
    """How many tokens every frame keeps; the sum is `budget`, which is below the sum of `sizes`.

    The first frame of every group stays whole and the others share what is left, each at least
    one token and the first ones one more. While the budget does not hold that, groups double;
    when even one group is too much all frames share alike, and with fewer tokens than frames
    evenly spaced frames keep one each.
    """
    frames = len(sizes)
    if budget < frames:
        spread = {(2 * i + 1) * frames // (2 * budget) for i in range(budget)}
        return [int(t in spread) for t in range(frames)]
    while True:
        others = [size for t, size in enumerate(sizes) if t % group]
        left = budget - (sum(sizes) - sum(others))
        if left >= len(others):
            shares = iter(share(left, others))
            return [next(shares) if t % group else size for t, size in enumerate(sizes)]
        if group >= frames:
            return share(budget, sizes)
        group *= 2


@register("dycoke")
@dataclass
class DyCoke(Compressor):
    """Keep one frame of a group whole and of the others the tokens least like it (DyCoke, TTM).

    Frame i of a group is compared, cell by cell, with frame i minus its lowest bit: 1 and 2 with
    0, and 3 with 2, as the published groups of four do. Groups follow the frames that still have
    tokens, and a token whose cell is missing in the other frame counts as new and stays first.

    The published method has a fixed share for the thinned frames. Here the budget decides: whole
    frames first, the rest shared by the thinned ones. A budget that does not hold the whole frames
    and one token of each other doubles the groups until it does; below that all frames are thinned
    alike, the first one evenly, as nothing stands before it. A budget below the number of frames
    keeps one token in each of evenly spaced frames.

    The defects of the published code are corrected: an odd last frame stays, the last group is
    thinned as the others, four frames or fewer work.

    Attributes:
        group: frames a group, a power of two from 2 up; only the first of them is whole.
    """

    group: int = field(default=4, metadata={"help": "frames of which one stays whole"})

    paper = "DyCoke, arXiv 2411.15024"
    summary = "one frame of a group stays whole, the others keep what is new"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2 or self.group & (self.group - 1):
            raise InputError(f"dycoke: group must be a power of two from 2 up, not {self.group}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Share the budget between the frames, then keep the least similar of each."""
        order, _, counts = present_frames(tokens)
        sizes: list[int] = counts.tolist()
        goals = allocate(sizes, budget, self.group)
        rank = torch.arange(len(sizes)).repeat_interleave(counts)
        alike = _similarity(tokens, order, rank, len(sizes))
        index = []
        for t, (own, part) in enumerate(zip(order.split(sizes), alike.split(sizes), strict=True)):
            goal, size = goals[t], sizes[t]
            if t == 0:
                index.append(own[(2 * torch.arange(goal) + 1) * size // (2 * max(1, goal))])
            else:
                index.append(own[part.argsort(stable=True)[:goal]])
        return Keep(torch.cat(index).sort().values)


def _similarity(tokens: VideoTokens, order: Tensor, rank: Tensor, frames: int) -> Tensor:
    """(L,) cosine of the tokens in `order` with their cell in the frame to compare with.

    `rank` (L,) is the frame of each among those present; -2 where there is no such cell.
    """
    _, rows, columns = tokens.grid
    slot = (tokens.cell[:, 0] * columns + tokens.cell[:, 1])[order]
    known = (tokens.cell[order] >= 0).all(dim=1)
    table = torch.full((frames, rows * columns), -1)
    table[rank[known], slot[known]] = order[known]
    before = table[rank & (rank - 1).clamp(min=0), slot.clamp(min=0)]
    there = known & (before >= 0) & (rank > 0)
    alike = torch.full((order.numel(),), -2.0)
    alike[there] = row_cosine(tokens.features, order[there], before[there]).cpu()
    return alike
