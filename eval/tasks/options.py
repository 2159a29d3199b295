"""Fields of a task that the command line has as options of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

from vidllm.errors import InputError


def numbers(text: str) -> tuple[float, ...]:
    """ "1,2,5" as numbers. Raises InputError."""
    try:
        return tuple(float(part) for part in text.strip().rstrip(",").split(","))
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers such as 1,2,5") from None


def one_number(text: str) -> float:
    """A number alone. Raises InputError."""
    (found, *more) = numbers(text)
    if more:
        raise InputError(f"one number is wanted, not {text!r}")
    return found


def whole_number(text: str) -> int:
    """A whole number. Raises InputError."""
    found = one_number(text)
    if not math.isfinite(found) or found != int(found):
        raise InputError(f"a whole number is wanted, not {text!r}")
    return int(found)


def option(name: str, default: Any, read: Callable[[str], Any], explained: str) -> Any:
    """A field that the command line has as --name: how its text is read, and its help."""

    def named(text: str) -> Any:
        try:
            return read(text)
        except InputError as error:
            raise InputError(f"--{name}: {error}") from None

    return field(default=default, metadata={"read": named, "help": explained})
