"""How a run goes on, on standard error: a bar with the time left and the headline so far.

Where nobody watches a terminal a plain line comes every minute instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vidllm.cli.options import say

from ..tasks.base import Item, Response, Task
from .journal import Row, item_of, response_of

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds between two plain lines, and between two looks at the headline.
LINES, LOOKS = 60.0, 2.0
#: The headline is worked out again only while that takes less than this share of the time.
SHARE = 0.05


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that shows up on a terminal with the first report of (done, total)."""
    shown = _progress(what)
    number = shown.add_task(what, total=None, score="")

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            shown.start()
        shown.update(number, completed=done, total=total)

    try:
        yield report
    finally:
        if shown.live.is_started:  # else it would leave an empty line
            shown.stop()


class Watch:
    """Shows the rows of a run as they come.

    Args:
        task: whose rows. labels: of the settings whose headline is shown, the first and the last.
        total: answers that this process has still to get. known: rows that are there already.
        quiet: neither bar nor lines. where: words behind the count, e.g. the process.
    """

    def __init__(
        self,
        task: Task,
        labels: Sequence[str],
        total: int,
        known: Sequence[Row] = (),
        *,
        quiet: bool = False,
        where: str = "",
    ) -> None:
        self.task, self.total, self.where = task, total, where
        self.labels = list(dict.fromkeys([labels[0], labels[-1]]))
        self.done = self.failures = 0
        self.began = self._looked = self._said = time.monotonic()
        self._cost, self._score = 0.0, ""
        self._rows: dict[str, list[tuple[Item, Response]]] = {label: [] for label in self.labels}
        for row in known:
            self._take(row)
        self._bar: Progress | None = None
        self._lines = not quiet
        if not quiet and total and sys.stderr.isatty():
            self._bar, self._lines = _progress("asking"), False
            self._number = self._bar.add_task("asking", total=total, score="")
            self._bar.start()

    def __call__(self, row: Row) -> None:
        """One more row."""
        self.done += 1
        self.failures += row["error"] is not None
        self._take(row)
        now = time.monotonic()
        if now - self._looked > max(LOOKS, self._cost / SHARE) and (self._bar or self._lines):
            self._looked, self._score = now, self.score()
            self._cost = time.monotonic() - now
        if self._bar is not None:
            self._bar.update(self._number, completed=self.done, score=self._score)
        elif self._lines and now - self._said > LINES:
            self._said = now
            left = (now - self.began) / self.done * (self.total - self.done)
            say(
                f"{self.done} of {self.total} answers{self.where}, {_minutes(left)} left "
                f"{self._score}".rstrip()
            )

    def score(self) -> str:
        """The headline so far, of the first and of the last setting."""
        shown = []
        for label, pairs in self._rows.items():
            if not pairs:
                continue
            try:
                found = self.task.scores([i for i, _ in pairs], [r for _, r in pairs])
            except Exception:  # a part of a benchmark may have no score: nothing is shown
                continue
            value = found.get(self.task.headline)
            if value is not None:
                shown.append(f"{label} {value:.3f}")
        failures = f" · {self.failures} failed" if self.failures else ""
        return f"{self.task.headline} {' · '.join(shown)}{failures}" if shown else ""

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _take(self, row: Row) -> None:
        if row["setting"] in self._rows:
            self._rows[row["setting"]].append((item_of(row), response_of(row)))


def _progress(what: str) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[Any, ...] = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
    )
    return Progress(*columns, console=Console(stderr=True))


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
