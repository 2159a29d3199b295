"""PyramidDrop, the port in ModelTC/LightCompress: one cut, from weights and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from vidllm.errors import InputError

from .fastv import top
from .positions import angles, inverse_frequencies, rotate


def last_row(
    hidden: Tensor, q_w: Tensor, k_w: Tensor, head_dim: int, base: float = 10000.0
) -> Tensor:
    """Attention of the last token to all, mean over heads: softmax(q k / sqrt(head_dim)).

    Args:
        hidden: (L, D), after the layer's input norm. q_w: (H * head_dim, D). k_w: (G * head_dim,
            D); G < H shares keys between heads in order, which the port gets wrong.
        head_dim: channels a head. base: of the rotary embedding; positions are 0..L-1.
    """
    turn = angles(
        torch.arange(hidden.shape[0], device=hidden.device), inverse_frequencies(head_dim, base)
    )
    query = (hidden[-1:].float() @ q_w.float().T).unflatten(-1, (-1, head_dim)).transpose(0, 1)
    key = (hidden.float() @ k_w.float().T).unflatten(-1, (-1, head_dim)).transpose(0, 1)
    query, key = rotate(query[None], turn[-1:])[0], rotate(key[None], turn)[0]
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    logits = (query @ key.transpose(1, 2)).squeeze(1) * head_dim**-0.5
    return torch.softmax(logits, dim=-1).mean(dim=0)


def select(
    hidden: Tensor,
    q_w: Tensor,
    k_w: Tensor,
    image_start: int,
    image_len: int,
    ratios: Sequence[float] | Tensor,
    heads: int,
    head_dim: int,
    stage: int = 0,
    norm: Callable[[Tensor], Tensor] | None = None,
    base: float = 10000.0,
    length: int | None = None,
) -> Tensor:
    """The visual tokens that one cut keeps.

    Args:
        hidden: (1, L, D) hidden states that enter the layer. q_w, k_w: its projections.
        image_start: first visual token. image_len: visual tokens BEFORE the first cut, m.
        ratios: the share of m that each cut leaves, without the leading 1.0. Cut s finds
            int(m * r[s-1]) tokens and keeps int(m * r[s]).
        heads, head_dim: of the queries. stage: which cut, s.
        norm: the layer's input norm; None for a layer norm without weights.
        base: of the rotary embedding. length: real tokens of a row that is padded on the right.

    Returns:
        (K,) long, ascending, as indices of this cut's sequence.

    Raises:
        InputError: a batch of more than one, or shapes and counts that do not fit.
    """
    shares = [1.0, *(float(r) for r in ratios)]
    if hidden.dim() != 3 or hidden.shape[0] != 1 or q_w.shape[0] != heads * head_dim:
        raise InputError(
            f"hidden must be (1, L, D), one row at a time, and q_w (heads * head_dim, D), not "
            f"{tuple(hidden.shape)} and {tuple(q_w.shape)}"
        )
    if not 0 <= stage < len(shares) - 1:
        raise InputError(f"stage must be 0 to {len(shares) - 2}, not {stage}")
    there, stay = int(image_len * shares[stage]), int(image_len * shares[stage + 1])
    row = hidden[0, : hidden.shape[1] if length is None else length]
    if stay > there or image_start + there > row.shape[0]:
        raise InputError(f"cannot keep {stay} of {there} visual tokens in {row.shape[0]} tokens")
    normed = layer_norm(row, row.shape[-1:]) if norm is None else norm(row)
    attention = last_row(normed, q_w, k_w, head_dim, base)
    return image_start + top(attention[image_start : image_start + there], stay)
