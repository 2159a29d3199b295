"""Classes by name, and the hint where a name is wrong: what all registries share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, Generic, TypeVar

from . import InputError

T = TypeVar("T")
_C = TypeVar("_C", bound=type[Any])


class Registry(Generic[T]):
    """Classes of one kind, each with its name as the attribute `name`; no two have the same.

    Args:
        kind: what error texts call them, e.g. "temporal encoder".
        given: arguments that every class takes and that are no options, e.g. ("dim",).
    """

    def __init__(self, kind: str, given: Iterable[str] = ()) -> None:
        self.kind, self.given = kind, frozenset(given)
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[_C], _C]:
        """Class decorator: make a class available under a name."""

        def add(cls: _C) -> _C:
            there = self._classes.get(name)
            if there and (there.__module__, there.__qualname__) != (
                cls.__module__,
                cls.__qualname__,
            ):
                raise ValueError(f"two classes are called {self.kind} {name!r}: {there}, {cls}")
            cls.name = name
            self._classes[name] = cls
            return cls

        return add

    def names(self, pattern: str = "*") -> list[str]:
        """The registered names that match a wildcard pattern such as "*pool*", sorted."""
        return sorted(name for name in self._classes if fnmatch(name, pattern))

    def find(self, name: str) -> type[T]:
        """The class called `name`.

        Raises:
            InputError: no class of that name; the message names close matches.
        """
        if name not in self._classes:
            raise InputError(f"no {self.kind} {name!r}: {did_you_mean(name, self.names())}")
        return self._classes[name]

    def options(self, name: str) -> list[str]:
        """The options that the class called `name` takes. Raises InputError as `find`."""
        return [p for p in inspect.signature(self.find(name)).parameters if p not in self.given]

    def build(self, name: str, *given: Any, options: Mapping[str, Any]) -> T:
        """Build the class called `name`.

        Raises:
            InputError: no class or no option of that name; the message names close matches.
        """
        known = self.options(name)
        for key in options:
            if key not in known:
                takes = ", ".join(closest(key, known or ["none"]))
                raise InputError(f"{self.kind} {name!r} has no option {key!r}: it takes {takes}")
        return self.find(name)(*given, **options)


def closest(word: str, known: Iterable[str], n: int = 2, cutoff: float = 0.4) -> list[str]:
    """The `n` names that are most like a word; all of them where none is like it."""
    known = list(known)
    return difflib.get_close_matches(word, known, n, cutoff) or known


def did_you_mean(
    word: str, known: Iterable[str], n: int = 2, cutoff: float = 0.4, otherwise: str = ""
) -> str:
    """The end of a message about a wrong name: "did you mean mean-pool or max-pool?".

    Args:
        n: names at most. cutoff: how like they are at least, from 0 to 1.
        otherwise: what is said where no name is like it; all names are said if that is empty.
    """
    known = list(known)
    if otherwise and not difflib.get_close_matches(word, known, 1, cutoff):
        return otherwise
    return f"did you mean {' or '.join(closest(word, known, n, cutoff))}?"
