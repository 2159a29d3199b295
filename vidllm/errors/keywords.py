"""Keyword arguments that a function has not: the nearest name instead of Python's own error."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from . import InputError
from .registry import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


class UnknownKeywordError(InputError, TypeError):
    """A call gives a keyword that there is not."""


def known_keywords(*through: Any, **renamed: str) -> Callable[[F], F]:
    """A function that names the nearest keyword to those who give one that it has not.

    Args:
        through: where its ``**options`` go: a function, or a TypedDict of options.
        renamed: former names of its keywords, each with the name of today; they are still taken,
            with a DeprecationWarning.

    The function then raises ``UnknownKeywordError``, an InputError and a TypeError.
    """

    def checked(function: F) -> F:
        known = [*_keywords(function), *(name for one in through for name in _keywords(one))]
        known = list(dict.fromkeys(known))

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            for former in [name for name in kwargs if name in renamed]:
                name = renamed[former]
                if name in kwargs:
                    raise UnknownKeywordError(f"{former} is {name} now: give {name} alone")
                told = f"{former}= is {name}= now"
                warnings.warn(told, DeprecationWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(former)
            for name in kwargs:
                if name not in known:
                    every = f"it takes {', '.join(known)}"
                    near = did_you_mean(name, known, n=1, cutoff=0.6, otherwise=every)
                    made = function.__name__ == "__init__"
                    asked = type(args[0]).__name__ if made else function.__name__
                    raise UnknownKeywordError(f"{asked}() has no keyword {name!r}: {near}")
            return function(*args, **kwargs)

        return cast(F, called)

    return checked


def _keywords(source: Any) -> list[str]:
    """Names that a function, or a TypedDict, takes by keyword."""
    if not inspect.isroutine(source):
        return list(source.__annotations__)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(source).parameters.values()
    return [p.name for p in parameters if p.kind in named and p.name not in ("self", "cls")]
