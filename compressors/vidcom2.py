"""VidCom2: the most unusual tokens, and more of them in unusual frames (arXiv 2505.14454).

`rate` and `frame_scales` follow the published code; `VidCom2` is the method on `VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens
from vidllm.tokens.video_tokens import take

from .base import Compressor
from .registry import register
from .shared.kernels import blocks, step_of, unit_into, variance
from .shared.segments import present_frames

_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
_TEMPERATURE = 0.01


def rate(features: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """How usual every token is in the video and in its frame; both lie in (0, 5].

    The floor(D / 2) channels of lowest population variance over the video are taken (at least
    one), tokens are normalised over them (norms from 1e-12 up), and a token is compared with
    the mean token of the video and of its frame by a sum of five Gaussian kernels.

    Args:
        features: (N, D), frame by frame. sizes: tokens of every frame, with the sum N.

    Returns:
        vid_score (N,), frame_score (N,) in float32 on the device of the features.
    """
    x, (count, width) = features.detach(), features.shape
    calm = torch.zeros(width, device=x.device)
    calm[variance(x).argsort(stable=True)[: max(1, width // 2)]] = 1.0
    rows, scratch = torch.empty(2, min(count, step_of(x)), width, device=x.device)

    def unit(some: Tensor) -> Tensor:
        picked = torch.mul(some, calm, out=rows[: len(some)])
        return unit_into(picked, picked, 1e-12)

    # Two passes, the second for distances from the means, since half a clip is too much to hold.
    centres = []
    for part in x.split(list(sizes)):
        total = torch.zeros(width, dtype=torch.float64, device=x.device)
        for _, some in blocks(part):
            total += unit(some).sum(dim=0)
        centres.append(total)
    video = (torch.stack(centres).sum(dim=0) / count).float()
    vid, frame = torch.empty(2, count, device=x.device)
    first = 0
    for part, size, total in zip(x.split(list(sizes)), sizes, centres, strict=True):
        own = (total / size).float()
        for where, some in blocks(part):
            near, away = unit(some), scratch[: len(some)]
            here = slice(first + where.start, first + where.stop)
            for scores, centre in ((vid, video), (frame, own)):
                torch.sub(near, centre, out=away).square_()
                scores[here] = _kernel(away.sum(dim=-1))
        first += size
    return vid, frame


def _kernel(distance: Tensor) -> Tensor:
    return torch.stack([torch.exp(-distance / (2 * width)) for width in _WIDTHS]).sum(dim=0)


def frame_scales(vid_score: Tensor, sizes: Sequence[int], R: float) -> Tensor:
    """(T,) float32 share of its tokens that every frame keeps, at most 1.

    It is R * (1 + p - mean(p)), where p is the softmax, at temperature 0.01, of how unusual the
    frames' tokens are on average. One clear outlier gets up to 2R and the others a little less
    than R; frames that are much alike all get about R.
    """
    unusual = -torch.stack([part.mean() for part in vid_score.split(list(sizes))])
    p = torch.softmax((unusual - unusual.max()) / _TEMPERATURE, dim=0)
    return (R * (1 + p - p.mean())).clamp(max=1.0)


def _wanted(scales: Tensor, sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The share of every frame in tokens (T,) before and after rounding, on the CPU."""
    exact = scales.cpu() * torch.tensor(sizes)
    rounded: list[int] = torch.round(exact).clamp(min=1).long().tolist()
    return exact, rounded


def _least_usual(usual: Tensor, sizes: Sequence[int], kept: Sequence[int]) -> Tensor:
    """(sum(kept),) the `kept[t]` tokens of frame t with the smallest score, ascending."""
    index, first = [], 0
    for part, size, k in zip(usual.cpu().split(list(sizes)), sizes, kept, strict=True):
        index.append(first + part.argsort(stable=True)[:k].sort().values)
        first += size
    return torch.cat(index)


def _settle(kept: Sequence[int], exact: Tensor, sizes: Sequence[int], budget: int) -> list[int]:
    """Change rounded counts by ones until their sum is `budget`.

    Each one goes to the frame that is farthest below its exact share (from the one farthest
    above); of equals the earlier frame gets and the later one gives. No frame goes above its
    size, nor below 1 while the budget reaches for that.
    """
    count, size = torch.tensor(kept), torch.tensor(sizes)
    floor = 1 if budget >= len(sizes) else 0
    missing = budget - int(count.sum())
    for _ in range(abs(missing)):
        if missing > 0:
            gap = (exact - count).masked_fill(count >= size, -torch.inf)
            count[int(gap.argmax())] += 1
        else:
            gap = (count - exact).masked_fill(count <= floor, -torch.inf)
            count[len(sizes) - 1 - int(gap.flip(0).argmax())] -= 1
    result: list[int] = count.tolist()
    return result


@register("vidcom2")
@dataclass
class VidCom2(Compressor):
    """Keep the tokens least like the video's and their frame's mean (VidCom2).

    Frames whose tokens are unusual in the video keep more. The published counts are rounded
    frame by frame and clamped, so that their sum misses the budget; here single tokens are then
    given to the frames farthest below their exact share, or taken from those farthest above,
    until the sum is the budget. Every frame keeps a token as in the published code, except that
    a budget below the number of frames leaves the least unusual frames without any. A frame
    counts as what it still holds, so the method runs on thinned clips as well.

    Scores are taken in float32; the published code sums the kernels in the dtype of the model,
    where half precision blurs them.
    """

    paper = "VidCom2, arXiv 2505.14454"
    summary = "tokens unlike the video's and the frame's mean stay"

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Score all tokens, share the budget between the frames, keep the least usual."""
        order, _, counts = present_frames(tokens)
        sizes: list[int] = counts.tolist()
        vid, frame = rate(take(tokens.features, order), sizes)
        exact, rounded = _wanted(frame_scales(vid, sizes, budget / len(tokens)), sizes)
        kept = _settle(rounded, exact, sizes, budget)
        return Keep(order[_least_usual(vid + frame, sizes, kept)].sort().values)
