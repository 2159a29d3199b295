"""Classes by name: what the registries of encoders and heads share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from . import InputError

T = TypeVar("T")
_C = TypeVar("_C", bound=type[Any])


class Registry(Generic[T]):
    """Classes of one kind, each with its name as the attribute `name`.

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
            cls.name = name
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._classes)

    def find(self, name: str) -> type[T]:
        """The class called `name`.

        Raises:
            InputError: no class of that name; the message names close matches.
        """
        if name not in self._classes:
            raise InputError(f"no {self.kind} {name!r}: did you mean {_close(name, self.names())}?")
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
                takes = _close(key, known or ["none"], ", ")
                raise InputError(f"{self.kind} {name!r} has no option {key!r}: it takes {takes}")
        return self.find(name)(*given, **options)


def _close(word: str, known: list[str], joined: str = " or ") -> str:
    return joined.join(difflib.get_close_matches(word, known, n=2, cutoff=0.4) or known)
