"""Methods that merge inside the vision tower, and where a chain hands over to it.

On a tower without layers to merge in (the small `conv` one) they act on its output, as they do
when they are called on `VideoTokens`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from ..base import Compressor
from ..chain import Chain
from ..none import NoCompression


@dataclass
class InTower(Compressor):
    """Base of the methods that can merge between the layers of a vision transformer.

    Attributes:
        tower: merge inside the tower where it has layers; false: on its output.
    """

    tower: bool = field(
        default=True,
        kw_only=True,
        metadata={"help": "merge inside the vision tower, not on its output"},
    )

    stage = "vision"
    proportional: ClassVar[bool] = True
    """Whether a tower's attention counts a merged token as the tokens behind it."""

    def tower_budget(self, clip: VideoTokens) -> int | None:
        """How many tokens of a clip its options leave (see `tower_plan.TowerMethod`)."""
        return self.goal(clip)

    @abstractmethod
    def tower_steps(self, shape: TowerShape, budget: int | None) -> Sequence[TowerStep]:
        """Where it merges, and how (see `tower_plan.TowerMethod`)."""


def tower_part(
    method: Compressor, clip: VideoTokens
) -> tuple[tuple[InTower, int | None] | None, Compressor]:
    """Split a method into what merges inside the tower and what acts on what comes out of it.

    Of a chain only the first method merges inside; a wrapper acts on the output.

    Args:
        clip: the tokens that the whole method is given, without features.

    Returns:
        The method inside with its budget (None: by its own options, from the features), or None
        where nothing is to merge there; and the rest, which meets the budget of the whole.
    """
    first = method.methods[0]
    if not isinstance(first, InTower) or not first.tower:
        return None, method
    if method is first:
        budget = first.tower_budget(clip)
        inside = None if budget is not None and budget >= len(clip) else (first, budget)
        return inside, method if inside is None else NoCompression()
    whole = method.whole_goal(clip)
    budget = None if whole is None else method.aim(clip, 0, whole)
    budget = first.tower_budget(clip) if budget is None else budget
    if whole == len(clip) or (budget is not None and budget >= len(clip)):
        return None, method
    if whole is not None and budget is not None and budget < whole:
        raise InputError(
            f"{first.name} leaves {budget} tokens, fewer than the {whole} that the chain should "
            "keep: raise its own share or lower the chain's"
        )
    rest = method.methods[1:]
    return (first, budget), Chain(rest, budget=whole) if rest else NoCompression()


def rounds(
    plan: Callable[[VideoTokens, int], Selection], tokens: VideoTokens, goal: int
) -> list[Selection]:
    """Plan again and again until `goal` tokens are left; none where there are no more."""
    found: list[Selection] = []
    while len(tokens) > goal:
        selection = plan(tokens, goal)
        tokens = tokens.apply(selection)
        found.append(selection)
    return found


def falling(shape: TowerShape, budget: int, layers: int) -> list[int]:
    """Tokens of a clip behind each of so many layers: a constant number leaves at each, as ToMe's.

    Frames stay equally long until the last layer, which meets the budget. Where a constant
    number would have to more than halve a late layer's tokens, earlier layers remove more.
    """
    least = -(-budget // shape.frames)
    counts = []
    for layer in range(1, layers):
        even = shape.tokens - (shape.tokens - budget / shape.frames) * layer / layers
        most = least << min(layers - layer, 62)
        counts.append(max(least, min(round(even), most)) * shape.frames)
    return [*counts, budget] if layers else []


def even(total: int, goal: int, steps: int, unit: int = 1) -> list[int]:
    """From `total` down to `goal` in equal steps, all but the last in multiples of `unit`."""
    counts = [total - round((total - goal) * (step + 1) / steps) for step in range(steps)]
    return [max(goal, -(-count // unit) * unit) for count in counts[:-1]] + counts[-1:]
