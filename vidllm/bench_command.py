"""``vidllm bench``: measurements on files that it makes, of this machine, for people to repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidllm.options import AsJson, Debug, clean_output, emit

app = typer.Typer(help="Measure on files that it makes.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure on files that it makes."""


@app.command()
def video(
    folder: Annotated[
        Path | None, typer.Option(help="Where the files are made and kept.", file_okay=False)
    ] = None,
    seconds_short: Annotated[int, typer.Option(min=1, help="Length of the short file.")] = 60,
    seconds_long: Annotated[int, typer.Option(min=1, help="Length of the long file.")] = 3600,
    frames: Annotated[int, typer.Option(min=1, help="Frames read from each file.")] = 32,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 5,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare PyAV, decord and OpenCV on a short and a long file of the same kind."""
    from vidllm.bench import bench_video, render_table

    with clean_output(json):
        result = bench_video(
            folder,
            seconds_short=seconds_short,
            seconds_long=seconds_long,
            frames=frames,
            runs=runs,
        )
        if json:
            emit(result)
        else:
            from rich.console import Console

            Console().print(render_table(result))
