"""One temporal encoder in the place of another, of as many parameters as the depth allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .registry import get_temporal, options_of

#: Layers of one encoder at most.
DEEPEST = 12
#: Options that mean another thing elsewhere: heads of H3 are outer products, whose work grows with
#: their width (32 wide a training step took ten times as long as 1 wide).
_OF_ITS_OWN = {"h3": {"head_dim"}}


def parameters_of(specs: Sequence[Mapping[str, Any]], dim: int) -> int:
    """Parameters of encoders, each {"name": …, options}, for tokens of width `dim`."""
    return sum(
        p.numel() for spec in specs for p in get_temporal(**{"dim": dim, **spec}).parameters()
    )


def encoders_like(
    specs: Sequence[Mapping[str, Any]], name: str, dim: int, slots: int | None = None
) -> list[dict[str, Any]]:
    """The encoder called `name` in the place of others, [] for "identity".

    What both can be told, such as how the clip is read, stays as it is; the layers of the first are
    as many as bring all parameters nearest to those of `specs`, at most `DEEPEST`. The smallest
    ("tsm", "temporal-conv") stay below that.

    Args:
        specs: what stands there now; the usual pair (slot, then raster) where nothing does.
        dim: width of a token.
        slots: tokens a frame, for encoders that are sized by them (MambaMixer); None for their own
            default.

    Raises:
        InputError: no encoder of that name.
    """
    known = set(options_of(name)) - _OF_ITS_OWN.get(name, set())
    if name == "identity":
        return []
    shape = [dict(s) for s in specs if s.get("name") != "identity"] or USUAL
    wanted = parameters_of(shape, dim)
    made = [
        {"name": name, **{k: v for k, v in s.items() if k in known and k != "name"}} for s in shape
    ]
    if slots is not None and "slots" in known:
        made = [{"slots": slots, **spec} for spec in made]
    if "layers" not in known:
        return made
    trials = [[{**made[0], "layers": depth}, *made[1:]] for depth in range(1, DEEPEST + 1)]
    return min(trials, key=lambda trial: abs(parameters_of(trial, dim) - wanted))


#: What a new encoder is made like where there is none.
USUAL: list[dict[str, Any]] = [
    {"name": "ssd", "layers": 2, "scan": "slot", "head_dim": 32},
    {"name": "ssd", "layers": 1, "scan": "raster", "head_dim": 32},
]
