"""Clips on which rounding decides most easily: still, flat, far from 0, one huge channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vidllm.tokens import VideoTokens

Make = Callable[[Tensor, Tensor], Tensor]


def _moving(still: Tensor, new: Tensor) -> Tensor:
    """Half the cells hardly change, the others do; a cut every quarter of the clip."""
    quarter = torch.arange(len(new)) * 4 // len(new)
    scenes = still[quarter % len(still)]
    amount = torch.tensor([0.3, 0.9]).repeat(new.shape[2])[: new.shape[2], None]
    return scenes + amount * new


def _flat(still: Tensor, new: Tensor) -> Tensor:
    """Half the picture is one colour."""
    x = _moving(still, new)
    x[:, : x.shape[1] // 2] = x[:1, :1, :1]
    return x


def _zeros(still: Tensor, new: Tensor) -> Tensor:
    x = _moving(still, new)
    x[:, 1] = 0.0
    return x


def _huge(still: Tensor, new: Tensor) -> Tensor:
    x = _moving(still, new)
    x[..., 3] += 500.0
    return x


KINDS: dict[str, Make] = {
    "moving": _moving,
    "random": lambda still, new: new,
    "still": lambda still, new: still[:1].expand_as(new).clone(),
    "flat": _flat,
    "zeros": _zeros,
    "offset": lambda still, new: _moving(still, new) + 300.0,
    "huge channel": _huge,
    "faint": lambda still, new: still[:1] + 1e-4 * new,
    "one colour": lambda still, new: still[:1, :1, :1].expand_as(new).clone(),
}


def signals(tokens: VideoTokens, seed: int = 0) -> VideoTokens:
    """The same tokens with every signal that a model may give."""
    draw, count = torch.Generator().manual_seed(seed), len(tokens)
    return tokens.with_signals(
        cls_attention=torch.rand(count, generator=draw),
        vision_keys=torch.randn(count, 16, generator=draw),
        decoder_attention=torch.rand(count, generator=draw),
        decoder_text_attention=torch.rand(count, 5, generator=draw),
        decoder_keys=torch.randn(count, 24, generator=draw),
        decoder_importance=torch.rand(count, generator=draw),
    )


def hard_clips(
    frames: int = 12, side: int = 6, width: int = 48, seed: int = 0
) -> Iterator[tuple[str, VideoTokens]]:
    """Every kind in float32 and in bfloat16, whole and with a third of its tokens gone."""
    draw = torch.Generator().manual_seed(seed)
    still = torch.randn(4, side, side, width, generator=draw)
    new = torch.randn(frames, side, side, width, generator=draw)
    gone = torch.rand(frames * side * side, generator=draw) < 1 / 3
    for name, make in KINDS.items():
        for dtype in (torch.float32, torch.bfloat16):
            features = make(still, new).to(dtype)
            whole = VideoTokens.from_grid(features, list(range(frames)), float(frames))
            yield f"{name}, {dtype}", signals(whole)
            yield f"{name}, {dtype}, thinned", thinned(signals(whole), gone)


def thinned(tokens: VideoTokens, gone: Tensor) -> VideoTokens:
    """Without some of its tokens, at least one of which stays."""
    from vidllm.tokens import Keep

    return tokens.apply(Keep(torch.nonzero(~gone).flatten()))
