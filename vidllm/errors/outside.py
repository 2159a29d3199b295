"""What other installed packages register by entry points: known by name, loaded when used.

A package that is broken, or takes a name that is taken, is told of in one line by the logger
``vidllm`` and left out; nothing else changes for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from . import InputError

_LOG = logging.getLogger("vidllm")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@cache
def _installed(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points of a group by name; more than one where packages share a name."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, {})[package_of(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in sorted(found.items())}


def package_of(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point is from."""
    dist = entry.dist
    return "an unnamed package" if dist is None else f"{dist.name} {dist.version}"


class OutsideEntries:
    """The entry points of one group, each loaded once.

    Args:
        group: its name. kind: what error texts call an entry. own: names that the project has.
        fit: gives what is wrong with a loaded value, in words, or ""; it may change the value.
    """

    def __init__(
        self,
        group: str,
        kind: str,
        own: Callable[[], Collection[str]],
        fit: Callable[[str, Any], str],
    ) -> None:
        self.group, self.kind, self._own, self._fit = group, kind, own, fit
        self._loaded: dict[str, Any] = {}
        self._told: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a package, or two, register this name, and the project has none of it."""
        return self._refusal(name) != "" or name in self.names()

    def names(self) -> list[str]:
        """Names that packages register and that are free, whether they can be loaded or not."""
        return [n for n in _installed(self.group) if not self._refusal(n) and n not in self._own()]

    def package(self, name: str) -> str:
        """Name and version of the package that registers a name; "" for none."""
        entries = _installed(self.group).get(name, ())
        return package_of(entries[0]) if name not in self._own() and entries else ""

    def load(self, name: str) -> Any:
        """What is registered as `name`.

        Raises:
            InputError: it cannot be loaded, is something else, or two packages register it.
        """
        if refusal := self._refusal(name):
            raise InputError(refusal)
        if name not in self._loaded:
            (entry,) = _installed(self.group)[name]
            told = f"{self.kind} {name!r} of package {package_of(entry)}"
            try:
                value = entry.load()
            except (Exception, SystemExit) as error:  # whatever a foreign module does
                line = next(iter(str(error).strip().splitlines()), "")
                raise InputError(
                    f"{told} cannot be loaded ({type(error).__name__}: {line}): mend or uninstall "
                    "that package"
                ) from error
            if wrong := self._fit(name, value):
                raise InputError(f"{told} cannot be used: {entry.value} {wrong}")
            self._loaded[name] = value
        return self._loaded[name]

    def usable(self) -> list[str]:
        """Names that can be loaded; of the others the logger tells once."""
        found = []
        for name in _installed(self.group):
            self.warn_if_taken(name)
            if name in self._own():
                continue
            try:
                self.load(name)
            except InputError as error:
                self._warn(name, str(error))
            else:
                found.append(name)
        return found

    def warn_if_taken(self, name: str) -> None:
        """Tell once that a package registers a name that the project has."""
        entries = _installed(self.group).get(name, ())
        if entries and name in self._own():
            self._warn(
                name,
                f"package {package_of(entries[0])} registers {self.kind} {name!r}, which is a name "
                "of vidllm's own: its entry is left out until it is renamed",
            )

    def _refusal(self, name: str) -> str:
        """Why an entry of this name cannot be taken; "" where it can, or there is none."""
        entries = _installed(self.group).get(name, ())
        if not entries or name in self._own():
            return ""
        if len(entries) > 1:
            packages = " and ".join(map(package_of, entries))
            return f"{self.kind} {name!r} is registered twice, by {packages}: uninstall one"
        if not _NAME.fullmatch(name):
            return (
                f"{self.kind} {name!r} of package {package_of(entries[0])} needs another name: "
                "small letters, digits and hyphens"
            )
        return ""

    def _warn(self, name: str, line: str) -> None:
        if name not in self._told:
            self._told.add(name)
            _LOG.warning("%s", " ".join(line.split()))
