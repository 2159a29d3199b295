"""Whose updates a page shows: those of the newest event that a component belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: Seconds after which who waits goes on: a browser may be gone without a word, and then nobody asks
#: for what comes behind an update. A loaded machine needs seconds for one.
_PATIENCE = 60.0


class Screen:
    """What one visitor sees, by component; an older event cannot write over a newer one."""

    def __init__(self) -> None:
        self._owner: dict[Any, int] = {}
        self._moved = threading.Condition()
        self._sender: object = None
        self._closed = False

    def take(self, number: int, components: Iterable[Any]) -> bool:
        """An event has these components from now on, but for those of a newer one.

        Args:
            number: of the event: later ones have higher numbers.

        Returns:
            Whether it has any.
        """
        with self._moved:
            mine = [c for c in components if self._owner.get(c, 0) <= number]
            self._owner.update(dict.fromkeys(mine, number))
            return bool(mine)

    @contextmanager
    def showing(self, number: int, update: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
        """What of an update may still be shown; while it is sent, nothing else is."""
        mine = object()
        with self._moved:
            if self._moved.wait_for(lambda: self._sender is None or self._closed, _PATIENCE):
                self._sender = mine
            owned = {c: v for c, v in update.items() if self._owner.get(c, number) == number}
        try:
            yield owned
        finally:
            with self._moved:
                if self._sender is mine:
                    self._sender = None
                    self._moved.notify_all()

    def close(self) -> None:
        """The visitor is gone: nobody waits any more."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
