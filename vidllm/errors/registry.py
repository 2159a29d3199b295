"""Classes by name, and the hint where a name is wrong: what all registries share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, ClassVar, Generic, TypeVar

from . import InputError
from .outside import OutsideEntries

T = TypeVar("T")
_C = TypeVar("_C", bound=type[Any])


class Registry(Generic[T]):
    """Classes of one kind, each with its name as the attribute `name`; no two have the same.

    Args:
        kind: what error texts call them, e.g. "temporal encoder".
        given: arguments that every class takes and that are no options, e.g. ("dim",).
        base: class of them all. group: entry points by which other packages register more.
    """

    #: Of every group the registries that share it.
    _sharing: ClassVar[dict[str, list[Registry[Any]]]] = {}

    def __init__(
        self, kind: str, given: Iterable[str] = (), *, base: type | None = None, group: str = ""
    ) -> None:
        self.kind, self.given, self.base = kind, frozenset(given), base
        self._classes: dict[str, type[T]] = {}
        self._own: set[str] = set()
        self._others = self._sharing.setdefault(group, []) if group else []
        self._others.append(self)
        self.outside = OutsideEntries(group, kind, lambda: self._own, self._adopt)

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
            if cls.__module__.split(".")[0] == "vidllm":
                self._own.add(name)
            return cls

        return add

    def names(self, pattern: str = "*") -> list[str]:
        """The registered names that match a wildcard pattern such as "*pool*", sorted.

        Those of other packages are among them as far as these can be loaded.
        """
        found = {*self._classes, *self.packages()}
        return sorted(name for name in found if fnmatch(name, pattern))

    def packages(self) -> dict[str, str]:
        """Names that other packages register, each with its package; they are loaded for it."""
        found = {name: self.outside.load(name) for name in self.outside.usable()}
        return {n: self.outside.package(n) for n, cls in found.items() if self._takes(cls)}

    def has(self, name: str) -> bool:
        """Whether a class of this name is registered, here or by another package."""
        self.outside.warn_if_taken(name)
        return name in self._classes or self.outside.has(name)

    def find(self, name: str) -> type[T]:
        """The class called `name`.

        Raises:
            InputError: no class of that name; the message names close matches. Or one of another
                package that cannot be used.
        """
        if not self.has(name):
            raise InputError(f"no {self.kind} {name!r}: {did_you_mean(name, self.names())}")
        if name in self._classes:
            return self._classes[name]
        found: type[T] = self.outside.load(name)
        if not self._takes(found):
            raise InputError(f"{name!r} of package {self.outside.package(name)} is no {self.kind}")
        return found

    def _takes(self, cls: type[Any]) -> bool:
        return self.base is None or issubclass(cls, self.base)

    def _adopt(self, name: str, value: Any) -> str:
        """What is wrong with a class that another package registers; without it, it is taken."""
        bases = tuple(one.base for one in self._others if one.base is not None)
        kinds = " or ".join(base.__name__ for base in bases)
        if not isinstance(value, type):
            return f"is a {type(value).__name__}, and must be a subclass of {kinds}"
        cls: Any = value
        if not issubclass(cls, bases):
            return f"is class {cls.__name__}, and must be a subclass of {kinds}"
        if inspect.isabstract(cls):
            lacking = " and ".join(sorted(cls.__abstractmethods__))
            return f"is class {cls.__name__}, which lacks {lacking}()"
        own = cls.__dict__.get("name") or name
        if own != name:
            return f"is class {cls.__name__}, which calls itself {own!r}: give it one name"
        cls.name = name
        return ""

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
