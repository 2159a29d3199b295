"""Where video tokens stand among a prompt's M-RoPE positions, carried beside their embeddings.

vLLM lays a prompt's positions out before its videos are encoded, and lets a model set those of the
tokens that stay once they are known (`recompute_mrope_positions`). Between the two it knows a video
by its embeddings alone: they are cached, sliced by prefill chunks, and shared by requests in whose
prompts the video stands elsewhere. So every row carries its place relative to the video's begin in
columns of its own, each digit a number that bfloat16 holds exactly.

The text's positions are final from the start: a video takes as many as it would without
compression, whatever stays of it. So they are right as well where a cached prefix covers the video
and it is never encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_BASE, _DIGITS = 256, 3
#: Time, row, column, the row's number in its video, and rows before its first placeholder.
_NUMBERS = 5
#: Columns that are carried behind an embedding.
COLUMNS = _NUMBERS * _DIGITS


@dataclass(frozen=True)
class Region:
    """A picture or a video in a prompt.

    Attributes:
        offset, length: its tokens in the prompt. extent: positions that it takes.
        places: (3, length) relative to its begin; None for a video, whose are not known yet.
    """

    offset: int
    length: int
    extent: int
    places: np.ndarray | None = None


def grid_places(grid: tuple[int, int, int], pace: float = 1.0) -> np.ndarray:
    """(3, T * H * W) time, row and column of a grid; `pace` positions from frame to frame."""
    places = np.indices(grid).reshape(3, -1).astype(np.int64)
    if pace != 1.0:
        places[0] = (places[0] * pace).astype(np.int64)
    return places


def extent(places: np.ndarray) -> int:
    """Positions that a picture or video with these places takes."""
    return int(places.max()) + 1


def lay_out(count: int, regions: Sequence[Region]) -> tuple[Tensor, int]:
    """Positions (3, count) of a prompt, those of its videos at their begin as yet, and the delta.

    The delta is what is added to a token's number to get its position behind the prompt.
    """
    parts: list[np.ndarray] = []
    done = position = 0
    for region in sorted(regions, key=lambda region: region.offset):
        text = region.offset - done
        parts.append(np.broadcast_to(np.arange(text) + position, (3, text)))
        position += text
        own = region.places
        parts.append((np.zeros((3, region.length), np.int64) if own is None else own) + position)
        position, done = position + region.extent, region.offset + region.length
    text = count - done
    parts.append(np.broadcast_to(np.arange(text) + position, (3, text)))
    return torch.from_numpy(np.concatenate(parts, axis=1)), position + text - count


def attach(rows: Tensor, places: Tensor, lead: int = 0) -> Tensor:
    """Embeddings (n, D) with their places (3, n) behind them, (n, D + COLUMNS).

    Args:
        lead: rows of text before the video's first placeholder in the prompt.
    """
    count = places.shape[1]
    numbers = torch.stack([*places, torch.arange(count), torch.full((count,), lead)])
    digits = torch.stack([numbers // _BASE**d % _BASE for d in range(_DIGITS)])
    return torch.cat([rows, digits.flatten(0, 1).T.to(rows)], dim=1)


def detach(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `attach` joined: embeddings (n, D), and (5, n) the numbers on the CPU."""
    digits = rows[:, -COLUMNS:].T.to("cpu", torch.long).unflatten(0, (_DIGITS, _NUMBERS))
    scale = _BASE ** torch.arange(_DIGITS)
    return rows[:, :-COLUMNS], (digits * scale[:, None, None]).sum(0)


def put(
    ids: Tensor, embeddings: Sequence[Tensor], positions: Tensor, computed: int, token: int
) -> Tensor:
    """Positions of a prompt with the places of the videos whose rows a chunk brings.

    Args:
        ids: (N,) the whole prompt. embeddings: those of the chunk that carry places, in order.
        positions: (3, N). computed: tokens before the chunk. token: stands for videos.

    Returns:
        (3, N) positions; the given ones stay as they are.
    """
    ids, placed = ids.cpu(), positions.cpu().clone()
    video = ids == token
    starts = torch.nonzero(video & ~torch.cat([video.new_zeros(1), video[:-1]])).flatten()
    found = iter(starts.tolist())
    for rows in embeddings:
        _, numbers = detach(rows)
        first, lead = int(numbers[3, 0]), int(numbers[4, 0])
        begin = next(start - lead for start in found if start - lead + first >= computed)
        base = int(placed[0, begin - 1]) + 1 if begin else 0
        here = slice(begin + first, begin + first + len(rows))
        placed[:, here] = (numbers[:3] + base).to(placed)
    return placed.to(positions.device)


def check_apart(regions: Sequence[tuple[int, int]], count: int) -> str:
    """What is wrong with where videos stand in a prompt; "" for nothing.

    Args:
        regions: (offset, length) of every video. count: tokens of the prompt.
    """
    spans = sorted((offset, offset + length) for offset, length in regions)
    if any(end == start for (_, end), (start, _) in pairwise(spans)):
        return "two videos stand in the prompt without a word between them: write one"
    if spans and spans[-1][1] == count:
        return "the prompt ends with its video: put a question behind it"
    return ""
