"""Parts of a clip, each compressed by itself, and what was done to them as one selection.

`Wrapper` is the base of the methods in `wrappers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, Merge, Mix, Selection, VideoTokens

from ..base import Compressor, Scorer
from ..returned import scores_of


def part_of(tokens: VideoTokens, part: Tensor) -> VideoTokens:
    """The tokens `part` (ascending indices) as a clip of their own, its frames counted from 0.

    Seconds, sizes and cells stay; the books of original tokens are those of its frames alone.
    """
    _, rows, columns = tokens.grid
    frame = tokens.frame[part]
    first, last = int(frame.min()), int(frame.max())
    low, high = first * rows * columns, (last + 1) * rows * columns
    source = tokens.source[low:high]
    number = torch.searchsorted(part, source).clamp(max=len(part) - 1)
    return VideoTokens(
        features=tokens.features[part.to(tokens.features.device)],
        frame=frame - first,
        cell=tokens.cell[part],
        span=tokens.span[part],
        size=tokens.size[part],
        position=tokens.position[part] - low,
        source=torch.where(part[number] == source, number, -1),
        grid=(last - first + 1, rows, columns),
        signals={k: v[part.to(v.device)] for k, v in tokens.signals.items()},
    )


class Piece:
    """A part of a clip after its rounds.

    Attributes:
        part: (P,) its tokens, as indices of the whole clip. after: what is left of it, K slots.
        target: (P,) the slot that carries each token, or -1. chosen: (K,) the slots'
            representatives, as indices of the whole clip.
        kinds: how tokens were merged, "mean" and "size" in one step, or "new" features.
    """

    def __init__(self, part: Tensor, after: VideoTokens, rounds: Sequence[Selection]) -> None:
        self.after = after
        target, chosen = torch.arange(len(part)), torch.arange(len(part))
        kinds: list[str] = []
        for round_ in rounds:
            if isinstance(round_, Keep):
                slot = torch.full((len(chosen),), -1)
                slot[round_.index] = torch.arange(len(round_))
                chosen = chosen[round_.index]
            else:
                slot = round_.target
                chosen = chosen[round_.representative]
                if isinstance(round_, Mix):
                    kinds.append("new")
                elif int((slot >= 0).sum()) > len(round_):
                    kinds.append(round_.weighting)
            target = torch.where(target < 0, -1, slot[target.clamp(min=0)])
        self.part, self.target, self.chosen = part, target, part[chosen]
        # Size-weighted means of means are size-weighted means; of plain ones there is but one.
        self.kinds = set(kinds) if kinds.count("mean") < 2 else {"new"}


def together(tokens: VideoTokens, pieces: Sequence[Piece]) -> Selection:
    """One selection on the whole clip, in time order, that does what was done to the parts.

    Raises:
        WorkError: a learned method changed the width of some parts only.
    """
    chosen = torch.cat([piece.chosen for piece in pieces])
    order = torch.argsort(tokens.position[chosen], stable=True)
    chosen, kinds = chosen[order], set().union(*(piece.kinds for piece in pieces))
    if not kinds:
        return Keep(chosen.sort().values)
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order))
    target, first = torch.full((len(tokens),), -1), 0
    for piece in pieces:
        own = slot[first : first + len(piece.chosen)]
        target[piece.part] = torch.where(piece.target < 0, -1, own[piece.target.clamp(min=0)])
        first += len(own)
    if kinds == {"mean"} or kinds == {"size"}:
        return Merge(target, chosen, "mean" if kinds == {"mean"} else "size")
    if len({piece.after.features.shape[1] for piece in pieces}) > 1:
        raise WorkError("the parts of a clip came out with features of unequal width")
    features = torch.cat([piece.after.features for piece in pieces])
    span = torch.cat([piece.after.span for piece in pieces])
    return Mix(features[order.to(features.device)], target, chosen, span[order])


@dataclass
class _Around:
    # A base of its own, so that the method inside is the first field and needs no default.
    inner: Compressor


@dataclass
class Wrapper(Compressor, _Around):
    """Base of the wrappers: parts of a clip, each compressed by itself to an exact number.

    The method sees a part as a clip of its own, with frames counted from 0; only where parts are
    no scenes, a `Scorer` scores the whole clip, and its best tokens of every part stay. The
    result is one selection on the whole clip in time order, also where the method has another
    (`faithful`): a `Keep`, a `Merge`, or, where a part was merged in several rounds of plain
    means or has new tokens, a `Mix` that holds the method's own features.

    Attributes:
        inner: the method; the wrapper decides how much is kept, so it has no keep, budget or
            window of its own.
    """

    alone: ClassVar[bool] = False
    """True: every method sees a part by itself, a `Scorer` too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.inner
        if not inner.is_free():
            raise InputError(
                f"{type(self).name} decides how many tokens {inner.name} keeps: give the keep or "
                f"budget to {type(self).name}, and {inner.name} no window of its own"
            )
        # What a method says of itself depends on the one inside: per instance, not per class.
        vars(self).update(
            name=f"{type(self).name}({inner.name})",
            stage=inner.stage,
            query_aware=inner.query_aware or self._asks(),
            needs=inner.needs,
            has_parameters=inner.has_parameters,
        )

    def trained_in(self, folder: Path) -> Compressor:
        """With the weights of the method inside."""
        return self.mapped(lambda method: method.trained_in(folder))

    def mapped(self, change: Callable[[Compressor], Compressor]) -> Compressor:
        """With the method inside changed."""
        inner = self.inner.mapped(change)
        return self if inner is self.inner else replace(self, inner=inner)

    def notes(self) -> tuple[str, ...]:
        """Those of the method inside."""
        return self.inner.notes()

    def _asks(self) -> bool:
        """True when the wrapper itself reads the question."""
        return False

    def points(self, depth: int) -> list[tuple[int, float]]:
        """Where the method inside prunes, with the wrapper's keep.

        Raises:
            InputError: the method inside names no decoder layers.
        """
        inner = replace(self.inner, keep=self.keep)
        if not hasattr(inner, "points"):
            raise InputError(f"{self.inner.name} names no decoder layers where it prunes")
        result: list[tuple[int, float]] = inner.points(depth)
        return result

    def _compress(
        self,
        tokens: VideoTokens,
        parts: Sequence[Tensor],
        goals: Sequence[int],
        query: Tensor | None,
    ) -> Selection:
        """Compress every part (indices of tokens) to its goal, all put into one selection."""
        inner = self.inner
        parts = [part.sort().values for part in parts]
        # A method with a plan of its own does more than to keep the best.
        if not self.alone and isinstance(inner, Scorer) and type(inner).plan is Scorer.plan:
            scores = scores_of(inner, tokens, query).detach().float().cpu()
            order = [torch.argsort(scores[part], descending=True, stable=True) for part in parts]
            kept = [part[o[:goal]] for part, o, goal in zip(parts, order, goals, strict=True)]
            return Keep(torch.cat(kept).sort().values)
        pieces = []
        for part, goal in zip(parts, goals, strict=True):
            if goal:
                sub = part_of(tokens, part)
                after, rounds = inner.run(sub, goal, query) if goal < len(part) else (sub, [])
                if len(after) != goal:
                    raise WorkError(f"{inner.name} left {len(after)} tokens for {goal}")
                pieces.append(Piece(part, after, rounds))
        return together(tokens, pieces)
