"""VisionZip (arXiv 2412.04467): the most attended tokens stay, the others gather around a few."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens, apply_rows

from .base import Compressor
from .registry import register
from .shared.segments import equal_runs, present_frames, share


def assign(
    score: Tensor, metric: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the tokens of frames into dominant ones, targets, and those that join a target.

    Targets are every step-th of the tokens that are not dominant, step = max(1, M // contextual)
    for M of them; each other one joins the target whose key is most cosine-similar.

    Args:
        score: (B, N) attention. metric: (B, N, Dk) keys. dominant, contextual: how many a frame.

    Returns:
        best (B, dominant), by falling score; targets (B, contextual), ascending; rest (B, R),
        ascending; and into (B, R), the column of `targets`. Equal scores: the earlier token,
        the earlier target. Without targets `into` is -1.
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    best, left = order[:, :dominant], order[:, dominant:].sort(dim=1).values
    aim = torch.zeros(left.shape[1], dtype=torch.bool, device=left.device)
    if contextual:
        step = max(1, left.shape[1] // contextual)
        aim[torch.arange(contextual, device=left.device) * step] = True
    targets, rest = left[:, aim], left[:, ~aim]
    if not contextual:
        return best, targets, rest, torch.full_like(rest, -1)
    exact = metric.float()
    # The authors divide by the bare norm; a key of zeros then spreads NaN. It scores 0 here.
    unit = exact / exact.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(exact.dtype).tiny)
    sources, sinks = (
        unit.gather(1, which[..., None].expand(-1, -1, unit.shape[2])) for which in (rest, targets)
    )
    return best, targets, rest, (sources @ sinks.transpose(1, 2)).argmax(dim=2)


@register("visionzip")
@dataclass
class VisionZip(Compressor):
    """The most attended tokens of a frame stay, the others merge around evenly spaced targets.

    Every frame gets its share of the budget (the first ones one more), of which int(share *
    dominant) tokens are dominant and the rest contextual. A budget below the number of frames
    takes each of `budget` equal runs of neighbouring frames as one frame, which becomes one
    contextual token, the mean of them all. CLS tokens are not tokens of the video.

    It acts on the tower's output and saves no time there: it chooses by the attention of the last
    layer but one (without a CLS the last), so that all layers before have run on every token, and
    the authors' features are those in front of the layer that is left.

    A contextual token is the plain mean of its target and the tokens that join it.

    Attributes:
        dominant: the share of a frame's kept tokens that are dominant (54 of 64 in the
            authors' settings).
        faithful: the authors' order inside a frame (dominant, then contextual: the defect is
            that places no longer run in raster order), and their contextual tokens: target
            plus mean of what joins it, up to about twice the norm that the model knows.
    """

    dominant: float = field(
        default=54 / 64, metadata={"help": "dominant share of a frame's kept tokens, in [0, 1]"}
    )
    faithful: bool = field(
        default=False, metadata={"help": "the authors' order, and sums in place of means"}
    )

    stage = "vision"
    needs = ("cls-attention", "vision-keys")
    paper = "VisionZip, arXiv 2412.04467"
    summary = "attended tokens stay, the rest of a frame merges around spaced targets"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dominant <= 1:
            raise InputError(f"visionzip: dominant must be a share in [0, 1], not {self.dominant}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round that meets the budget at once."""
        device = tokens.features.device
        score = self.signal(tokens, "cls-attention").detach().to(device)
        keys = self.signal(tokens, "vision-keys").detach().to(device)
        order, frames, counts = present_frames(tokens)
        if budget < frames.numel():
            run = equal_runs(torch.arange(frames.numel()), frames.numel(), budget)
            counts = counts.new_zeros(budget).index_add_(0, run, counts)
        sizes: list[int] = counts.tolist()
        groups, goals = order.split(sizes), share(budget, sizes)
        alike: dict[tuple[int, int], list[int]] = {}
        for f, key in enumerate(zip(sizes, goals, strict=True)):
            alike.setdefault(key, []).append(f)
        carrier = torch.full((len(tokens),), -1)
        stays = list(groups)
        for (_, goal), which in alike.items():
            index = torch.stack([groups[f] for f in which])
            place, dominant = index.to(device), int(goal * self.dominant)
            picked = assign(score[place], keys[place], dominant, goal - dominant)
            best, targets, rest, into = (v.cpu() for v in picked)
            if goal > dominant:
                carrier[index.gather(1, rest)] = index.gather(1, targets.gather(1, into))
            left = index.gather(1, torch.cat([best.sort(dim=1).values, targets], dim=1))
            for row, f in enumerate(which):
                stays[f] = left[row]
        stay = torch.cat(stays)
        carrier[stay] = stay
        number = torch.full((len(tokens),), -1)
        number[stay] = torch.arange(len(stay))
        result = Merge(torch.where(carrier < 0, -1, number[carrier.clamp(min=0)]), stay)
        return self._sums(tokens, result) if self.faithful else result.in_order(tokens.position)

    @staticmethod
    def _sums(tokens: VideoTokens, merge: Merge) -> Mix:
        """The authors' target + mean of what joins it, in the order of `merge`."""
        rows = tokens.features.to(torch.promote_types(tokens.features.dtype, torch.float32))
        own = rows.index_select(0, merge.representative.to(rows.device))
        count = torch.bincount(merge.target[merge.target >= 0], minlength=len(merge))
        others = (count - 1)[:, None].to(rows.device)
        joined = (apply_rows(rows, merge) * (others + 1) - own) / others.clamp(min=1)
        sums = torch.where(others > 0, own + joined, own).to(tokens.features.dtype)
        return Mix(sums, merge.target, merge.representative)
