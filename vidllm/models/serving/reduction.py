"""In the engine: what a method leaves of one video behind the tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidllm.compressors import build
from vidllm.errors import VidllmError
from vidllm.tokens import VideoTokens

from .choice import Choice

_LOG = logging.getLogger("vllm.vidllm")


def reduce_video(
    rows: Tensor,
    width: int,
    grid: tuple[int, int, int],
    seconds: Sequence[float],
    end: float,
    choice: Choice,
    signals: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """The tokens of a video that stay.

    A video on which a method fails (its features hold NaN) must not end the engine and all other
    requests with it: as many tokens stay as were counted, evenly spread, and the log says so.

    Args:
        rows: (L, width + M) the tower's tokens, DeepStack's planes behind them.
        grid: (T, H, W) of tokens. seconds: (T,) of its frames. end: of the last one.
        signals: (L, ...) of the tower, those that the method reads.

    Returns:
        Their rows (n, width + M), and (n,) their numbers in the whole video, on the CPU.
    """
    deep = {f"deepstack_{n}": plane for n, plane in enumerate(rows[:, width:].split(width, 1))}
    deep = deep if rows.shape[1] > width else {}
    told = {name.replace("-", "_"): plane for name, plane in signals.items()}
    blank = VideoTokens.blank(grid, seconds, end)
    tokens = blank.with_features(rows[:, :width]).with_signals(**deep, **told)
    try:
        after = choice.method(tokens)
    except VidllmError as error:
        _LOG.error("%s; evenly spread tokens stay of this video", error)
        after = build("uniform", budget=choice.count(grid))(tokens)
    left = [after.signals[name.replace("_", "-")] for name in deep]
    return torch.cat([after.features, *left], dim=1), after.position
