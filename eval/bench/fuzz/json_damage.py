"""Damage to JSON: one value of it becomes another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vidllm.errors.bounds import short

_Place = tuple[Any, Any]  # a list or object, and the key in it


def places(value: Any) -> Iterator[_Place]:
    """Every place of a value inside another."""
    entries: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        entries = iter(value.items())
    elif isinstance(value, list):
        entries = iter(enumerate(value))
    for key, one in entries:
        yield value, key
        yield from places(one)


def _other_type(old: Any, draw: random.Random) -> Any:
    values: list[Any] = [None, True, "x", 3, 2.5, [], {}, [[]], {"a": 1}, ["x"]]
    kind = (int, float) if type(old) in (int, float) else (type(old),)
    return draw.choice([v for v in values if type(v) not in kind])


def _impossible(old: Any, draw: random.Random) -> Any:
    """A number beyond all that are used, or none; for other values one of another type."""
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        numbers = [-1, -(10**12), 10**12, 2**63, 2**64, 10**400, 1e308, -1e308]
        return draw.choice([*numbers, float("nan"), float("inf"), float("-inf")])
    return _other_type(old, draw)


def _odd(old: Any, draw: random.Random) -> Any:
    """Text that is none, that reaches for other places, or that terminals obey."""
    if isinstance(old, str):
        return draw.choice(["", "\0", "../" * 40, "x" * 100_000, "\x1b[2J", "\ud800", "\u202e"])
    return _other_type(old, draw)


def _nudged(old: Any, draw: random.Random) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, (int, float)):
        return old + draw.choice((1, -1, 2, 0.5 if isinstance(old, float) else 8))
    if isinstance(old, str):
        at = draw.randrange(len(old) + 1)
        return old[:at] + draw.choice("abc0. ") + old[at + 1 :]
    return old


def _deep(_: Any, draw: random.Random) -> Any:
    made: Any = 1
    for _step in range(draw.choice((60, 500, 900))):
        made = [made] if draw.random() < 0.5 else {"a": made}
    return made


def _twisted(old: Any, draw: random.Random) -> Any:
    """A list or object with an entry more, fewer, or in another place."""
    if isinstance(old, list) and old:
        at = draw.randrange(len(old))
        return draw.choice(([], old[:at], [*old, old[at]], old[::-1], old * 50))
    if isinstance(old, dict) and old:
        name = draw.choice(list(old))
        return draw.choice(({}, {k: v for k, v in old.items() if k != name}))
    return _other_type(old, draw)


#: Name to how a value is changed.
CHANGES: dict[str, Callable[[Any, random.Random], Any]] = {
    "other type": _other_type,
    "impossible value": _impossible,
    "odd text": _odd,
    "possible value": _nudged,
    "deep value": _deep,
    "twisted list": _twisted,
}
#: Those after which a value cannot be told from a right one.
_PLAUSIBLE = ("possible value", "odd text", "twisted list")


@dataclass(frozen=True)
class JsonDamage:
    """What was done.

    Args:
        name: the kind. plausible: whether the value could as well be right. told: where and what.
    """

    name: str
    plausible: bool
    told: str


def damage_json(value: Any, draw: random.Random) -> JsonDamage:
    """Change one value in place, or drop an entry."""
    every = list(places(value))
    name = draw.choice(list(CHANGES))
    if name == "odd text":
        every = [(h, k) for h, k in every if isinstance(h[k], str)] or every
    elif name == "possible value":
        every = [(h, k) for h, k in every if isinstance(h[k], (bool, int, float, str))] or every
    elif name == "twisted list":
        every = [(h, k) for h, k in every if isinstance(h[k], (list, dict))] or every
    holder, key = draw.choice(every)
    if isinstance(holder, dict) and draw.random() < 0.15:
        del holder[key]
        return JsonDamage("dropped entry", False, f"{key} dropped")
    old = holder[key]
    holder[key] = CHANGES[name](old, draw)
    told = f"{key}: {short(old)} to {short(holder[key])}"
    # What may be null may also be something.
    return JsonDamage(name, name in _PLAUSIBLE or old is None, told)


def written(value: Any) -> bytes:
    """JSON of a damaged value, with what JSON does not have (NaN, halves of signs)."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
