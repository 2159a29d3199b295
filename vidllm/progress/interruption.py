"""Work that is stopped from outside, by Ctrl-C or a signal, ends between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from vidllm.errors import VidllmError

from . import Stopped


class Interrupted(VidllmError):
    """The work was stopped from outside; the message says what is kept."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Halt:
    """Whether the work shall end: set by Ctrl-C or a signal, heeded between two steps.

    A second Ctrl-C does not wait.
    """

    number: int = 0
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    _before: dict[signal.Signals, Any] = field(default_factory=dict)

    def wanted(self) -> bool:
        """Whether to end."""
        return bool(self.number)

    def check(self) -> None:
        """Raise `Stopped` where the work shall end."""
        if self.number:
            raise Stopped

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take the signals over; only a program's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {one: signal.signal(one, self._stop) for one in self.signals}
        try:
            yield
        finally:
            for one, handler in self._before.items():
                signal.signal(one, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def leave_to_parent(_worker: int = 0) -> None:
    """In a worker process: Ctrl-C is the parent's to heed, and a termination ends it as usual."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
