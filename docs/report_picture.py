"""Draw docs/report.png, the picture of a sweep, from the folder of a finished run.

    vidllm eval stage --compressor random,uniform,aim --keep 1,0.5,0.25,0.1 --out runs/sweep
    python docs/report_picture.py runs/sweep

docs/report-dark.png is the same for a dark theme.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidllm.errors import VidllmError
from vidllm.eval.report.load import find_folders, load_run
from vidllm.eval.report.outcome import Outcome
from vidllm.eval.report.plots import costs_of, draw_score_against
from vidllm.eval.report.study import Part, sections
from vidllm.eval.report.style import DARK, DRAWN, LIGHT, Theme, dress, png, tag_column
from vidllm.eval.report.tables import facts

#: Shown beside the headline, the first that a run has.
SECOND = ("qa_accuracy", "R1@0.5", "R1@0.7", "accuracy_logprob", "mIoU")
NAMES = {"qa_accuracy": "QA accuracy"}


def main() -> int:
    """Write both pictures; 2 and one line for what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out folder of a finished vidllm eval")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.png"))
    parser.add_argument("--second", help="score of the second panel")
    given = parser.parse_args()
    try:
        part = sections([load_run(folder) for folder in find_folders([given.run])])[0].parts[0]
    except VidllmError as error:
        print(f"report_picture: {error}", file=sys.stderr)
        return error.exit_code
    second = given.second or next(
        (n for n in SECOND if n != part.headline and _has(part, n)), part.headline
    )
    if not _has(part, second):
        known = ", ".join(sorted(part.outcomes[0].scores))
        print(f"report_picture: no score {second!r}: there are {known}", file=sys.stderr)
        return 2
    dark = given.out.with_name(f"{given.out.stem}-dark{given.out.suffix}")
    for theme, file in ((LIGHT, given.out), (DARK, dark)):
        file.write_bytes(png(draw(theme, part, second)))
        print(file)
    return 0


def draw(theme: Theme, part: Part, second: str) -> Figure:
    """Two panels: the headline and a second score against the tokens that the LLM keeps."""
    figure = Figure(figsize=(10, 4.1), dpi=DRAWN, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    other = [replace(o, score=o.scores.get(second), low=None, high=None) for o in part.outcomes]
    sides: list[tuple[str, list[Outcome]]] = [
        (part.headline, list(part.outcomes)),
        (second, other),
    ]
    tokens = next(cost for cost in costs_of(part.outcomes) if cost.name == "tokens")
    tags = []
    for place, (name, outcomes) in zip(axes, sides, strict=True):
        dress(place, theme)
        shown = NAMES.get(name, name)
        tags.append(draw_score_against(place, theme, outcomes, tokens, shown))
    told = dict(facts(part))
    words = [part.runs[0].task, *(f"{k} {told[k]}" for k in ("split", "frames") if k in told)]
    words += [f"{told[k]} {k}" for k in ("questions", "videos") if k in told]
    figure.suptitle(" · ".join(words), fontsize=8.5, color=theme.soft, x=0.995, ha="right")
    for place, labels in zip(axes, tags, strict=True):
        tag_column(place, theme, labels)
    return figure


def _has(part: Part, name: str) -> bool:
    return any(o.scores.get(name) is not None for o in part.outcomes)


if __name__ == "__main__":
    sys.exit(main())
