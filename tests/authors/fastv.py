"""FastV (pkunlp-icler/FastV): the sequence indices that the in-place path keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.errors import InputError


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of (N,) scores, ascending; of equal ones the earlier."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def select(
    attention_prev_layer: Tensor, sys_length: int, image_len: int, attention_rank: int
) -> Tensor:
    """The sequence indices that FastV keeps (the in-place path of the authors' code).

    Args:
        attention_prev_layer: (1, H, L, L) softmax attention of the layer before the cut.
        sys_length: tokens before the visual ones. image_len: visual tokens.
        attention_rank: visual tokens that stay.

    Returns:
        (L - image_len + attention_rank,) long, ascending: all text and the best visual tokens.
        They are also the position ids afterwards (kept tokens keep their positions).

    Raises:
        InputError: a batch of more than one, or counts that do not fit.
    """
    if attention_prev_layer.dim() != 4 or attention_prev_layer.shape[0] != 1:
        raise InputError(
            f"attention must be (1, H, L, L), one row at a time, not "
            f"{tuple(attention_prev_layer.shape)}"
        )
    length = attention_prev_layer.shape[-1]
    end = sys_length + image_len
    if not 0 <= attention_rank <= image_len or sys_length < 0 or end > length:
        raise InputError(
            f"cannot keep {attention_rank} of {image_len} tokens from {sys_length} on, of {length}"
        )
    row = attention_prev_layer[0, :, -1, sys_length:end].float().mean(dim=0)
    stay = torch.ones(length, dtype=torch.bool, device=row.device)
    stay[sys_length:end] = False
    stay[sys_length + top(row, attention_rank)] = True
    return torch.nonzero(stay).flatten()
