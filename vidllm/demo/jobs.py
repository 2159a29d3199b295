"""A piece of work on a thread of its own, watched while it goes on, and stopped when it is told."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vidllm.progress import StopSignal, check


@dataclass
class Heard:
    """What is known of a job so far.

    Attributes:
        done: seconds of the stages that were heard, in order. now: the stage that runs, or "".
        began: when it began, `time.perf_counter`. part: whose stages they are, or "".
        text: the answer so far. share: how much of a long reading is done, or None.
        took: seconds of the whole job.
    """

    done: dict[str, float] = field(default_factory=dict)
    now: str = ""
    began: float = 0.0
    part: str = ""
    text: str = ""
    share: float | None = None
    took: float = 0.0


class Job(StopSignal):
    """Work that listens for `stop`; it hears the stages of what it calls.

    Args:
        work: called with the job, on a thread of its own.
    """

    def __init__(self, work: Callable[[Job], Any]) -> None:
        super().__init__()
        self.heard = Heard()
        self._news = threading.Event()
        self._starting = threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True, name="vidllm job")

    def stage(self, name: str) -> None:
        """A stage begins."""
        self.heard.now, self.heard.began = name, time.perf_counter()
        self._news.set()

    def seconds(self, name: str, value: float) -> None:
        """A stage took so long."""
        self.heard.done[name] = value
        if self.heard.now == name:
            self.heard.now = ""
        self._news.set()

    def text(self, so_far: str) -> None:
        """The answer so far."""
        self.heard.text = so_far
        self._news.set()

    def part(self, name: str) -> None:
        """Another call begins: its stages and its answer are its own."""
        self.heard.part, self.heard.done, self.heard.now = name, {}, ""
        self.heard.text = ""
        self._news.set()

    def progress(self, done: float, whole: float) -> None:
        """So much of a long reading is done. Raises `Stopped` where it shall end."""
        check(self)
        self.heard.share = done / whole if whole else 1.0
        self._news.set()

    def start(self) -> None:
        """Begin, if it has not begun."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()

    def follow(self, every: float = 0.1) -> Generator[Heard, None, None]:
        """Start, and tell what is known at every change, every half second, and in the end.

        Who leaves the loop early stops the work.

        Args:
            every: seconds between two tellings at least.
        """
        self.start()
        try:
            running = True
            while running:
                self._news.wait(0.5)
                self._news.clear()
                self._thread.join(every)
                running = self._thread.is_alive()
                yield copy.copy(self.heard)
        finally:
            if self._thread.is_alive():
                self.stop()

    @property
    def running(self) -> bool:
        """Whether it was started and goes on."""
        return self._thread.is_alive()

    @property
    def over(self) -> bool:
        """Whether it was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def result(self) -> Any:
        """What the work gave. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def end(self, seconds: float) -> bool:
        """Stop, and wait for so long; whether it ended."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            check(self)
            self._value = self._work(self)
        except BaseException as error:  # told by `result`, on the thread of who waits
            self._error = error
        self.heard.took = time.perf_counter() - began
        self._news.set()


class Turns:
    """Who may use the model: one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()  # the first one holds the model
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, signal: StopSignal) -> Iterator[None]:
        """Wait for the model and hold it inside; the signal may end the wait and hears of it.

        Raises:
            Stopped: the signal was given.
        """
        mine = object()
        with self._moved:
            self._line.append(mine)
            first = self._line[0] is mine
        try:
            if not first:
                signal.stage("waiting")
                began = time.perf_counter()
                self._wait(mine, signal)
                signal.seconds("waiting", time.perf_counter() - began)
            check(signal)
            yield
        finally:
            with self._moved:
                self._line.remove(mine)
                self._moved.notify_all()

    def between(self, signal: StopSignal) -> None:
        """Between two pieces of a long work, inside `turn`: let all who wait go first.

        Raises:
            Stopped: the signal was given meanwhile.
        """
        with self._moved:
            if len(self._line) == 1:
                return
            mine = self._line[0]
            self._line.rotate(-1)
            self._moved.notify_all()
        self._wait(mine, signal)

    def _wait(self, mine: object, signal: StopSignal) -> None:
        with self._moved:
            while self._line[0] is not mine:
                self._moved.wait(0.1)
                check(signal)
