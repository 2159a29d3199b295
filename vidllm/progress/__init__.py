"""Hearing how a call goes on, and stopping it: stages with their seconds, the growing answer.

Nothing runs beside the call: every method of a listener is called on the call's own thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vidllm.errors import WorkError

if TYPE_CHECKING:
    from torch import nn


class Stopped(WorkError):
    """A listener asked for the work to end, and it did."""

    def __init__(self) -> None:
        super().__init__("stopped")


class Listener:
    """Base of those who want to hear how a call goes on; override what you need.

    What a method raises ends the call.
    """

    def stage(self, name: str) -> None:
        """A stage begins: "decode" (reading the video), "encode", "compress", "prefill" or
        "generate"; for several questions the last three come again.
        """

    def seconds(self, name: str, value: float) -> None:
        """A stage took so many seconds so far."""

    def text(self, so_far: str) -> None:
        """The answer so far, its times written for people; a time that is not whole waits.

        Of questions that are answered together the first; one after the other each in turn.
        """

    def stopped(self) -> bool:
        """Whether the work shall end; asked at every layer, decode step and chunk of frames."""
        return False


class StopSignal(Listener):
    """A listener that stops the work when another thread calls `stop`.

    Args:
        event: to share with others; None for one of its own.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = threading.Event() if event is None else event

    def stop(self) -> None:
        """End the work that listens to this; calls that come later end at once."""
        self.event.set()

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self.event.is_set()


def check(listener: Listener | None) -> None:
    """Raise `Stopped` where the listener asks for it."""
    if listener is not None and listener.stopped():
        raise Stopped


@contextmanager
def attentive(listener: Listener | None, *modules: nn.Module) -> Iterator[None]:
    """Ask the listener before every layer of these modules; hooks come off again in any case.

    A layer is what stands in a `ModuleList` or `Sequential`. Without a listener nothing is done.
    """
    if listener is None:
        yield
        return
    from torch import nn

    def ask(*_: Any) -> None:
        check(listener)

    lists = (m for top in modules for m in top.modules())
    layers = {
        id(layer): layer
        for found in lists
        if isinstance(found, (nn.ModuleList, nn.Sequential))
        for layer in found
    }
    handles = [layer.register_forward_pre_hook(ask) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
