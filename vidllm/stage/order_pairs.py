"""A recognition task that only time can solve: pairs of clips of the same pictures.

One actor of the stage does one of ten things, which come in five pairs. The two clips of a pair are
the same pictures, bit for bit, in another order: it moves to the right or to the left, grows or
shrinks, goes round clockwise or the other way, is away once for long or twice for short, shows
another colour for long and then for short or the other way round. Which pair it is can be told from
single pictures; which of the two cannot, so that whatever treats frames alone is right in exactly
half of the clips whose pair it knows. Made for this project.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError

from .render import render_tracks
from .scenes import make_scene, rng_for
from .tracks import MAX_DISTRACTORS, RGB, tracks

#: Pairs of classes: what changes, and its two orders.
PAIRS: dict[str, tuple[str, str]] = {
    "move": ("right", "left"),
    "size": ("grow", "shrink"),
    "circle": ("clockwise", "anticlockwise"),
    "blink": ("once", "twice"),
    "flash": ("long-short", "short-long"),
}
_STREAM = 5  # of a scene's random numbers: what its actor does here


@dataclass(frozen=True)
class StagePairs:
    """Clips of the stage in pairs of the same pictures: 2i and 2i + 1 are a pair.

    Args:
        split: of the stage; splits share no scene.
        frames: of a clip, 12 or more; size: pixels of a side.
        first: clips that are left out before the first, an even number.

    Raises:
        InputError: fewer frames or pixels, or an odd first clip.
    """

    split: str = "train"
    frames: int = 16
    size: int = 32
    first: int = 0

    def __post_init__(self) -> None:
        if self.frames < 12 or self.size < 1:
            raise InputError("pairs of clips need 12 frames or more, and pixels")
        if self.first < 0 or self.first % 2:
            raise InputError(f"pairs of clips start at an even clip, not {self.first}")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes: "move right", "move left", …"""
        return tuple(f"{what} {way}" for what, ways in PAIRS.items() for way in ways)

    def label(self, index: int) -> int:
        """The label of a clip, which is not drawn for it."""
        seed, way = divmod(self.first + index, 2)
        return 2 * (seed % len(PAIRS)) + way

    def clip(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Frames (T, 3, size, size) in 0..1, their seconds (T,) and the label."""
        seed, way = divmod(self.first + index, 2)
        kind = seed % len(PAIRS)
        frames, seconds, order = _drawn(self, seed, list(PAIRS)[kind])
        return frames[order] if way else frames, seconds, 2 * kind + way


@functools.lru_cache(maxsize=1)  # the two clips of a pair are asked for one after the other
def _drawn(task: StagePairs, seed: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """The first clip of a pair, its seconds, and the order that makes it the second."""
    rng = rng_for(task.split, seed, stream=_STREAM)
    scene = make_scene(task.split, seed)
    place = (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
    actor = replace(scene.actors[0], home=place, half=rng.uniform(0.16, 0.24), hidden=False)
    # The world stands still at one second, or its drift would tell the order of frames.
    still = np.full(task.frames, rng.uniform(0, scene.duration))
    shown = tracks(replace(scene, actors=(actor,), events=()), still)
    order = _act(kind, shown.state[:, MAX_DISTRACTORS], actor.colour, rng)
    grain = torch.Generator().manual_seed(seed)
    frames = render_tracks(shown, size=task.size, generator=grain)
    seconds = torch.arange(task.frames) / rng.uniform(4, 12)
    return frames, seconds.float(), torch.from_numpy(order)


def _act(kind: str, state: np.ndarray, colour: int, rng: np.random.Generator) -> np.ndarray:
    """Change an actor's `state` (T, 8) as `kind` says, in its first order.

    Returns:
        (T,) indices of frames that show the second order; backwards for all pairs but "blink".
    """
    count = len(state)
    u = np.linspace(0, 1, count)
    order = np.arange(count)[::-1].copy()
    if kind == "move":
        low, high = rng.uniform(0.12, 0.35), rng.uniform(0.65, 0.88)
        state[:, 0] = low + (high - low) * u
    elif kind == "size":
        state[:, 2] *= rng.uniform(0.5, 0.7) * (1 - u) + rng.uniform(1.1, 1.4) * u
    elif kind == "circle":  # clockwise, since y grows downwards
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0.9, 1.5) * np.pi * u
        middle = rng.uniform(0.44, 0.56, 2)
        state[:, :2] = middle + rng.uniform(0.22, 0.3) * np.stack([np.cos(angle), np.sin(angle)], 1)
    elif kind == "blink":
        short = int(rng.integers(count // 8, count // 5 + 1))
        once, twice = _runs(count, (2 * short,), rng), _runs(count, (short, short), rng)
        state[once, 4] = 0.0
        order[twice], order[~twice] = np.flatnonzero(once), np.flatnonzero(~once)
    elif kind == "flash":
        short = int(rng.integers(count // 16 + 1, count // 8 + 1))
        shown = _runs(count, (2 * short + 1, short), rng)
        state[shown, 5:8] = RGB[(colour + rng.integers(1, len(RGB))) % len(RGB)]
    return order


def _runs(count: int, lengths: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """(count,) bool: runs of these lengths at random places, two frames or more around each."""
    spare = count - sum(lengths) - 2 * (len(lengths) + 1)
    cuts = np.sort(rng.integers(0, spare + 1, len(lengths)))
    taken = np.zeros(count, dtype=bool)
    at = 0
    for length, cut, before in zip(lengths, cuts, (0, *cuts), strict=False):
        at += 2 + int(cut - before)
        taken[at : at + length] = True
        at += length
    return taken
