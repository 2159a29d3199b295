"""The run: every clip is opened once and asked everything under every setting, row by row.

The answers of a clip under one setting are asked together, now and when a run goes on, so that
the company in which a question is asked does not show in the bytes of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.progress.interruption import Halt

from ..tasks.base import Item, Task
from .ask_model import Asker, ask_all, failed
from .clips import Clip, open_clip, share_of
from .journal import Journal, Key, Prediction, Row, item_of, key_of, response_of, row_of
from .run_settings import Setting

if TYPE_CHECKING:
    from vidllm.cli.options import CommonOptions

#: Told of every row; rows that were there before come first.
Watcher = Callable[[Row], None]


@dataclass
class Runner:
    """One process's part of a run.

    Args:
        task: whose items come. asker: who answers, with the settings.
        clips: of the whole run. folders: where their videos are.
        numbers: the place of every item in the benchmark, by id.
        options: how videos are read.
        done: rows of earlier parts of the run, by setting and item.
        retry_failed: ask again what failed before.
        rank, size: which process of how many.
    """

    task: Task
    asker: Asker
    clips: Sequence[Clip]
    folders: Sequence[Path]
    options: CommonOptions
    numbers: Mapping[str, int]
    done: dict[Key, Row]
    retry_failed: bool = False
    rank: int = 0
    size: int = 1

    def mine(self) -> list[Clip]:
        """The clips of this process."""
        return share_of(self.clips, self.rank, self.size)

    def is_done(self, setting: Setting, item: Item) -> bool:
        """Whether there is an answer, or a failure that is to stay."""
        row = self.done.get((setting.label, item.id))
        return row is not None and not (self.retry_failed and row["error"] is not None)

    def left(self) -> int:
        """Answers that this process has still to get."""
        settings = self.asker.settings()
        return sum(
            not self.is_done(setting, item)
            for clip in self.mine()
            for item in clip.items
            for setting in settings
        )

    def run(self, journal: Journal, halt: Halt, watch: Watcher = lambda row: None) -> None:
        """Ask what is not answered yet.

        Raises:
            Stopped: `halt` wants it; what was answered is in the journal.
            WorkError: the journal cannot be written.
        """
        settings = self.asker.settings()
        for clip in self.mine():
            left = [s for s in settings if not all(self.is_done(s, i) for i in clip.items)]
            if left:
                halt.check()
                self._ask(clip, left, journal, halt, watch)

    def _ask(
        self, clip: Clip, left: Sequence[Setting], journal: Journal, halt: Halt, watch: Watcher
    ) -> None:
        try:
            opened = open_clip(clip, self.folders, self.options)
        except Exception as error:  # a bad video is a failure of its answers, not of the run
            said = [failed(error)] * len(clip.items)
            rows = [row for s in left for row in self._rows(s, clip.items, said)]
            self._keep(rows, journal, watch)
            return
        for setting in left:
            halt.check()
            self._keep(
                self._rows(setting, clip.items, ask_all(self.asker, opened, clip.items, setting)),
                journal,
                watch,
            )

    def _rows(
        self, setting: Setting, items: Sequence[Item], said: Sequence[Prediction]
    ) -> list[Row]:
        """The rows that were not there yet."""
        rows = []
        for item, answer in zip(items, said, strict=True):
            if self.is_done(setting, item):
                continue
            row = scored(self.task, setting.label, item, self.numbers[item.id], answer)
            before = self.done.get((setting.label, item.id))
            if before is not None:
                row["attempt"] = int(before.get("attempt", 0)) + 1
            rows.append(row)
        return rows

    def _keep(self, rows: Sequence[Row], journal: Journal, watch: Watcher) -> None:
        journal.add(rows)
        for row in rows:
            self.done[key_of(row)] = row
            watch(row)


def scored(task: Task, label: str, item: Item, number: int, said: Prediction) -> Row:
    """The row of an answer with what the task reads in it."""
    failure = said.response.error is not None
    parsed = None if failure else task.read(item, said.response)
    return row_of(label, item, number, said, parsed, task.value(item, said.response))


def scored_again(task: Task, row: Row) -> Row:
    """A row as it would be written now, by today's parser and score."""
    item, response = item_of(row), response_of(row)
    parsed = None if response.error is not None else task.read(item, response)
    return {**row, "parsed": parsed, "value": task.value(item, response)}
