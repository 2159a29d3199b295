"""What happened to each of a video's tokens: `TokenMap`, small enough to be kept with an answer."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .video_tokens import VideoTokens

#: How a map's numbers are written; the smallest that holds them is taken.
_INTS = ("<i1", "<i2", "<i4")


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Which kept token carries each original token of a video.

    A token that was merged is carried by what it was merged into. Where a method made new tokens
    with weights (slots, shuffles), each original one is carried by the new one to which it gave
    its largest weight; a new token may then carry none.

    Attributes:
        grid: (T, h, w) of the uncompressed tokens, T slots of time; L = T * h * w.
        seconds: (T,) float64, when each slot is, in seconds of the video.
        carrier: (L,) int32, for every original token, in time and raster order, the number of
            the kept token that carries it; -1 where it was dropped.
        place: (K,) int32, for every kept token the original token at whose place it stands.

    Raises:
        InputError: shapes or numbers that do not fit each other.
    """

    grid: tuple[int, int, int]
    seconds: np.ndarray
    carrier: np.ndarray
    place: np.ndarray

    def __post_init__(self) -> None:
        grid = tuple(int(n) for n in self.grid)
        if len(grid) != 3 or min(grid) < 1:
            raise InputError(f"a token map needs a grid of three counts from 1 on, not {self.grid}")
        object.__setattr__(self, "grid", grid)
        total = grid[0] * grid[1] * grid[2]
        kinds = {"seconds": np.float64, "carrier": np.int32, "place": np.int32}
        for name, kind in kinds.items():
            plane: np.ndarray = np.array(getattr(self, name), dtype=kind)
            plane.flags.writeable = False
            object.__setattr__(self, name, plane)
        if self.seconds.shape != grid[:1] or self.carrier.shape != (total,) or self.place.ndim != 1:
            raise InputError(
                f"a token map of {grid} needs {grid[0]} seconds and {total} carriers, not "
                f"{self.seconds.shape} and {self.carrier.shape}"
            )
        if not _within(self.carrier, -1, len(self)) or not _within(self.place, 0, total):
            raise InputError("a token map names a token that is not there")

    @classmethod
    def of(cls, tokens: VideoTokens, seconds: Sequence[float] | np.ndarray) -> TokenMap:
        """The map that compressed tokens carry with them; `seconds` (T,) of their slots."""
        return cls(tokens.grid, np.asarray(seconds), tokens.source.numpy(), tokens.position.numpy())

    def __len__(self) -> int:
        """Kept tokens K."""
        return len(self.place)

    @property
    def total(self) -> int:
        """Original tokens L."""
        return len(self.carrier)

    def sizes(self) -> np.ndarray:
        """(K,) int64: original tokens that every kept token carries."""
        return np.bincount(self.carrier[self.carrier >= 0], minlength=len(self))

    def heat(self) -> np.ndarray:
        """(T, h, w) float32 in [0, 1]: what is left of every original token.

        1 where it was kept alone, 1/n where it is one of n in a kept token, 0 where it was
        dropped.
        """
        sizes = self.sizes()
        left = np.zeros(self.total, dtype=np.float32)
        there = self.carrier >= 0
        left[there] = 1.0 / sizes[self.carrier[there]]
        return left.reshape(self.grid)

    def per_frame(self) -> np.ndarray:
        """(T,) int64: kept tokens that stand in every slot."""
        return np.bincount(self.place // (self.grid[1] * self.grid[2]), minlength=self.grid[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenMap):
            return NotImplemented
        planes = ("seconds", "carrier", "place")
        same = all(np.array_equal(getattr(self, n), getattr(other, n)) for n in planes)
        return self.grid == other.grid and same

    def as_dict(self) -> dict[str, Any]:
        """For JSON, compact and exact: a bit a token where tokens were dropped and none merged.

        `place` is a bit an original token, base64 (or packed numbers, where kept tokens are not
        in time order); `carrier` is left out where every kept token carries itself alone, and is
        packed numbers otherwise.
        """
        ascending = bool((np.diff(self.place) > 0).all())
        plain = {"grid": list(self.grid), "seconds": self.seconds.tolist(), "kept": len(self)}
        place = _bits(self.place, self.total) if ascending else _pack(self.place)
        if np.array_equal(self.carrier, _alone(self.place, self.total)):
            return {**plain, "place": place}
        return {**plain, "place": place, "carrier": _pack(self.carrier)}

    @classmethod
    def from_dict(cls, made: Mapping[str, Any]) -> TokenMap:
        """The map of `as_dict`.

        Raises:
            InputError: what `as_dict` did not write.
        """
        try:
            grid = tuple(int(n) for n in made["grid"])
            if len(grid) != 3 or grid[0] != len(made["seconds"]) or grid[1] * grid[2] > 1 << 16:
                raise ValueError(f"a grid of {grid}")  # before anything of its size is made
            total, kept = int(np.prod(grid)), int(made["kept"])
            place = _unpack(str(made["place"]), kept, total)
            carrier = _alone(place, total)
            if "carrier" in made:
                carrier = _unpack(str(made["carrier"]), total, total)
            return cls(grid, np.asarray(made["seconds"]), carrier, place)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, binascii.Error, zlib.error) as error:
            raise InputError(f"this is no token map that vidllm wrote ({error!r})") from error


def _within(numbers: np.ndarray, low: int, high: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= low and int(numbers.max()) < high)


def _alone(place: np.ndarray, total: int) -> np.ndarray:
    """The carriers of kept tokens that carry themselves alone."""
    carrier = np.full(total, -1, dtype=np.int32)
    carrier[place] = np.arange(len(place), dtype=np.int32)
    return carrier


def _bits(place: np.ndarray, total: int) -> str:
    bits = np.zeros(total, dtype=bool)
    bits[place] = True
    return "bits:" + base64.b64encode(np.packbits(bits).tobytes()).decode()


def _pack(numbers: np.ndarray) -> str:
    """Numbers as their differences, in the smallest type that holds them, deflated."""
    steps = np.diff(numbers, prepend=numbers.dtype.type(0))
    for kind in _INTS:
        if np.array_equal(steps.astype(kind), steps):
            break
    data = zlib.compress(steps.astype(kind).tobytes(), 9)
    return f"{kind[1:]}:{base64.b64encode(data).decode()}"


def _unpack(text: str, count: int, total: int) -> np.ndarray:
    kind, _, data = text.partition(":")
    raw = base64.b64decode(data, validate=True)
    if kind == "bits":
        found = np.nonzero(np.unpackbits(np.frombuffer(raw, np.uint8), count=total))[0]
    elif f"<{kind}" in _INTS:
        # No more than so many numbers: a damaged file must not fill the memory.
        inflated = zlib.decompressobj().decompress(raw, count * int(kind[1:]) + 1)
        found = np.frombuffer(inflated, f"<{kind}").cumsum(dtype=np.int64)
    else:
        raise ValueError(f"unknown packing {kind!r}")
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers where {count} are due")
    return found.astype(np.int32)
