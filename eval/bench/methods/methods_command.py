"""``vidllm bench methods``: every method at every share on the same clips, as one table."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vidllm.cli.options import CommonOptions, common_options, emit, one_of, option, say, tell
from vidllm.errors import InputError
from vidllm.errors.paths import output_file, output_folder

from ...tasks import get_task
from ...tasks.base import Task

if TYPE_CHECKING:
    from rich.table import Table

    from .method_table import MethodTable

_TOKENS, _RUN, _FILES = "Fewer tokens", "The run", "The benchmark"


@common_options
def methods(
    options: CommonOptions,
    task: Annotated[str, option(_FILES, "--task", help="Benchmark: vidllm list tasks.")] = "stage",
    version: Annotated[
        str | None, option(_FILES, "--version", help="Of a benchmark that has several.")
    ] = None,
    data: Annotated[
        Path | None, option(_FILES, "--data", help="Folder with the annotation files, or hub.")
    ] = None,
    videos: Annotated[
        Path | None,
        option(_FILES, "--videos", help="Folder of the videos.", show_default="DATA/videos, DATA"),
    ] = None,
    split: Annotated[str | None, option(_FILES, "--split", help="Part of the benchmark.")] = None,
    limit: Annotated[int, option(_FILES, "--limit", min=1, help="Only the first videos.")] = 200,
    jobs: Annotated[
        int, option(_FILES, "--jobs", min=1, help="Processes that write videos that are made.")
    ] = min(8, os.cpu_count() or 1),
    compressor: Annotated[
        str | None,
        option(
            _TOKENS,
            "--methods",
            metavar="NAME[,NAME]",
            help="Names, patterns or specs, a chain as a+b; all without training by default.",
        ),
    ] = None,
    keep: Annotated[
        str, option(_TOKENS, "--keep", metavar="SHARE[,SHARE]", help="Shares that are kept.")
    ] = "0.5,0.25,0.125,0.05",
    out: Annotated[
        Path, option(_RUN, "--out", help="Folder that keeps every answer; goes on there.")
    ] = Path("runs/methods"),
    csv: Annotated[
        Path | None,
        option(_RUN, "--csv", help="The table.", show_default="OUT/methods.csv", dir_okay=False),
    ] = None,
    page: Annotated[
        Path | None,
        option(_RUN, "--page", help="Also write the table as a page, with advice.", dir_okay=False),
    ] = None,
    page_only: Annotated[
        bool, option(_RUN, "--page-only", help="Make the page of a table that is there; no run.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        option(_RUN, "--max-new-tokens", min=1, help="Longest answer; the benchmark's if absent."),
    ] = None,
    retry_failed: Annotated[
        bool, option(_RUN, "--retry-failed", help="Ask again what failed before.")
    ] = False,
) -> None:
    """Run all methods and chains at several shares on the same clips: which one to take?"""
    from ...report.terminal import check_failures, say_failures

    table_file = (out / "methods.csv" if csv is None else csv).expanduser()
    for file, name in ((csv, "--csv"), (page, "--page")):
        if file is not None:
            output_file(file.expanduser(), name)
    if page_only:
        if page is None:
            raise InputError("--page-only makes a page: give --page FILE")
        from .method_table import read_table

        _write_page(read_table(table_file), table_file, page.expanduser())
        return
    _check(options)
    benchmark = task_of_version(task, version)
    one_of("--split", split, benchmark.splits)
    output_folder(out.expanduser())
    made = _run(
        benchmark,
        options,
        chosen=(compressor or "", keep),
        order={
            "data": data, "videos": videos, "split": split, "limit": limit, "jobs": jobs,
            "out": out.expanduser(), "max_new_tokens": max_new_tokens,
            "retry_failed": retry_failed, "anyway": options.anyway,
        },
    )  # fmt: skip
    if made is None:  # another process tells
        return
    table, results = made
    _write(table_file, table.text())
    if page is not None:
        _write_page(table, table_file, page.expanduser())
    _tell(table, table_file, options.json)
    say_failures(results)
    check_failures(results)


def task_of_version(name: str, version: str | None) -> Task:
    """The benchmark, of a version where it has several.

    Raises:
        InputError: no such benchmark or version.
    """
    kind = type(get_task(name))
    if version is None:
        return kind()
    own: dict[str, Any] = {f.name: f for f in fields(kind)} if is_dataclass(kind) else {}
    if "version" not in own:
        raise InputError(f"--version: {kind.name} has one version: leave it out")
    made: Any = kind
    return made(version=own["version"].metadata.get("read", str)(version))


def _check(options: CommonOptions) -> None:
    """Refuse what does not go with a sweep."""
    for name in ("recipe", "tokens", "start", "end"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} does not go with bench methods: leave it out")
    if options.frames == "auto":
        raise InputError("--frames auto goes with ask, ground and caption: give a number")


def _run(
    task: Task, options: CommonOptions, chosen: tuple[str, str], order: dict[str, Any]
) -> tuple[MethodTable, dict[str, Any]] | None:
    """The table of a run, and its results; None in a process that is not the main one."""
    from ...run.evaluate import evaluate
    from ...run.run_config import Order
    from .candidates import asked_for, met_in_training, native_config, own_compressor
    from .measured_scores import kinds_of
    from .table_making import make_table

    if task.family == "retrieval":
        raise InputError(f"{task.name} asks no model with video tokens: choose another --task")
    config = native_config(options.model_name())
    met = met_in_training(config)
    asked = asked_for(*chosen, met, own_compressor(config))
    whole = Order(task=task, wanted=asked, kinds=kinds_of(task), skip_refused=True, **order)
    finished = evaluate(whole, options)
    if finished is None:
        return None
    return make_table(task, finished.results, finished.rows, met), finished.results


def _write_page(table: MethodTable, table_file: Path, page: Path) -> None:
    from .methods_page import methods_page

    place = Path(os.path.relpath(table_file, page.parent)).as_posix()
    _write(page, methods_page(table, place))
    say(f"written to {page}")


def _write(file: Path, text: str) -> None:
    from ...run.records import write_whole

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def _tell(table: MethodTable, file: Path, json: bool) -> None:
    from .advice import all_advice, caveats

    if json:
        emit(
            {
                "setting": dict(table.setting),
                "rows": list(table.rows),
                "advice": [one.as_dict() for one in all_advice(table)],
                "csv": str(file),
            }
        )
        return
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=180)).print(_terminal(table))
    for one in all_advice(table):
        head, *rest = one.lines()
        tell("\n".join([head, *(f"  {line}" for line in rest)]))
    for line in caveats(table):
        say(f"note: {line}")
    for name, reason in sorted(table.setting["refused"].items()):
        say(f"not run: {name}: {reason}")
    say(f"written to {file}")


def _terminal(table: MethodTable) -> Table:
    from rich.table import Table as Grid

    from .method_table import SPELT

    scores = [name for names in table.scores.values() for name in names]
    grid = Grid(title=f"{table.setting['task']} · {table.full['videos']:g} clips")
    grid.add_column("method", no_wrap=True)
    spelt = [SPELT.get(name, name) for name in scores]
    columns = ["keep", "tokens", *spelt, "vision s", "select s", "prefill s", "decode s", "KV MB"]
    for name in columns:
        grid.add_column(name, justify="right")
    for row in table.rows:
        numbers = [row[n] for n in ("vision_s", "select_s", "prefill_s", "decode_s", "kv_mb")]
        cells = [
            f"{row['keep']:g}",
            "" if row["tokens_kept"] is None else f"{row['tokens_kept']:g}",
        ]
        cells += ["" if row[name] is None else f"{row[name]:.3f}" for name in scores]
        cells += ["" if value is None else f"{value:.2g}" for value in numbers]
        grid.add_row(str(row["compressor"]), *cells)
    return grid
