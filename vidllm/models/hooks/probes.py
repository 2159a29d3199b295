"""What a decoder layer thinks of video tokens, from its queries and keys for the rows that count.

Nothing here depends on how the model itself computes attention.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.aim_prune import importance_rows
from vidllm.errors import InputError

#: Signals that the decoder gives to methods of the stages "prefill" and "cache".
DECODER_SIGNALS: tuple[str, ...] = (
    "decoder-attention",
    "decoder-text-attention",
    "decoder-keys",
    "decoder-importance",
    "decoder-normed",
    "prefill-survivors",
)
_PIVOTS = 4  # words of the question that a method may compare with (DART)


def probe(
    method: Compressor,
    attention: nn.Module,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    video: Tensor,
    words: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """The method's needs, from hidden states (L, D) of one prompt that enter an attention layer.

    Args:
        cos, sin: (L, d) of the positions.
        video: (V,) long, where the video's tokens stand. words: (W,) those of the text behind it.

    Returns:
        The signals, and the summed size (W,) of the words' keys.

    Raises:
        InputError: a method that reads the question, and no question.
    """
    width = int(attention.head_dim)  # type: ignore[arg-type]
    keys = heads(attention, "k", hidden, width, cos, sin)  # (H_kv, L, d)
    video, words = video.to(hidden.device), words.to(hidden.device)
    out: dict[str, Tensor] = {}
    for need in method.needs:
        if need == "decoder-keys":
            out[need] = keys[:, video].transpose(0, 1).flatten(1)
        elif need == "decoder-attention":
            last = torch.tensor([len(hidden) - 1], device=hidden.device)
            out[need] = _rows(attention, hidden, keys, cos, sin, last).mean(0)[-1, video]
        elif need == "decoder-text-attention":
            if not len(words):
                raise InputError(f"{method.name} needs a question after the video")
            rows = _rows(attention, hidden, keys, cos, sin, words)
            out[need] = rows.mean(0)[:, video].T
        elif need == "decoder-importance":
            out[need] = _importance(attention, hidden, keys, cos, sin)[video]
    return out, keys[:, words].abs().sum((0, 2))


def _importance(
    attention: nn.Module, hidden: Tensor, keys: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """(L,) AIM's importance, a head at a time, of the half of its matrix that is not masked."""
    query = heads(attention, "q", hidden, keys.shape[-1], cos, sin)
    group, scaling = len(query) // len(keys), float(attention.scaling)  # type: ignore[arg-type]
    squares = query.new_zeros(len(hidden))
    for head, asking in enumerate(query):
        key = keys[head // group]

        def rows(start: int, stop: int, asking: Tensor = asking, key: Tensor = key) -> Tensor:
            logits = asking[start:stop] @ key[:stop].T * scaling
            late = torch.ones(stop - start, stop - start, dtype=torch.bool, device=logits.device)
            logits[:, start:].masked_fill_(late.triu(1), torch.finfo(logits.dtype).min)
            return logits[None]

        squares += importance_rows(rows, len(hidden), temperature=0.1).square()
    return (squares / len(query)).sqrt()


def pivots(normed: Tensor, size: Tensor) -> Tensor:
    """Of the words' normed states (W, D) those with the largest keys."""
    return normed[size.topk(min(_PIVOTS, len(normed))).indices]


def heads(
    attention: nn.Module, kind: str, hidden: Tensor, width: int, cos: Tensor, sin: Tensor
) -> Tensor:
    """Queries or keys (H, L, d) of hidden states (L, D), as the attention layer makes them."""
    projected = getattr(attention, f"{kind}_proj")(hidden).unflatten(-1, (-1, width))
    norm = getattr(attention, f"{kind}_norm", None)
    x = (projected if norm is None else norm(projected)).transpose(0, 1)
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return cast(Tensor, x * cos + turned * sin).float()


def _rows(
    attention: nn.Module,
    hidden: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    which: Tensor,
) -> Tensor:
    """Causal attention (H, R, L) of the query rows `which` (R,)."""
    width = keys.shape[-1]
    query = heads(attention, "q", hidden[which], width, cos[which], sin[which])
    every = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    logits = query @ every.transpose(-1, -2) * float(attention.scaling)  # type: ignore[arg-type]
    late = torch.arange(keys.shape[1], device=hidden.device)[None] > which[:, None]
    logits = logits.masked_fill(late, torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1)
