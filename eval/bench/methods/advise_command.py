"""``vidllm advise``: which method to take for a task at a share, from measured tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidllm.cli.options import AsJson, Debug, clean_output, emit, tell

app = typer.Typer(help="Which method to take, from what was measured.")


@app.command()
def advise(
    task: Annotated[
        str | None,
        typer.Option(help="What for: grounding, qa, …; all measured if absent."),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the video tokens kept; all measured if absent.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose table; the shipped model's if absent.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table of your own, made by vidllm bench methods."),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say which method to take for a task at a share, with intervals, from measured tables."""
    from .advice import all_advice, caveats, find_table

    with clean_output(json):
        found = find_table(model, table)
        advice = all_advice(found, task, keep)
        if json:
            emit(
                {
                    "advice": [one.as_dict() for one in advice],
                    "caveats": caveats(found),
                    "setting": dict(found.setting),
                }
            )
            return
        for one in advice:
            head, *rest = one.lines()
            tell("\n".join([head, *(f"  {line}" for line in rest), ""]))
        for line in caveats(found):
            tell(f"note: {line}")
