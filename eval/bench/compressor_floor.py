"""The passes over a clip that a compressor cannot do without, to be timed beside it.

Each is as little as torch needs for it on a CPU: views and blocks that stay in the cache, one cast
of what is not float32, no full-size temporary. They compute the arithmetic of a method, but none
of its choices: what a method takes beyond them is what it costs to be that method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vidllm.compressors.holitom import HoliTom, programme

# Numbers of a block.
_BLOCK = 2**17


@dataclass
class Clip:
    """Features (T, n, D) of a full grid, and how many tokens are kept of them."""

    x: Tensor
    kept: int

    @cached_property
    def still(self) -> list[tuple[int, Tensor]]:
        """Sets of cells that HoliTom finds still: the first frame of each and its cells."""
        like = torch.nn.functional.cosine_similarity(self.x[:-1].float(), self.x[1:].float(), dim=2)
        same = like > HoliTom.tau
        windows = [(a, b) for a, b in programme(same)[0] if b > a]
        return [(a, same[a:b].all(0).nonzero().flatten()) for a, b in windows]

    def blocks(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of rows in float32, and the same rows a frame later."""
        step = max(1, _BLOCK // self.x.shape[2])
        for before, here in zip(self.x, self.x[first:], strict=False):
            for rows, later in zip(before.split(step), here.split(step), strict=True):
                yield rows.float(), later.float()


def read(clip: Clip) -> None:
    """One reading pass, the check for NaN."""
    torch.aminmax(clip.x)


def write(clip: Clip) -> None:
    """The rows that are kept."""
    count = clip.x.shape[:2].numel()
    rows = torch.arange(clip.kept) * count // clip.kept
    clip.x.flatten(0, 1).index_select(0, rows)


def pairs(clip: Clip) -> None:
    """Cosine of every row with that of the frame before."""
    for before, here in clip.blocks(1):
        torch.linalg.vector_norm(here, dim=1)
        torch.linalg.vecdot(before, here)


def units(clip: Clip) -> None:
    """Every row over its norm."""
    for rows, _ in clip.blocks():
        rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def columns(clip: Clip) -> None:
    """Sums and squares of every channel."""
    for rows, _ in clip.blocks():
        rows.sum(dim=0)
        rows.square().sum(dim=0)


def means(clip: Clip) -> None:
    """The mean of every frame."""
    step = max(1, _BLOCK // clip.x.shape[2])
    for frame in clip.x:
        for rows in frame.split(step):
            rows.float().sum(dim=0)


def products(clip: Clip) -> None:
    """All rows of a frame with each other."""
    for frame in clip.x:
        rows = frame.float()
        rows @ rows.T


def still_products(clip: Clip) -> None:
    """All cells of a still set with each other, once a set."""
    for first, cells in clip.still:
        rows = clip.x[first].index_select(0, cells).float()
        rows @ rows.T


def half_products(clip: Clip) -> None:
    """Every second row of a frame with the others."""
    for frame in clip.x:
        rows = frame.float()
        rows[::2] @ rows[1::2].T


def merge(clip: Clip) -> None:
    """The means of as many runs of rows as are kept."""
    rows = clip.x.flatten(0, 1)
    count = len(rows)
    start = torch.arange(clip.kept + 1) * count // clip.kept
    order, made = torch.arange(count), rows.new_empty(clip.kept, rows.shape[1])
    step = max(1, _BLOCK // rows.shape[1] * clip.kept // count)
    for first in range(0, clip.kept, step):
        ends = start[first : first + step + 1]
        low, high = int(ends[0]), int(ends[-1])
        some = rows[low:high].float()
        total = embedding_bag(order[: high - low], some, ends[:-1] - low, mode="sum")
        made[first : first + step] = total.div_(ends.diff()[:, None])


def halvings(clip: Clip) -> None:
    """Rounds inside frames: every second row with the others, and half the rows."""
    (frames, left, width), rows = clip.x.shape, clip.x.flatten(0, 1)
    while left > max(1, -(-clip.kept // frames)):
        halved = max(clip.kept, frames * (left - left // 2))
        now = Clip(rows[: frames * left].view(frames, left, width), halved)
        units(now)
        half_products(now)
        for frame in now.x:
            merge(Clip(frame[None], max(1, halved // frames)))
        left -= left // 2


def joins(clip: Clip) -> None:
    """The same across 2, 4 and 12 frames, on as many rows as a falling count leaves."""
    frames, cells, width = clip.x.shape
    count = frames * cells
    for level, joined in enumerate((2, 4, 12)):
        left = round(count * (clip.kept / count) ** (0.2 + 0.8 * level / 3))
        for together in clip.x.split(joined):
            merge(Clip(together, max(1, left * len(together) // frames)))
        length = max(2, left * joined // frames)
        rows = clip.x.flatten(0, 1)[: left // length * length].view(-1, length, width)
        units(Clip(rows, clip.kept))
        half_products(Clip(rows, clip.kept))
    merge(clip)


def all_products(clip: Clip) -> None:
    """All rows of the clip with each other, the lower half."""
    rows = clip.x.flatten(0, 1)
    step = max(1, 16 * _BLOCK // rows.shape[1])
    for first in range(0, len(rows), step):
        own = rows[first : first + step].float()
        for other in range(0, first + 1, step):
            own @ rows[other : other + step].float().T


Pass = Callable[[Clip], None]

_DROP: tuple[Pass, ...] = (read, write)
#: What the methods without trained weights need, by their names.
PASSES: dict[str, tuple[Pass, ...]] = {
    "uniform": (write,),
    "random": (write,),
    "frame-sample": (write,),
    "temporal-pool": (merge,),
    "spatial-pool": (merge,),
    "storm": (merge,),
    "evs": (read, pairs, write),
    "dycoke": (read, pairs, write),
    "vidcom2": (read, columns, units, units, write),
    "aim": (read, halvings),
    "tome": (read, merge),
    "pyra": (read, merge),
    "tempme": (read, joins),
    "visionzip": (read, merge),
    "mustdrop": (read, units, merge),
    "lita": (read, means, merge),
    "holitom": (read, pairs, still_products, merge),
    "semvid": (read, means, pairs, pairs, products, write),
    "framefusion": (read, pairs, merge),
    "nasva": (read, means, write),
    "flashvid": (read, means, units, products, products, merge),
    "fastvid": (read, means, products, units, merge),
    "divprune": (read, all_products, write),
    "dart": (read, units, write),
    "fastv": _DROP,
    "pyramiddrop": _DROP,
    "aim-prune": _DROP,
    "mustdrop-filter": _DROP,
}


def floor(name: str, clip: Clip) -> None:
    """Run all passes of a method."""
    for one in PASSES[name]:
        one(clip)
