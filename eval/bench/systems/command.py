"""``vidllm bench systems``: train every system under one budget, ask all, and write the table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from vidllm.cli.options import (
    CommonOptions,
    common_options,
    emit,
    one_of,
    option,
    say,
)
from vidllm.errors import InputError
from vidllm.errors.bounds import read_shares
from vidllm.errors.paths import input_folder, output_file, output_folder

_TRAIN, _ASK, _RUN = "The trainings", "The test", "The run"


@common_options
def systems(
    options: CommonOptions,
    arms: Annotated[
        str, option(_RUN, "--arms", help="Names or patterns; encoder-* for temporal encoders.")
    ] = "",
    steps: Annotated[int, option(_TRAIN, "--steps", min=1, help="Of every training.")] = 360,
    batch: Annotated[int, option(_TRAIN, "--batch", min=1, help="Clips of a step.")] = 4,
    clips: Annotated[
        int, option(_TRAIN, "--clips", min=1, help="Scenes that are gone round in.")
    ] = 1000,
    lr: Annotated[float, option(_TRAIN, "--lr", min=0, help="Highest learning rate.")] = 3e-4,
    size: Annotated[str, option(_TRAIN, "--size", help="small, or tiny for trying out.")] = "small",
    seeds: Annotated[
        int, option(_TRAIN, "--seeds", min=1, help="Trainings of every system, seeds from 0 on.")
    ] = 1,
    train: Annotated[
        bool, option(_TRAIN, "--train/--no-train", help="Train what is not trained yet.")
    ] = True,
    threads: Annotated[
        int, option(_TRAIN, "--threads", min=0, help="Of torch in a training; 0 for all.")
    ] = 0,
    workers: Annotated[
        int, option(_TRAIN, "--workers", min=0, help="Processes that draw scenes.")
    ] = 1,
    split: Annotated[str, option(_ASK, "--split", help="Part of the benchmark stage.")] = "test",
    version: Annotated[int, option(_ASK, "--version", help="Of the benchmark stage.")] = 2,
    limit: Annotated[int, option(_ASK, "--limit", min=1, help="Clips that are asked.")] = 200,
    keep: Annotated[
        str, option(_ASK, "--keep", metavar="SHARE[,SHARE]", help="Shares beside all tokens.")
    ] = "0.25,0.125,0.05",
    data: Annotated[
        Path | None, option(_ASK, "--data", help="Where the videos are made and kept.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        option(_ASK, "--max-new-tokens", min=1, help="Longest answer; the benchmark's if absent."),
    ] = None,
    jobs: Annotated[
        int, option(_ASK, "--jobs", min=1, help="Processes that write the videos.")
    ] = min(8, os.cpu_count() or 1),
    start_run: Annotated[
        Path | None,
        option(
            _ASK,
            "--start-run",
            help="A run of bench methods that asked the start about these clips.",
            file_okay=False,
        ),
    ] = None,
    out: Annotated[
        Path, option(_RUN, "--out", help="Folder of trainings and answers; goes on there.")
    ] = Path("runs/systems"),
    kept: Annotated[
        Path | None,
        option(
            _RUN,
            "--kept",
            help="Folder of finished arms, a file each: not run again, new ones are added.",
            file_okay=False,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        option(_RUN, "--csv", help="The table.", show_default="OUT/systems.csv", dir_okay=False),
    ] = None,
    page: Annotated[
        Path | None, option(_RUN, "--page", help="Also write the page.", dir_okay=False)
    ] = None,
    plot: Annotated[
        Path | None, option(_RUN, "--plot", help="Also draw the plot, a PNG.", dir_okay=False)
    ] = None,
    seconds: Annotated[
        bool,
        option(_RUN, "--seconds/--flops", help="What the plot sets against the score."),
    ] = True,
    claims: Annotated[
        Path | None,
        option(_RUN, "--claims", help="Folder of CSVs of bench claim.", file_okay=False),
    ] = None,
    page_only: Annotated[
        bool, option(_RUN, "--page-only", help="Neither train nor ask: table and page of OUT.")
    ] = False,
) -> None:
    """Train every system from one start under one budget, and ask all at equal tokens.

    A stopped run goes on with the same command. --model names another start.
    """
    from .arms import Budget, chosen
    from .entries import Exam
    from .running import Measurement

    for file, name in ((csv, "--csv"), (page, "--page"), (plot, "--plot")):
        if file is not None:
            output_file(file.expanduser(), name)
    named = ("recipe", "compressor", "keep", "tokens", "start", "end")
    for name in (*named, "revision", "adapter", "device_map"):
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} does not go with bench systems: leave it out"
            )
    one_of("--size", size, ("small", "tiny"))
    keeps = tuple(share for share in read_shares(keep) if share < 1)
    if not keeps:
        raise InputError("--keep needs a share below 1: all tokens are asked in any case")
    work = Measurement(
        home=output_folder(out.expanduser()),
        arms=chosen(arms),
        budget=Budget(steps, batch, clips, lr, size, options.model or ""),
        exam=Exam(split, version, options.seed, limit, keeps, data, max_new_tokens),
        seeds=seeds,
        start_run=None if start_run is None else input_folder(start_run, "--start-run"),
        kept=None if kept is None else output_folder(kept.expanduser()),
    )
    one_of("--split", split, work.exam.task.splits)
    if not page_only:
        work.run(options, train=train, threads=threads, workers=workers, jobs=jobs)
    files = (csv or out.expanduser() / "systems.csv", page, plot)
    _write(work, files, claims, seconds=seconds, json=options.json)


def _write(
    work: Any,
    files: tuple[Path, Path | None, Path | None],
    claims: Path | None,
    *,
    seconds: bool,
    json: bool,
) -> None:
    from ...run.records import write_whole
    from ..methods.method_table import commented, rounded
    from .claims import verdicts
    from .page import systems_page, systems_plot
    from .table import Asked, setting_of, systems_rows

    csv, page, plot = files
    entries, waiting = work.finished()
    asked = [Asked(entry, *found) for entry in entries if (found := work.answers(entry))]
    if not asked:
        raise InputError("nothing was asked yet: leave out --page-only")
    rows = rounded(systems_rows(asked))  # so that the page says what the table says
    setting = setting_of(asked[0], work.told(), waiting)
    found = verdicts(asked, claims)
    csv.parent.mkdir(parents=True, exist_ok=True)
    write_whole(csv, commented(setting, rows))
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(systems_plot(rows, seconds=seconds))
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        places = [_seen_from(page, file) for file in (csv, plot)]
        write_whole(page, systems_page(setting, rows, found, csv=places[0], plot=places[1]))
    if json:
        emit({"setting": setting, "rows": rows, "claims": [vars(one) for one in found],
              "csv": str(csv)})  # fmt: skip
        return
    _tell(rows, found)
    say(f"written to {csv}")


def _seen_from(page: Path, file: Path | None) -> str:
    return "" if file is None else Path(os.path.relpath(file, page.parent)).as_posix()


def _tell(rows: Any, found: Any) -> None:
    from vidllm.cli.tables import console, table

    heads = ("keep", "tokens", "mIoU", "of start", "QA", "s an answer")
    cells = []
    for row in rows:
        share = row["mIoU_share"]
        seed = "" if row["seed"] is None else f" {row['seed']:g}"
        cells.append([f"{row['system']}{seed}", f"{row['keep']:g}", _told(row["tokens_kept"], "g"),
                      _told(row["mIoU"], ".3f"), _told(share, ".1%"),
                      _told(row["qa_accuracy"], ".3f"), _told(row["total_s"], ".2g")])  # fmt: skip
    console(180).print(table(cells, left=("system",), right=heads, title="systems"))
    for one in found:
        say(f"{one.recipe}: {one.says}: {one.verdict}. {one.evidence}")


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
