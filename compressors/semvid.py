"""SemVID (arXiv 2603.05663): tokens shared out over frames by the question, then chosen in each.

The authors' rules (their Qwen3-VL variant) for frames of any size and an exact count; see
`allocation` for the frame budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Selection, VideoTokens
from vidllm.tokens.video_tokens import take

from .base import Compressor
from .registry import register
from .shared.allocation import FLOOR, allocate, frame_means, question, shares
from .shared.kernels import row_distance
from .shared.segments import unit


def choose(
    x: Tensor,
    g: Tensor,
    saliency: Tensor,
    motion: Tensor,
    query: Tensor,
    keep: int,
    *,
    obj: float = 0.6,
    lam: float = 0.9,
    beta: float = 0.5,
    minf: int = 0,
) -> tuple[list[int], list[int], list[int]]:
    """The `keep` tokens of one frame, by what they were taken for: context, object, motion.

    Context: the token most like the frame's mean, then `minf` - 1 of the largest saliency.
    Object: round(obj * rest) by maximal marginal relevance to the query's rows, which share them
    by their best cosine with the frame. Motion: the others by score; where nothing moves, saliency.

    Args:
        x: (n, D) tokens. g: (D,) the frame's mean. saliency, motion: (n,). query: (L, D) rows,
            or (D,) one vector, which then has no part in the motion score.
        lam: weight of relevance against redundancy. beta: of relevance in the motion score.
    """
    tokens = unit(x, FLOOR)
    cosine = (tokens @ unit(query.reshape(-1, query.shape[-1]), FLOOR).T).cpu()
    alike = (tokens @ tokens.T).cpu()
    near = (tokens @ unit(g, FLOOR)).cpu()
    free = torch.ones(x.shape[0], dtype=torch.bool)

    def take(score: Tensor) -> int:
        best = int(score.masked_fill(~free, -torch.inf).argmax())
        free[best] = False
        return best

    base = min(max(minf, 1), keep)
    context = [take(near)] + [take(saliency) for _ in range(base - 1)]
    objects: list[int] = []
    wanted = allocate(cosine.amax(0), round((keep - base) * obj))
    for row in torch.argsort(cosine.amax(0).clamp(min=0), descending=True, stable=True).tolist():
        redundant = torch.zeros(x.shape[0])
        for turn in range(int(wanted[row])):
            picked = take(lam * cosine[:, row] - (1 - lam) * redundant)
            objects.append(picked)
            redundant = alike[picked] if turn == 0 else torch.maximum(redundant, alike[picked])
    score = motion
    if query.dim() == 2 and bool(free.any()):
        best = cosine.amax(1).clamp(min=0)
        score = (1 - beta) * motion / motion[free].max().clamp(min=1e-6)
        score = score + beta * best / best[free].max().clamp(min=1e-6)
    left = keep - base - len(objects)
    mobile = min(left, int((score[free] > 0).sum()))
    moving = [take(score) for _ in range(mobile)] + [take(saliency) for _ in range(left - mobile)]
    return context, objects, moving


def token_motion(x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """(L,) how far a token (L, D) is from the same cell of the frames before and after it.

    The mean of both distances, or the one there is; `before` and `after` (L,) are the tokens'
    indices, -1 where there is none. A token without both does not move.
    """
    total = torch.zeros(x.shape[0])
    for other in (before, after):
        there = torch.nonzero(other >= 0).flatten()
        total[there] += row_distance(x, there, other[there]).cpu()
    return total / ((before >= 0).long() + (after >= 0).long()).clamp(min=1)


@register("semvid")
@dataclass
class SemVid(Compressor):
    """Frames get tokens by relevance to the question and by motion; each keeps the best of them.

    In a frame: the token most like its mean, then tokens that answer to the question (diverse
    ones), then moving ones. The authors' count round(T n R) is our budget, which is met exactly;
    where it is less than `least` tokens a frame, `least` gives way (the authors exceed the
    budget). On thinned clips a token's motion is against the same cell of the neighbouring
    frames that still have tokens. Saliency is the token's L2 norm (Qwen3-VL).

    Attributes:
        alpha: relevance against motion in the budget of a frame. objects: share of a frame's
            tokens that are chosen for the question. diversity: weight of relevance against
            redundancy among these (1: relevance alone). beta: weight of relevance in the score
            of the moving tokens. smooth: frames over which relevance is averaged.
        least: tokens that every frame keeps at least. segments, tau: cut at the segments - 1
            least similar neighbours, and where the cosine is below tau. topk: segments that
            share what goes beyond `least`; 0 for all.
    """

    alpha: float = field(default=0.7, metadata={"help": "relevance against motion, 0 to 1"})
    objects: float = field(default=0.6, metadata={"help": "share chosen for the question"})
    diversity: float = field(default=0.9, metadata={"help": "relevance against redundancy"})
    beta: float = field(default=0.5, metadata={"help": "relevance among moving tokens, 0 to 1"})
    smooth: int = field(default=1, metadata={"help": "frames in the mean of relevance"})
    least: int = field(default=1, metadata={"help": "tokens that every frame keeps"})
    segments: int = field(default=0, metadata={"help": "cut into so many segments"})
    tau: float = field(default=0.0, metadata={"help": "cut where neighbours are less alike"})
    topk: int = field(default=0, metadata={"help": "segments that share the rest, 0 for all"})

    query_aware = True
    paper = "SemVID, arXiv 2603.05663"
    summary = "the question and motion share tokens out over frames"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "objects", "diversity", "beta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"semvid: {name} must be from 0 to 1, not {getattr(self, name)}")
        for name in ("smooth", "least", "segments", "topk"):
            if getattr(self, name) < 0:
                raise InputError(f"semvid: {name} cannot be negative, got {getattr(self, name)}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One keep list that meets the budget at once."""
        if query is None:
            raise InputError("semvid chooses tokens by the question: give it a query")
        asked = question(tokens, query)
        means, frames = frame_means(tokens)
        keeps = shares(
            means, asked, torch.tensor([len(part) for part in frames]), budget,
            c=self.segments, tau=self.tau, topk=self.topk, win=self.smooth, alpha=self.alpha,
            minf=self.least,
        )  # fmt: skip
        x = tokens.features.detach()
        motion, kept = token_motion(x, *_neighbours(tokens, frames)), []
        for part, mean, keep in zip(frames, means, keeps.tolist(), strict=True):
            if keep:
                own = take(x, part).float()
                norm = own.norm(dim=1).cpu()
                roles = choose(
                    own, mean, norm, motion[part], asked, keep,
                    obj=self.objects, lam=self.diversity, beta=self.beta, minf=self.least,
                )  # fmt: skip
                kept.append(part[torch.tensor([i for role in roles for i in role])])
        return Keep(torch.cat(kept).sort().values)


def _neighbours(tokens: VideoTokens, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(L,) the token in the same cell of the frame before, and of the one after; -1 for none."""
    _, rows, columns = tokens.grid
    table = torch.full((len(frames) + 2, rows * columns), -1)
    rank = torch.empty(len(tokens), dtype=torch.long)
    for number, part in enumerate(frames, 1):
        rank[part] = number
    slot = tokens.cell[:, 0] * columns + tokens.cell[:, 1]
    placed = torch.nonzero((tokens.cell >= 0).all(1)).flatten()
    table[rank[placed], slot[placed]] = placed
    lost = slot.clamp(min=0)
    found = [table[rank + step, lost].where((tokens.cell >= 0).all(1), -1) for step in (-1, 1)]
    return found[0], found[1]
