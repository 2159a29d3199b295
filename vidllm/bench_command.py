"""``vidllm bench``: measurements on files that it makes, of this machine, for people to repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidllm.errors import InputError
from vidllm.options import AsJson, Debug, clean_output, emit, say

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


@app.command()
def compressors(
    methods: Annotated[
        str, typer.Option("--methods", help="Names or patterns, comma separated; all by default.")
    ] = "",
    frames: Annotated[str, typer.Option(help="Lengths of the clips.")] = "32,128",
    side: Annotated[int, typer.Option(min=1, help="Tokens along one side of a frame.")] = 14,
    width: Annotated[int, typer.Option(min=1, help="Width of a token.")] = 3584,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="CSV file to write.", dir_okay=False)] = Path(
        "eval/results/compressors-cost.csv"
    ),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time every compressor at real sizes, beside the prefill that it saves."""
    from vidllm.bench_compressors import bench_compressors, compressor_table

    with clean_output(json):
        lengths = [part.strip() for part in frames.split(",")]
        if not all(part.isdigit() for part in lengths):
            raise InputError(f"--frames is a list of counts such as 32,128, not {frames!r}")
        import pandas

        out.parent.mkdir(parents=True, exist_ok=True)
        rows = bench_compressors(
            [part.strip() for part in methods.split(",") if part.strip()],
            frames=[int(part) for part in lengths],
            side=side,
            width=width,
            runs=runs,
            save=lambda found: pandas.DataFrame(found).to_csv(out, index=False),
        )
        if json:
            emit({"rows": rows, "csv": str(out)})
        else:
            from rich.console import Console

            Console().print(compressor_table(rows))
            say(f"written to {out}")
