"""Video tokens with their places and seconds, and the one place where they merge or drop.

A compressor only decides: it returns a `Keep`, a `Merge`, or for new tokens a `Mix`.
`VideoTokens.apply` carries that decision out on features, signals, frames, cells, seconds, sizes,
positions and provenance, and `apply_rows` on any other plane that has one row a token, batched
and differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor

from vidllm.errors import InputError

from .selection import (
    Keep,
    Merge,
    Mix,
    Selection,
    apply_all,
    apply_rows,
    check_fits,
    chosen,
    merged_sizes,
)

__all__ = ["Keep", "Merge", "Mix", "Selection", "VideoTokens", "apply_all", "apply_rows"]


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """The tokens of one clip.

    Only `features` may be on an accelerator; the other tensors are small and stay on the CPU,
    so that planning needs no synchronisation.

    Attributes:
        features: (L, D) floating point.
        frame: (L,) long, index of the clip's frame that a token stands for.
        cell: (L, 2) long, row and column in the token grid; -1 where there is none.
        span: (L, 2) float64, the seconds that a token covers, [start, end].
        size: (L,) float32, source tokens that were merged into it (1 for an original).
        position: (L,) long, index in the uncompressed sequence; a merged token has the
            position of its representative.
        source: (S,) long, for every ORIGINAL token the index of the token that carries it
            now, or -1 when it was dropped.
        grid: (T, H, W), the original grid; S = T * H * W.
        signals: what a model tells of its tokens beside their features, name to (L,) or
            (L, ...), as "cls-attention" or "vision-keys"; merged and dropped as the features.
    """

    features: Tensor
    frame: Tensor
    cell: Tensor
    span: Tensor
    size: Tensor
    position: Tensor
    source: Tensor
    grid: tuple[int, int, int]
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_grid(
        cls,
        features: Tensor,
        seconds: Sequence[float] | Tensor,
        duration: float,
        *,
        start: float = 0.0,
    ) -> VideoTokens:
        """One token a grid cell, in time order and raster order inside a frame.

        A token of frame i covers the time from the midpoint to the frame before to the
        midpoint to the frame after; the first frame starts at `start`, the last ends at
        `duration` (or at its own time, where a container's duration falls short of it).

        Args:
            features: (T, H, W, D) floating point.
            seconds: (T,) presentation time of every frame, in seconds, not falling.
            duration: end of the sampled range in seconds.
            start: begin of the sampled range in seconds.

        Raises:
            InputError: shapes or times that do not fit.
        """
        if features.dim() != 4 or 0 in features.shape[:3] or not features.is_floating_point():
            raise InputError(
                f"video features must be floating point (T, H, W, D), not {features.dtype} "
                f"{tuple(features.shape)}"
            )
        frames, rows, columns = features.shape[:3]
        times = torch.as_tensor(seconds).detach().to("cpu", torch.float64)
        if times.shape != (frames,):
            raise InputError(f"{frames} frames need {frames} times, not {tuple(times.shape)}")
        if not bool(torch.isfinite(times).all()) or bool((times.diff() < 0).any()):
            raise InputError("frame times must be finite seconds that do not fall")
        middle = (times[1:] + times[:-1]) / 2
        first = times.new_tensor([min(float(start), float(times[0]))])
        last = times.new_tensor([max(float(duration), float(times[-1]))])
        edges = torch.cat([first, middle, last])
        cells = rows * columns
        raster = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(cells, 2)
        every = torch.arange(frames * cells)
        return cls(
            features=features.reshape(frames * cells, features.shape[3]),
            frame=torch.arange(frames).repeat_interleave(cells),
            cell=raster.repeat(frames, 1),
            span=torch.stack([edges[:-1], edges[1:]], dim=1).repeat_interleave(cells, dim=0),
            size=torch.ones(frames * cells),
            position=every,
            source=every.clone(),
            grid=(frames, rows, columns),
        )

    @classmethod
    def blank(
        cls,
        grid: tuple[int, int, int],
        seconds: Sequence[float] | Tensor,
        duration: float,
        *,
        start: float = 0.0,
    ) -> VideoTokens:
        """Tokens of width 0: enough for compressors that plan without features, as for a batch."""
        return cls.from_grid(torch.zeros(*grid, 0), seconds, duration, start=start)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def total(self) -> int:
        """Original tokens S."""
        return self.source.numel()

    @property
    def keep(self) -> float:
        """The measured share of tokens kept, len / total."""
        return len(self) / self.total

    def per_frame(self) -> Tensor:
        """(T,) long: tokens that stand for every frame now."""
        return torch.bincount(self.frame, minlength=self.grid[0])

    def with_features(self, features: Tensor) -> VideoTokens:
        """The same tokens with other features (L, D')."""
        if features.dim() != 2 or features.shape[0] != len(self):
            raise InputError(
                f"{len(self)} tokens need features ({len(self)}, D), not {tuple(features.shape)}"
            )
        return replace(self, features=features)

    def with_signals(self, **signals: Tensor) -> VideoTokens:
        """The same tokens with more signals (L, ...); underscores in a name become hyphens."""
        named = {name.replace("_", "-"): plane for name, plane in signals.items()}
        for name, plane in named.items():
            if plane.shape[:1] != (len(self),):
                raise InputError(f"signal {name!r} needs {len(self)} rows, not {plane.shape[:1]}")
        return replace(self, signals={**self.signals, **named})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> VideoTokens:
        """Move or cast the features; the rest stays on the CPU."""
        return replace(self, features=self.features.to(device=device, dtype=dtype))

    @overload
    def apply(self, selection: Selection) -> VideoTokens: ...
    @overload
    def apply(
        self, selection: Selection, extras: Mapping[str, Tensor]
    ) -> tuple[VideoTokens, dict[str, Tensor]]: ...
    def apply(
        self, selection: Selection, extras: Mapping[str, Tensor] | None = None
    ) -> VideoTokens | tuple[VideoTokens, dict[str, Tensor]]:
        """Carry out a selection.

        Args:
            selection: what to keep or merge.
            extras: further planes with a row a token, (L, ...); floating point planes merge as
                the features do, others (ids, masks) take their representative's row.

        Returns:
            The new tokens; with `extras` a pair of tokens and new extras.

        Raises:
            WorkError: the selection does not fit these tokens.
        """
        count = len(self)
        index = chosen(selection)
        check_fits(selection, count)
        if isinstance(selection, Keep):
            slot = torch.full((count,), -1)
            slot[index] = torch.arange(len(selection))
            span = self.span[index]
        else:
            slot = selection.target
            span = _hull(self.span, slot, index)
        if isinstance(selection, Mix):
            features = selection.features
            span = span if selection.span is None else selection.span.double()
        else:
            features = apply_rows(self.features, selection, self.size)
        tokens = VideoTokens(
            features=features,
            frame=self.frame[index],
            cell=self.cell[index],
            span=span,
            size=merged_sizes(self.size, selection),
            position=self.position[index],
            source=torch.where(self.source < 0, -1, slot[self.source.clamp(min=0)]),
            grid=self.grid,
            signals={k: self._plane(k, v, selection) for k, v in self.signals.items()},
        )
        if extras is None:
            return tokens
        return tokens, {k: self._plane(k, v, selection) for k, v in extras.items()}

    def _plane(self, name: str, plane: Tensor, selection: Selection) -> Tensor:
        if plane.shape[:1] != (len(self),):
            raise InputError(f"extra {name!r} needs {len(self)} rows, not {tuple(plane.shape)}")
        rows = apply_rows(plane.reshape(len(self), -1), selection, self.size)
        return rows.view(len(selection), *plane.shape[1:])


def _hull(span: Tensor, target: Tensor, representative: Tensor) -> Tensor:
    """Seconds from the first to the last of what every slot carries, or its representative's."""
    live = target >= 0
    slots = representative.numel()
    low = span.new_full((slots,), float("inf"))
    high = span.new_full((slots,), float("-inf"))
    low = low.scatter_reduce(0, target[live], span[live, 0], "amin")
    high = high.scatter_reduce(0, target[live], span[live, 1], "amax")
    hull = torch.stack([low, high], dim=1)
    return torch.where(low.isinf()[:, None], span[representative], hull)
