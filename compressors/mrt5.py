"""MrT5's delete gate (arXiv 2410.20771)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
    attention logits of the video keys, and its mean to the loss, with a weight that steers the
    share kept.

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
