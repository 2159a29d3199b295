"""Exact arithmetic for token budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

from vidllm.errors import InputError
from vidllm.errors.bounds import check


def budget_of(keep: float, total: int) -> int:
    """The number of tokens that ``keep`` of ``total`` is: rounded half up, at least 1.

    The product is taken on the decimal digits of ``keep`` as a person writes them, so that
    ``budget_of(0.29, 50)`` is 15 (14.5 rounded up) although the float product is below 14.5.

    Args:
        keep: share kept, in (0, 1].
        total: tokens there are, 0 or more (0 of 0 is 0).

    Raises:
        InputError: ``keep`` outside (0, 1] or ``total`` negative.
    """
    check("keep", keep)
    share = float(keep)
    if total < 0:
        raise InputError(f"the number of tokens cannot be negative, got {total}")
    if total == 0:
        return 0
    exact = Decimal(repr(share)) * total
    return max(1, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))


def split_budget(total_budget: int, parts: int | Sequence[float]) -> list[int]:
    """Split a budget exactly, by largest remainder; ties go to the earlier part.

    Args:
        total_budget: tokens to hand out, 0 or more.
        parts: the number of equal parts, or one weight a part (finite, not negative, not all 0).

    Returns:
        One integer a part; their sum is ``total_budget``, and each is the part's exact share
        rounded down or up.

    Raises:
        InputError: a negative budget, no parts, or weights that cannot be shared by.
    """
    if total_budget < 0:
        raise InputError(f"a budget cannot be negative, got {total_budget}")
    if isinstance(parts, int):
        if parts < 1:
            raise InputError(f"a budget is split into at least 1 part, got {parts}")
        weights = [Fraction(1)] * parts
    else:
        floats = [float(weight) for weight in parts]
        if not floats or any(not math.isfinite(w) or w < 0 for w in floats) or not any(floats):
            raise InputError("weights must be finite, not negative, and not all zero")
        weights = [Fraction(weight) for weight in floats]
    whole = sum(weights, Fraction(0))
    shares = [total_budget * weight / whole for weight in weights]
    result = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (result[i] - shares[i], i))
    for i in by_remainder[: total_budget - sum(result)]:
        result[i] += 1
    return result


def cut_counts(total: int, points: Sequence[tuple[int, float]], budget: int) -> dict[int, int]:
    """Exact counts left before each layer that prunes; the last cut lands on the budget.

    Args:
        total: tokens at first. points: (layer, share of them left after its cut), ascending.
        budget: what is left in the end; no cut goes below it.
    """
    counts = {layer: max(budget, round(total * share)) for layer, share in points}
    return {**counts, points[-1][0]: budget}
