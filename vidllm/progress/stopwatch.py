"""Wall seconds by stage, told to a listener as they pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import Listener, check


@dataclass
class Stopwatch:
    """Wall seconds by stage, in the order in which the stages first ran, told to a listener."""

    seconds: dict[str, float] = field(default_factory=dict)
    listener: Listener | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside towards `name`. Raises `Stopped` where the listener says so."""
        self.begin(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def begin(self, name: str) -> None:
        """Tell the listener of a stage, unless it wants the work to end."""
        check(self.listener)
        if self.listener is not None:
            self.listener.stage(name)
            check(self.listener)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self.listener is not None:
            self.listener.seconds(name, self.seconds[name])

    def copy(self) -> Stopwatch:
        """Another one that goes on from here, for the same listener."""
        return Stopwatch(dict(self.seconds), self.listener)
