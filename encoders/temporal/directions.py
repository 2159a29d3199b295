"""One direction of a sequence after the other, in blocks that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .base import State

_BLOCK = 1024  # tokens that a mixer has in work at once

Projected = TypeVar("Projected")


def block_by_block(
    x: Tensor,
    ways: int,
    project: Callable[[slice], Projected],
    read: Callable[[int, Projected, State], tuple[Tensor, State]],
    join: Callable[[Tensor, Projected], Tensor],
    state: State = None,
    *,
    whole: bool = False,
) -> tuple[Tensor, State]:
    """Mix (B, L, D) by a scan in one direction, or in both and their sum.

    The way back comes first and leaves what it made for the way ahead. With gradients all is one
    block: the gradient of a block's place in the whole would cost more than blocks gain.

    Args:
        x: its length and device count. ways: 1 or 2.
        project: what both directions share, of some tokens.
        read: one direction (0 ahead, 1 back) over a block, (B, n, E) in the order of the sequence,
            from the state that its last block left; None at its start.
        join: the output (B, n, D) from the sum of the directions.
        state: before the first token, with one direction. whole: one block in any case.

    Returns:
        (B, L, D), and with one direction the state after the last token, else None.
    """
    length = x.shape[1]
    size = length if whole or torch.is_grad_enabled() else _BLOCK
    spans = [slice(at, at + size) for at in range(0, length, max(1, size))]
    held: list[tuple[Projected, Tensor | None]] = []
    if ways == 2:
        before: State = None
        for span in reversed(spans):
            shared = project(span)
            back, before = read(1, shared, before)
            held.append((shared, back))
        state = None
    out = []
    for span in spans:
        shared, other = held.pop() if held else (project(span), None)
        y, state = read(0, shared, state)
        out.append(join(y if other is None else y + other, shared))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1), state if ways == 1 else None
