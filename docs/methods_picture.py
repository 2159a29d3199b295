"""Draw docs/methods.png, the picture at the top of README, from docs/results/methods.csv alone."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vidllm.eval.bench.methods.method_table import CONTROL, FREE, MethodTable, read_table
from vidllm.eval.report.style import LIGHT, Look, Tag, looks, name_axes, new_figure, png, tag_column

HERE = Path(__file__).parent
#: Drawn with names; the others are grey lines.
NAMED = ("vidcom2", "divprune", "aim", "fastvid", "uniform", "random", "tome")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=HERE / "results" / "methods.csv")
    parser.add_argument("--out", type=Path, default=HERE / "methods.png")
    given = parser.parse_args()
    given.out.write_bytes(png(draw(read_table(given.table))))
    print(given.out)


def draw(table: MethodTable) -> Figure:
    """Share of the uncompressed mIoU against the share of video tokens that is kept."""
    figure, axes = new_figure(LIGHT, 8.2, 3.7)
    rows = [row for row in table.rows if _is_short_everywhere(row, table)]
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["keep"])):
        curves.setdefault(row["compressor"], []).append(row)
    look = {**looks(NAMED, LIGHT), "": Look("#c3c9d2", "", "-", 0.9)}
    tags = [Tag("none: all tokens, 100 %", look["none"], math.nan, 100)]
    axes.axhline(100, color=LIGHT.ink, linewidth=1.2, zorder=3)
    for name, line in curves.items():
        style = look[name if name in NAMED else ""]
        x = [100 * float(row["keep"]) for row in line]
        y = [100 * float(row["mIoU_share"]) for row in line]
        axes.plot(
            x,
            y,
            color=style.colour,
            marker=style.marker,
            linestyle=style.dashes,
            linewidth=1.8 if name in NAMED else 0.9,
            markersize=4.5,
            zorder=4 if name in NAMED else 1,
        )
        if name in NAMED:
            tags.append(Tag(name, style, x[0], y[0]))
    keeps = [100 * keep for keep in sorted(table.keeps)]
    axes.set_xscale("log")
    axes.set_xlim(keeps[0] / 2.3, keeps[-1] * 1.06)
    axes.set_ylim(0, 106)
    axes.set_xticks(keeps, [f"{keep:g} %" for keep in keeps])
    axes.minorticks_off()
    axes.set_yticks(range(0, 101, 20), [f"{y} %" for y in range(0, 101, 20)])
    clips, others = table.full["videos"], len(curves) - len(NAMED)
    name_axes(
        axes,
        LIGHT,
        "share of the video tokens that is kept (log scale)",
        "temporal grounding: mIoU, share of the uncompressed",
        f"{table.setting['model']}, {clips:g} synthetic clips · grey: {others} more methods",
    )
    tag_column(axes, LIGHT, tags)
    return figure


def _is_short_everywhere(row: Mapping[str, Any], table: MethodTable) -> bool:
    """Whether it needs no training, and every layer of the decoder reads the kept tokens alone.

    Methods inside the decoder read all tokens in its first layers, which costs more.
    """
    if row["kind"] not in (FREE, CONTROL) or row["stage"] not in ("vision", "tokens"):
        return False
    return math.isclose(row["kv_mb"], row["keep"] * table.full["kv_mb"], rel_tol=0.02)


if __name__ == "__main__":
    main()
