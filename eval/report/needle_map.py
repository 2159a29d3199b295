"""Heat maps of the needle test: recall by depth and length, for every compressor and share.

``python -m vidllm.eval.report.needle_map DIR`` draws them again from a finished run's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.cli.tables import markdown_table
from vidllm.errors import InputError
from vidllm.stage.annotations import write_text

from ..run.journal import in_order
from ..run.records import RunFolder, labels_of
from ..tasks.needle_clips import FPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[str, ...] = ("when", "what")
PICTURE, TABLE = "needle.png", "needle.md"
#: Dark is none, bright is all, even along the way and told apart by colour-blind readers too.
_COLOURS = "cividis"
_ABSENT = "#9aa3af"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """One heat map: the hit rates of a setting for one kind of question.

    Attributes:
        setting: e.g. "aim@0.25"; kind: "when" or "what".
        depths, lengths: labels of rows and columns, in order of their numbers.
        rate: (depths, lengths) share of hits, NaN where nothing was asked.
        count: (depths, lengths) answers.
        unseen: (depths, lengths) True where none of the sampled frames shows the event, in any
            clip of the cell; all False where it is not known which frames were sampled.
    """

    setting: str
    kind: str
    depths: tuple[str, ...]
    lengths: tuple[str, ...]
    rate: np.ndarray
    count: np.ndarray
    unseen: np.ndarray


def grids(rows: Sequence[Row]) -> list[Grid]:
    """The grids of all settings, in the order in which they come, "when" before "what".

    Args:
        rows: of a run's answers, as in `answers.jsonl`; a row may also hold "frames", how many
            were sampled, and "fps", if they were sampled at a rate.

    Raises:
        InputError: no rows, or rows of another task; the line names the field.
    """
    try:
        cells = [(r, r["groups"]["depth"], r["groups"]["length"], float(r["value"])) for r in rows]
        settings = list(dict.fromkeys(str(r["setting"]) for r in rows))
        asked = {str(r["kind"]) for r in rows}
        seen = _seen(rows)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"these are no answers of the needle test: {error} is missing") from None
    if not cells or asked - set(KINDS):
        raise InputError("these are no answers of the needle test: run `vidllm eval needle`")
    depths, lengths = _in_order(cell[1] for cell in cells), _in_order(cell[2] for cell in cells)
    found = []
    for setting in settings:
        for kind in (k for k in KINDS if k in asked):
            hits, count, sight = np.zeros((3, len(depths), len(lengths)))
            for row, depth, length, value in cells:
                if row["setting"] == setting and row["kind"] == kind:
                    at = depths.index(depth), lengths.index(length)
                    hits[at] += value
                    count[at] += 1
                    sight[at] += seen.get((setting, row["vid"]), True)
            rate = np.where(count > 0, hits / np.maximum(count, 1), np.nan)
            unseen = (count > 0) & (sight == 0)
            found.append(Grid(setting, kind, depths, lengths, rate, count.astype(int), unseen))
    return found


def _in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels such as "12.5 %" by their numbers, each once."""
    return tuple(sorted(set(labels), key=lambda label: float(label.split()[0])))


def _seen(rows: Sequence[Row]) -> dict[tuple[str, str], bool]:
    """(setting, video) → whether a sampled frame shows the event, where that is known."""
    return {
        (str(r["setting"]), r["vid"]): shows(r["truth"], r["duration"], r["frames"], r.get("fps"))
        for r in rows
        if r["kind"] == "when" and r.get("frames")
    }


def shows(span: Sequence[float], duration: float, frames: int, fps: float | None = None) -> bool:
    """Whether sampling a clip finds a frame of its event.

    Args:
        span: start and end of the event in seconds; duration: of the clip.
        frames: at the centres of as many equal parts of the clip; or, with fps, so many a second
            from its beginning.
    """
    every = np.arange(round(duration * FPS)) / FPS
    if frames >= len(every):
        return bool(((every >= span[0]) & (every < span[1])).any())
    part = 1 / fps if fps else duration / frames
    moments = (np.arange(frames) + (0.0 if fps else 0.5)) * part
    shown = np.floor(moments * FPS + 1e-6) / FPS  # the frame on screen at that moment
    return bool(((shown >= span[0]) & (shown < span[1])).any())


