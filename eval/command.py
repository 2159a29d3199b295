"""``vidllm eval TASK``: the command; what is heavy is imported when a task runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.options import CommonOptions, common_options, emit, one_of, tell

if TYPE_CHECKING:
    from vidllm.stage.files import Sample

    from .sweep import Setting

app = typer.Typer(
    help="Score a model on a benchmark.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_KEEPS = "0.5,0.25,0.125"


def tasks() -> list[dict[str, Any]]:
    """The benchmarks, for ``vidllm list tasks``."""
    return [
        {
            "name": "stage",
            "kind": "made from seeds",
            "summary": "grounding, QA, captions, highlights and when-and-why on made videos",
        }
    ]


@app.callback()
def _group() -> None:
    """Score a model on a benchmark."""


@app.command()
@common_options
def stage(
    options: CommonOptions,
    split: Annotated[
        str, typer.Option(help="train, val, test, test-unseen or long; --seed says which one.")
    ] = "test",
    limit: Annotated[int, typer.Option(min=1, help="Clips.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the videos.", show_default="~/.cache/vidllm/stage"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep every answer (.jsonl) and go on from there; of a sweep: a .csv."),
    ] = None,
    with_baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Score answers without a video.")
    ] = True,
    make_only: Annotated[bool, typer.Option("--make-only", help="Only write the files.")] = False,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Compare compressors at all of --keeps."),
    ] = None,
    keeps: Annotated[str, typer.Option(help="Shares kept in a sweep.")] = _KEEPS,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that write videos.", show_default="one a core")
    ] = min(8, os.cpu_count() or 1),
) -> None:
    """Score a model on stage: made videos with exact ground truth, from the seed --seed."""
    _check(options, split, out, sweep, keeps)
    settings = _settings(options, sweep, keeps)
    if make_only:
        samples, folder = _make(options, split, limit, data, jobs)
        _report_files(options, split, samples, folder)
        return
    options.check_words()
    llm = options.load()
    samples, folder = _make(options, split, limit, data, jobs)
    from .stage import Run, evaluate

    run = Run(llm, options, split, samples, folder)
    if settings:
        from .sweep import markdown, write_csv
        from .sweep import sweep as compare

        with _bar("asking") as progress:
            rows = compare(run, settings, progress)
        if out is not None:
            write_csv(rows, out)
        table = markdown(rows)
        said = run.settings()
        named = {key: said[key] for key in ("split", "seed", "model", "frames")}
        emit({**named, "clips": len(samples), "rows": rows, "table": table}) if options.json else (
            tell(table)
        )
        return
    with _bar("asking") as progress:
        result = evaluate(run, out=out, with_baselines=with_baselines, progress=progress)
    if options.json:
        emit(result)
    else:
        from .report import show

        show(result)


def _check(
    options: CommonOptions, split: str, out: Path | None, sweep: str | None, keeps: str
) -> None:
    """Refuse what can be seen to be wrong at once."""
    from vidllm.stage.scenes import SPLITS

    one_of("--split", split, SPLITS)
    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {options.seed}")
    if options.start is not None or options.end is not None:
        raise InputError("--start and --end belong to one video: leave them out here")
    if out is not None:  # not after an hour's work
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.open("a").close()
        except OSError as error:
            raise InputError(f"--out {out} cannot be written: {error.strerror}") from error
    if sweep is None and keeps != _KEEPS:
        raise InputError("--keeps goes with --sweep; use --keep for one run")
    given = options.compressor or options.recipe
    if sweep is not None and (given or options.keep is not None):
        raise InputError("--sweep sets the compressor and the share: leave out --keep and others")


def _settings(options: CommonOptions, sweep: str | None, keeps: str) -> list[Setting]:
    if sweep is None:
        return []
    from .sweep import settings_of

    return settings_of(sweep, keeps)


def _make(
    options: CommonOptions, split: str, limit: int, data: Path | None, jobs: int
) -> tuple[list[Sample], Path]:
    from vidllm.stage.files import default_folder, write_stage

    folder = default_folder() if data is None else data.expanduser()
    with _bar("writing videos") as progress:
        samples = write_stage(folder, split, options.seed, limit, jobs=jobs, progress=progress)
    return samples, folder


def _report_files(options: CommonOptions, split: str, samples: list[Sample], folder: Path) -> None:
    home = samples[0].path.parent
    seconds = sum(sample.duration for sample in samples)
    if options.json:
        files = sorted(p.name for p in home.iterdir() if p.suffix in (".txt", ".json", ".jsonl"))
        emit(
            {
                "split": split,
                "seed": options.seed,
                "clips": len(samples),
                "questions": sum(len(sample.questions) for sample in samples),
                "hours": round(seconds / 3600, 3),
                "folder": str(home),
                "annotations": [name for name in files if name != "stage.json"],
            }
        )
    else:
        tell(f"{len(samples)} clips, {seconds / 60:.1f} minutes, in {home}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error that shows up with the first report."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(what, total=None)

    def report(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:  # else it would leave an empty line
            bar.stop()
