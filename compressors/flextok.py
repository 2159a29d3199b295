"""FlexTok's ordered registers (arXiv 2502.13967): any prefix of them is a valid answer.

`nested_dropout` and `prefix_length` are the authors' training rule; `FlexTok` is the method on
`VideoTokens`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens

from .registry import register
from .shared.learned import Learned, place


def prefix_length(
    total: int, powers: bool = False, generator: torch.Generator | None = None
) -> int:
    """How many of `total` ordered tokens a training step keeps: uniform in 1..total.

    Args:
        powers: round up to a power of two, or to `total` where that is less.
        generator: of the draw; torch's global one when None.

    Raises:
        InputError: a total below 1.
    """
    if total < 1:
        raise InputError(f"nested dropout needs at least 1 token, not {total}")
    drawn = int(torch.randint(1, total + 1, (), generator=generator))
    return min(total, 1 << (drawn - 1).bit_length()) if powers else drawn


def nested_dropout(tokens: Tensor, mask: Tensor, prefix: int) -> Tensor:
    """Replace the tokens (..., K, D) after the first `prefix` by the learned mask (D,)."""
    live = torch.arange(tokens.shape[-2], device=tokens.device) < prefix
    return torch.where(live[:, None], tokens, mask.to(tokens.dtype))


def windows(registers: int, length: int) -> tuple[Tensor, Tensor]:
    """First token and end (registers,) of the window of every register over `length` tokens.

    Register 0 sees everything, the next two a half each, the next four a quarter each, and so
    on; inside a level they are ordered so that any prefix is spread over the whole length. No
    window depends on how many registers there are.
    """
    number = torch.arange(1, registers + 1)
    level = torch.tensor([int(i).bit_length() - 1 for i in number.tolist()])
    offset, reverse = number - (1 << level), torch.zeros_like(number)
    for bit in range(int(level.max())):
        place_of = (level - 1 - bit).clamp(min=0)
        reverse |= torch.where(bit < level, ((offset >> bit) & 1) << place_of, 0)
    return (reverse * length) >> level, ((reverse + 1) * length) >> level


def _levels(registers: int, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Level by level: registers (n,), the tokens (n, m) of their windows, and which are real."""
    start, end = windows(registers, length)
    for level in range(registers.bit_length()):
        which = torch.arange((1 << level) - 1, min((2 << level) - 1, registers))
        index = start[which, None] + torch.arange(int((end - start)[which].max()))
        inside = index < end[which, None]
        yield which, index.clamp(max=length - 1), inside


class Registers(nn.Module):
    """Registers that read tokens (L, D) by attention, each in its own window (see `windows`)."""

    def __init__(self, width: int, registers: int, depth: int = 64, powers: bool = False) -> None:
        super().__init__()
        self.powers = powers
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, depth, bias=False)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, depth))
        self.output = nn.Linear(width, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """(count, D), coarse to fine; in training with nested dropout.

        Registers beyond the learned ones take the mean of their window.
        """
        if not 1 <= count <= len(x):
            raise InputError(f"{len(x)} tokens serve 1 to {len(x)} registers, not {count}")
        keys = self.key(self.norm(x)) / math.sqrt(self.key.out_features)
        queries = F.pad(self.registers, (0, 0, 0, max(0, count - len(self.registers))))
        read = []
        for which, index, inside in _levels(count, len(x)):
            query, index = queries[which.to(x.device)], index.to(x.device)
            logits = (keys[index] @ query[:, :, None])[..., 0]
            logits = logits.masked_fill(~inside.to(x.device), -torch.inf)
            read.append((logits.softmax(dim=1)[:, None] @ x[index])[:, 0])
        out = torch.cat(read)
        out = out + self.output(out)
        if self.training:
            out = nested_dropout(out, self.mask, prefix_length(count, self.powers))
        return out


@register("flextok")
@dataclass
class FlexTok(Learned):
    """Read the tokens into ordered registers, coarse to fine, as many as the budget (FlexTok).

    The authors' registers and patches share a transformer over one image. Here a register
    attends to a window of the clip, the whole, halves, quarters and so on, so that the untrained
    method is sensible, the cost is L log K, and a smaller budget gives exactly a prefix of a
    larger one. A budget above `registers` goes on with the plain means of finer windows.

    A token is carried by the finest register that sees it; a register's span is its window.

    Attributes:
        registers: how many are learned; the authors' 256.
        powers: in training round the kept prefix up to a power of two.
        faithful: the registers in their own order, coarse to fine, not by the time of their
            middles.
    """

    registers: int = field(default=256, metadata={"help": "learned registers"})
    powers: bool = field(default=False, metadata={"help": "train on prefixes of 1, 2, 4, 8 ..."})
    faithful: bool = field(default=False, metadata={"help": "coarse to fine, not time order"})

    paper = "FlexTok, arXiv 2502.13967"
    summary = "ordered registers read the clip, any prefix is valid"
    width_of = ("key.weight", 1)

    def __post_init__(self) -> None:
        if self.registers < 1:
            raise InputError(f"flextok: registers must be at least 1, not {self.registers}")
        super().__post_init__()

    def make(self, width: int) -> nn.Module:
        """Small registers, so that attention starts near the mean of a window."""
        return Registers(width, self.registers, powers=self.powers)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All registers at once."""
        module = self.ready(tokens)
        length = len(tokens)
        order = torch.argsort(tokens.position, stable=True)
        out = module(tokens.features[order.to(tokens.features.device)].float(), budget)
        carrier = torch.full((length,), -1)
        spans = []
        for which, index, inside in _levels(budget, length):
            carrier[index[inside]] = which[:, None].expand_as(index)[inside]
            seen = tokens.span[order][index]
            low = seen[..., 0].masked_fill(~inside, torch.inf).amin(dim=1)
            high = seen[..., 1].masked_fill(~inside, -torch.inf).amax(dim=1)
            spans.append(torch.stack([low, high], dim=1))
        start, end = windows(budget, length)
        middle = (start + end - 1) // 2
        span = torch.cat(spans)
        return place(tokens, order, out, middle, carrier, span=span, faithful=self.faithful)
