"""MrT5's delete gate (arXiv 2410.20771).

`gate`, `delete` and `ShareController` are the authors' arithmetic; `Mrt5` is the method.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.learned import Learned


def gate(logits: Tensor, scale: float = 10.0) -> Tensor:
    """-scale * sigmoid(-logits): 0 keeps a token, -scale deletes it; any shape, float32.

    In training it is the soft deletion: add gate_j to the attention logits of key j in all
    later layers (a bias on the log of its weight, so that gradients reach the gate).
    """
    return -scale * torch.sigmoid(-logits.float())


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


class DeleteGate(nn.Module):
    """The gate's logits for tokens (..., D): w . LN(h) + b, with b at 1, leaning to keep."""

    def __init__(self, width: int, noise: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.noise = noise
        nn.init.xavier_uniform_(self.score.weight)
        nn.init.ones_(self.score.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(...,) logits; in training with `noise` plus a draw from a Gumbel distribution."""
        logits: Tensor = self.score(self.norm(h.float()))[..., 0]
        if self.noise and self.training:
            draw = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
            logits = logits - (-draw.log()).log()
        return logits


@register("mrt5")
@dataclass
class Mrt5(Learned, Scorer):
    """Delete the tokens whose gate is lowest (MrT5, hard deletion at inference).

    The authors delete below a threshold, so that the count depends on the video; here it moves
    so that exactly the budget stays. In training nothing is deleted: add `bias(tokens)` to the
    attention logits of the video keys, and weigh its mean with a `ShareController`.

    Attributes:
        noise: add Gumbel noise to the gate's logits in training, as the authors may.
    """

    noise: bool = field(default=False, metadata={"help": "Gumbel noise on the gate in training"})

    makes_tokens = False
    paper = "MrT5, arXiv 2410.20771"
    summary = "a learned gate deletes tokens"
    width_of = ("norm.weight", 0)

    def make(self, width: int) -> nn.Module:
        """A gate that leans to keep."""
        return DeleteGate(width, self.noise)

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """(L,) the gate's logits: they order as the gate does and never saturate."""
        return self.ready(tokens)(tokens.features)

    def bias(self, tokens: VideoTokens) -> Tensor:
        """(L,) the gate, differentiable: what soft deletion adds to a key's attention logits."""
        return gate(self.score(tokens))
