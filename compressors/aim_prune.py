"""AIM's pruning inside the decoder (arXiv 2412.03248): PageRank of the attention, layer by layer.

`importance_rows` gives the importance; `AimPrune` is the method on
`VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register


@torch.no_grad()
def importance_rows(
    rows: Callable[[int, int], Tensor],
    length: int,
    steps: int = 5,
    damping: float = 0.0,
    block: int = 256,
    mask: Tensor | None = None,
    temperature: float | None = None,
) -> Tensor:
    """Importance by PageRank of a causal attention matrix that is asked for block by block.

    A step moves importance from a row to columns at or before it. So blocks are asked for once,
    the last first: when a block comes, no step will move more into it than what its own corner
    does, and all steps go through it before the next one. No block is kept.

    Args:
        rows: rows(start, stop) gives the rows start..stop-1 of the softmax matrix, (H, stop -
            start, L) or (B, H, stop - start, L). With `temperature` it gives their logits,
            masked, and the softmax is taken here. Columns from `stop` on are not read and may be
            left out.
        length: L. steps: of the power iteration. damping: part of the start in every step.
        block: rows asked for at a time.
        mask: (L,) or (B, L) bool, tokens that take part; None for all.
        temperature: of the softmax, when `rows` gives logits (AIM: 0.1).

    Returns:
        (L,) or (B, L) float32.

    Raises:
        InputError: options that do not fit, or logits where softmax rows are expected.
    """
    _check(1.0 if temperature is None else temperature, steps, damping)
    if length < 1 or block < 1:
        raise InputError(f"length and block must be at least 1, not {length} and {block}")
    live = torch.ones(length, dtype=torch.bool) if mask is None else mask
    start = (live / live.sum(dim=-1, keepdim=True).clamp(min=1)).unsqueeze(-2)  # (..., 1, L)
    dead = None if mask is None else ~live[..., None, :, None]
    p: Tensor | None = None  # (..., H, steps + 1, L): before every step and after the last
    for stop in range(length, 0, -block):
        first = max(0, stop - block)
        part = rows(first, stop)[..., :stop].float()
        if temperature is not None:
            sharp = part if temperature == 1 else part / temperature
            part = torch.softmax(sharp, dim=-1)
        if dead is not None:
            part = part.masked_fill(dead[..., first:stop, :].to(part.device), 0.0)
        if p is None:
            start = start.to(part.device)
            p = part.new_zeros(*part.shape[:-2], steps + 1, length)
            p += damping * start[..., None, :]
            p[..., 0, :] = start
        own, corner = p[..., first:stop], (1 - damping) * part[..., first:]
        for step in range(steps):
            own[..., step + 1, None, :] += own[..., step, None, :] @ corner
        p[..., 1:, :first] += ((1 - damping) * own[..., :-1, :]) @ part[..., :first]
    assert p is not None
    if temperature is None and bool((p < 0).any()):
        raise InputError("the rows hold negative numbers: give softmax rows or a temperature")
    return p[..., -1, :].square().mean(dim=-2).sqrt()


def _check(temperature: float, steps: int, damping: float) -> None:
    if not temperature > 0 or steps < 1 or not 0 <= damping <= 1:
        raise InputError(
            f"importance needs temperature > 0, steps >= 1 and damping in [0, 1], not "
            f"{temperature}, {steps}, {damping}"
        )


def retention(num_layers: int, start: int = 14, slope: float = 0.125) -> list[float]:
    """The share of video tokens that stays visible behind every layer.

    1 before layer `start`, then `slope` less a layer, down to 0. The authors: start 14 of 28
    layers (Qwen2), 13 of 32 (Vicuna), slope 1/8.
    """
    falling = (1 - slope * (layer - start + 1) for layer in range(start, num_layers))
    return [1.0] * min(start, num_layers) + [max(0.0, share) for share in falling]


@register("aim-prune")
@dataclass
class AimPrune(Scorer):
    """Fewer video tokens at every layer of the decoder's second half, by PageRank importance.

    The driver computes "decoder-importance" of the layer before each cut with
    `importance_rows`. The authors only hide pruned tokens from later keys, which saves no
    work and lets them take part in the next importance as queries; here they leave, and the
    importance is that of the tokens which are there. Their mask leak in decoding, their shared
    count for unequal texts and their NaN for padded rows cannot occur. Their schedule goes
    down to no video token at all; here it stops at `keep`, and at one token.

    Attributes:
        start: layer whose attention first decides, in a decoder of 28 layers.
        slope: share that leaves a layer, in a decoder of 28 layers. Both are scaled to the
            depth of the model, and the last cut always leaves `keep`.
    """

    start: int = field(default=14, metadata={"help": "first deciding layer, of 28"})
    slope: float = field(default=0.125, metadata={"help": "share that leaves a layer, of 28"})

    stage = "prefill"
    needs = ("decoder-importance",)
    paper = "AIM, arXiv 2412.03248"
    summary = "fewer tokens at every later layer, by PageRank of the attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start < 28 or not 0 < self.slope <= 1:
            raise InputError(
                f"aim-prune: start must be 0 to 27 and slope in (0, 1], not {self.start} and "
                f"{self.slope}"
            )

    def points(self, depth: int) -> list[tuple[int, float]]:
        """A cut before every layer from the one behind `start`, down to `keep`.

        Raises:
            InputError: a decoder of one layer, where no layer comes before another.
        """
        if depth < 2:
            raise InputError("aim-prune: a decoder of one layer has no layer to prune before")
        start = min(int(self.start * depth / 28 + 0.5), depth - 2)
        cuts = []
        for layer, share in enumerate(retention(depth, start, self.slope * 28 / depth)[:-1]):
            left = self.keep if layer == depth - 2 else max(self.keep, share)
            if layer >= start:
                cuts.append((layer + 1, left))
            if left == self.keep and layer >= start:
                break
        return cuts

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """The importance that the driver computed."""
        return self.signal(tokens, "decoder-importance")