def heatmap(rows: Sequence[Row], *, ink: str = "#1b2330", paper: str = "#ffffff") -> Figure:
    """Draw all grids: a row a setting, "when" and "what" side by side, percent in the cells.

    Args:
        rows: see `grids`.
        ink, paper: colours of text and background.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = grids(rows)
    kinds = [k for k in KINDS if any(g.kind == k for g in found)]
    settings = list(dict.fromkeys(g.setting for g in found))
    deep, wide = found[0].rate.shape
    size = (1.1 + len(kinds) * (0.62 * wide + 0.5), 0.7 + len(settings) * (0.34 * deep + 0.75))
    figure = Figure(figsize=size, dpi=200, facecolor=paper, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(settings), len(kinds), squeeze=False, sharex=True, sharey=True)
    for grid in found:
        axes = panels[settings.index(grid.setting)][kinds.index(grid.kind)]
        _panel(axes, grid, ink)
        axes.set_title(f"{_name(grid.setting)} · {grid.kind}", fontsize=8.5, color=ink, loc="left")
    for row in panels:
        row[0].set_ylabel("depth of the event", fontsize=8, color=ink)
    for axes in panels[-1]:
        axes.set_xlabel("length of the clip", fontsize=8, color=ink)
    figure.supxlabel(_caption(found), fontsize=7, color=ink, x=0.01, ha="left")
    return figure


def _panel(axes: Any, grid: Grid, ink: str) -> None:
    from matplotlib import colormaps

    colours = colormaps[_COLOURS].with_extremes(bad=_ABSENT)
    axes.imshow(np.ma.masked_invalid(grid.rate), cmap=colours, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=7.5, color=ink)
    axes.set_yticks(range(len(grid.depths)), grid.depths, fontsize=7.5, color=ink)
    for edge in range(1, max(grid.rate.shape)):  # cells stand apart
        axes.axhline(edge - 0.5, color="#ffffff", linewidth=1.2)
        axes.axvline(edge - 0.5, color="#ffffff", linewidth=1.2)
    axes.set_xlim(-0.5, len(grid.lengths) - 0.5)
    axes.set_ylim(len(grid.depths) - 0.5, -0.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for (y, x), rate in np.ndenumerate(grid.rate):
        colour = "#ffffff" if np.isnan(rate) or rate < 0.5 else "#101418"
        axes.text(x, y, _cell(grid, y, x), ha="center", va="center", fontsize=7.5, color=colour)


def _cell(grid: Grid, y: int, x: int) -> str:
    if np.isnan(grid.rate[y, x]):
        return "–"
    return f"{100 * grid.rate[y, x]:.0f}{' ×' if grid.unseen[y, x] else ''}"


def _name(setting: str) -> str:
    """ "uncompressed", "aim 25 %", or "aim:budget=64", which has no share of its own."""
    method, _, share = setting.rpartition("@")
    if setting == "none@1":
        return "uncompressed"
    return method if share == "1" else f"{method} {100 * float(share):g} %"


def _caption(found: Sequence[Grid]) -> str:
    """What the numbers are, in one line."""
    counts = np.unique(np.concatenate([g.count[g.count > 0] for g in found]))
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    clips = "clip" if each == "1" else "clips"
    mark = "; × no sampled frame shows the event" if any(g.unseen.any() for g in found) else ""
    return f"hits in percent, {each} {clips} a cell{mark}"


def markdown(rows: Sequence[Row]) -> str:
    """The same numbers as Markdown tables, one a setting and kind."""
    found = grids(rows)
    parts = [f"Needle test: {_caption(found)}."]
    for grid in found:
        lines = [
            [depth, *(_cell(grid, y, x) for x in range(len(grid.lengths)))]
            for y, depth in enumerate(grid.depths)
        ]
        table = markdown_table(["depth", *grid.lengths], lines)
        parts.append("\n".join([f"**{_name(grid.setting)} · {grid.kind}**", "", *table]))
    return "\n\n".join(parts) + "\n"


def write_heatmaps(folder: Path) -> list[Path]:
    """Draw the heat maps of a run's folder into it: `needle.png` and `needle.md`.

    Raises:
        InputError: the folder holds no finished run of the needle test.
    """
    rows = read_rows(folder)
    figure = heatmap(rows)
    picture, table = folder / PICTURE, folder / TABLE
    figure.savefig(picture, metadata={"Software": None})  # the same run gives the same bytes
    write_text(table, markdown(rows))
    return [picture, table]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The answers of a run's folder, each with how many frames were sampled.

    Raises:
        InputError: no run is there, none of its answers yet, or a file is damaged.
    """
    run = RunFolder(folder)
    config = run.config()
    rows = in_order(run.rows(), labels_of(config))
    if not rows:
        raise InputError(f"{folder} has no answers yet: run `vidllm eval needle` to its end")
    fps = config.get("fps")
    return [{**row, "frames": row.get("cost", {}).get("frames"), "fps": fps} for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m vidllm.eval.report.needle_map DIR…``: 0, or 2 and a line that says why."""
    folders = list(sys.argv[1:] if arguments is None else arguments)
    if not folders or any(name.startswith("-") for name in folders):
        print("usage: python -m vidllm.eval.report.needle_map DIR [DIR …]", file=sys.stderr)
        return 0 if {"-h", "--help"} & set(folders) else 2
    try:
        for folder in folders:
            for file in write_heatmaps(Path(folder)):
                print(file)
    except InputError as error:
        print(f"vidllm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
