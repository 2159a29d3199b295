"""Rows of a measured claim: an arm, a seed, a measure, its value and its interval."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.cli.tables import table
from vidllm.errors import InputError
from vidllm.recipes.courses.head_settings import HeadSettings

from ...scores.statistics import bootstrap

if TYPE_CHECKING:
    from rich.table import Table

#: What "at small cost" and "comparable" are: so much of the score of what is compared with.
COMPARABLE = 0.95
Row = dict[str, Any]


@dataclass(frozen=True)
class ClaimSettings:
    """How much is measured.

    Args:
        folder: where frozen features of the training clips are kept.
        size, init, steps, batch, clips: of every training, see `HeadSettings`; 0 for the course's.
        seeds: trainings of every arm. tested: clips of the test, the same for all.
        long: clips of the split long, which take minutes each; 0 for none.
        arms: only these; empty for all.
        out: CSV in which rows of other arms stay; None for none.
    """

    folder: Path
    size: str = "small"
    init: str = ""
    steps: int = 0
    batch: int = 0
    clips: int = 0
    seeds: int = 3
    tested: int = 100
    long: int = 0
    device: str = "cpu"
    arms: tuple[str, ...] = ()
    out: Path | None = None

    def __post_init__(self) -> None:
        if min(self.seeds, self.tested) < 1 or self.long < 0:
            raise InputError("a claim is measured with at least 1 seed and 1 clip")

    def training(self, seed: int, **head: Any) -> HeadSettings:
        """Of one training; `head` are options of the head in place of the course's."""
        return HeadSettings(
            out=str(self.folder),
            size=self.size,
            init=self.init,
            steps=self.steps,
            batch=self.batch,
            clips=self.clips,
            device=self.device,
            seed=seed,
            head=tuple(head.items()),
        )

    def chosen(self, arms: Sequence[str]) -> list[str]:
        """The arms to measure.

        Raises:
            InputError: one that there is not.
        """
        for name in self.arms:
            if name not in arms:
                raise InputError(f"no arm {name!r}: there are {', '.join(arms)}")
        return [name for name in arms if not self.arms or name in self.arms]


class Ledger:
    """Rows as they come, so that nothing measured is lost.

    Args:
        recipe: whose claim. settings: of the measurement. save: gets all rows after every arm,
            behind those of other arms in `settings.out`.
        arms: that are measured.

    Raises:
        InputError: `settings.out` is another file than that of a claim.
    """

    def __init__(
        self,
        recipe: str,
        settings: ClaimSettings,
        save: Callable[[list[Row]], None] | None,
        arms: Sequence[str],
    ) -> None:
        self.recipe, self.settings, self._save = recipe, settings, save
        self.kept = [row for row in _written(settings.out) if row["arm"] not in arms]
        self.rows: list[Row] = []

    def begin(self, steps: int) -> None:
        """Take the steps of every training, which the course may have filled in.

        Raises:
            InputError: rows of other arms, which stay in the file, are of other settings.
        """
        self.settings = s = replace(self.settings, steps=steps)
        same = {"recipe": self.recipe, "size": s.size, "device": s.device, "steps": steps}
        for row in self.kept:
            for name, value in same.items():
                if name == "steps" and row.get(name) == "0":  # an arm without training
                    continue
                if row.get(name) != str(value):
                    raise InputError(
                        f"{s.out} has rows of {row['arm']} with {name} {row.get(name)}, not "
                        f"{value}: measure with that too, or give another --out"
                    )

    def shares(
        self,
        arm: str,
        seed: int | None,
        measure: str,
        values: Sequence[float],
        clips: Sequence[str],
    ) -> None:
        """A mean with its interval over whole clips.

        Args:
            seed: None for an arm without training. values: one a question. clips: of each.
        """
        if not len(values):
            return
        found = bootstrap(list(map(float, values)), list(clips))
        self._add(arm, seed, measure, found.value, found.low, found.high, found.n)

    def fact(self, arm: str, seed: int | None, measure: str, value: float) -> None:
        """A number without an interval, such as a count or seconds of this machine."""
        self._add(arm, seed, measure, value, None, None, None)

    def _add(
        self,
        arm: str,
        seed: int | None,
        measure: str,
        value: float,
        low: float | None,
        high: float | None,
        n: int | None,
    ) -> None:
        s = self.settings
        self.rows.append(
            {
                "recipe": self.recipe,
                "arm": arm,
                "seed": seed,
                "measure": measure,
                "value": round(value, 5),
                "low": None if low is None else round(low, 4),
                "high": None if high is None else round(high, 4),
                "n": n,
                "size": s.size,
                "steps": 0 if seed is None else s.steps,
                "device": s.device,
            }
        )

    def save(self) -> None:
        """Hand all rows over."""
        if self._save is not None:
            self._save([*self.kept, *self.rows])


def _written(file: Path | None) -> list[Row]:
    """The rows of a claim's CSV as they stand there."""
    if file is None or not file.is_file():
        return []
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    wanted = {"recipe", "arm", "seed", "measure", "value"}
    if any(None in row or None in row.values() or not wanted <= row.keys() for row in rows):
        raise InputError(f"{file} is no CSV of vidllm bench claim: give another --out")
    return rows


def claim_table(rows: Sequence[Row]) -> Table:
    """Means over the seeds, the lowest and the highest in brackets."""
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    found = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [arm]
        for measure in measures:
            mine = [r["value"] for r in rows if r["arm"] == arm and r["measure"] == measure]
            cells.append(_cell(mine))
        found.append(cells)
    title = f"{rows[0]['recipe']}: mean over seeds (lowest–highest)" if rows else "nothing"
    return table(found, left=("arm",), right=measures, title=title)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.3g}–{max(values):.3g})"
