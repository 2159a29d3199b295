"""``vidllm report DIR…``: the command; what is heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidllm.cli.options import AsJson, Debug, clean_output, emit, tell
from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import input_folder, output_folder
from vidllm.errors.printable import printable
from vidllm.errors.writing import write_files

if TYPE_CHECKING:
    from ..tasks.base import Item
    from .load import Run

PAGE, CSV, MARKDOWN = "report.html", "report.csv", "report.md"

app = typer.Typer(
    help="Write a page, plots and tables of finished or running evaluations.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Folders that vidllm eval --out wrote, or folders of such ones.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report.", show_default="report/ in DIR, or here for several DIR"
        ),
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, max=200, help="Worst cases shown, for each configuration.")
    ] = 8,
    official: Annotated[
        bool,
        typer.Option("--official", help="Headline scores as the benchmark's own script counts."),
    ] = False,
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the videos, for the frames of worst cases.",
            show_default="where the run found them",
        ),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write report.html with its plots, report.csv and report.md from folders of runs."""
    with clean_output(json):
        if videos is not None:
            input_folder(videos, "--videos")
        found = write_report(folders, out, worst=worst, official=official, videos=videos)
        if json:
            emit({"page": str(found[0]), "files": [str(file) for file in found]})
        else:
            tell(str(found[0]))


def write_report(
    folders: list[Path],
    out: Path | None = None,
    *,
    worst: int = 8,
    official: bool = False,
    videos: Path | None = None,
) -> list[Path]:
    """Write the report; the page comes first in what is returned.

    Raises:
        InputError: no run there, or a damaged one; one line names the file.
        WorkError: the report cannot be written.
    """
    from ..run.clips import find_video
    from .load import find_folders, load_run
    from .report_page import render
    from .study import sections
    from .tables import markdown, write_csv

    def find(run: Run, item: Item) -> Path:
        known = run.config.get("videos") if videos is None else [str(videos)]
        if not isinstance(known, list) or not known:
            raise InputError("the run does not say where its videos are: give --videos")
        return find_video(item.video, [Path(str(folder)) for folder in known])

    runs = [load_run(folder) for folder in find_folders(folders)]
    if out is None:
        out = folders[0] / "report" if len(folders) == 1 else Path("report")
    try:
        output_folder(out)
    except InputError as error:
        raise WorkError(str(error)) from error
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        found = sections(runs, official=official)
        page, pictures = render(found, worst=worst, find=find)
        files: list[tuple[Path, bytes]] = [
            (out / PAGE, page.encode()),
            (out / CSV, printable(write_csv(found), lines=True).encode()),
            (out / MARKDOWN, printable(markdown(found), lines=True).encode()),
            *((out / f"{picture.name}.png", picture.light) for picture in pictures),
        ]
    except OSError as error:
        raise WorkError(f"--out {out} cannot be written: {error.strerror or error}") from error
    write_files(dict(files), f"--out {out}")
    return [file for file, _ in files]
