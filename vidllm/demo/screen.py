"""Whose updates a page shows: those of the newest event that a component belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: A browser that is gone never asks for the next update: who waits for it goes on after that.
_PATIENCE = 2.0


class Screen:
    """What one visitor sees, by component; an older event cannot write over a newer one."""

    def __init__(self) -> None:
        self._number = 0
        self._owner: dict[Any, int] = {}
        self._owning = threading.Lock()
        self._sending = threading.Lock()

    def number(self) -> int:
        """Of a new event: later ones have higher numbers."""
        with self._owning:
            self._number += 1
            return self._number

    def take(self, number: int, components: Iterable[Any]) -> None:
        """An event has these components from now on, but for those of a newer one."""
        with self._owning:
            for component in components:
                self._owner[component] = max(number, self._owner.get(component, 0))

    @contextmanager
    def showing(self, number: int, update: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """What of an update may still be shown; while it is sent, nothing else is."""
        held = self._sending.acquire(timeout=_PATIENCE)
        try:
            with self._owning:
                owned = {c: v for c, v in update.items() if self._owner.get(c, number) == number}
            yield owned
        finally:
            if held:
                self._sending.release()
