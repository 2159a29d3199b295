"""Merging inside the vision tower: where a chain hands over to it, and how many stay by layer."""

from __future__ import annotations

from collections.abc import Callable

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens
from vidllm.tokens.tower_plan import TowerShape

from ..base import Compressor, InTower
from ..chain import Chain
from ..none import NoCompression


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
    first = method.in_tower
    if first is None:
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
