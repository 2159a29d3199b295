"""MrT5 (arXiv 2410.20771): hard deletion in a batch, and the weight of the gate's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidllm.errors import InputError


def delete(x: Tensor, gates: Tensor, threshold: float = -5.0) -> tuple[Tensor, Tensor]:
    """Hard deletion in a batch: tokens with a gate below the threshold go.

    Args:
        x: (B, L, D) tokens. gates: (B, L). threshold: half of the gate's scale by default.

    Returns:
        (B, M, D) the survivors in their order, zeros after the last of a row, and (B, M) their
        indices, -1 there. A row that would lose all keeps its best token (the first such).
    """
    if x.dim() != 3 or gates.shape != x.shape[:2] or x.shape[1] == 0:
        shapes = f"{tuple(x.shape)} and {tuple(gates.shape)}"
        raise InputError(f"x and gates must be (B, L, D) and (B, L), not {shapes}")
    stays = gates >= threshold
    best = torch.zeros_like(stays).scatter_(1, gates.argmax(dim=1, keepdim=True), True)
    stays = torch.where(stays.any(dim=1, keepdim=True), stays, best)
    longest = int(stays.sum(dim=1).max())
    order = torch.argsort(stays.int(), dim=1, descending=True, stable=True)[:, :longest]
    live = stays.gather(1, order)
    kept = x.gather(1, order[..., None].expand(-1, -1, x.shape[2])) * live[..., None]
    return kept, torch.where(live, order, -1)


@dataclass
class ShareController:
    """Weighs the gate's loss so that the share of tokens kept comes to `keep`.

    The loss is CE + alpha * mean(gate over the real tokens); with the error e = kept - keep,
    p = 0.9 p + 0.1 k_p e and i = i + k_i e, alpha = max(0, p + i).
    """

    keep: float
    k_p: float = 0.5
    k_i: float = 1e-5
    p: float = 0.0
    i: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {self.keep!r}")

    def step(self, kept: float) -> float:
        """The weight alpha after a step that kept this share of its tokens."""
        error = kept - self.keep
        self.p = 0.9 * self.p + 0.1 * self.k_p * error
        self.i += self.k_i * error
        return max(0.0, self.p + self.i)
