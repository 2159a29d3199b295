"""``vidllm eval``: a sub-command a benchmark, made from the registry, ``score`` and ``compare``.

What is heavy is imported when a benchmark runs.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vidllm.cli.options import (
    AsJson,
    CommonOptions,
    Debug,
    clean_output,
    common_options,
    emit,
    one_of,
    option,
    tell,
)
from vidllm.errors import InputError
from vidllm.errors.paths import input_folder, output_folder
from vidllm.models.hub import ENGINES

from ..tasks import get_task, task_names
from ..tasks import taught as taught  # training reads annotations by it
from ..tasks.base import Task

if TYPE_CHECKING:
    from .evaluate import Finished
    from .run_config import Order

app = typer.Typer(
    help="Score a model on a benchmark.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TOKENS, _RUN, _FILES = "Fewer tokens", "The run", "The benchmark"


def tasks() -> list[dict[str, Any]]:
    """The benchmarks, for ``vidllm list tasks``."""
    found = [get_task(name) for name in task_names()]
    return [{"name": task.name, "kind": task.family, "summary": task.summary} for task in found]


@app.callback()
def _group() -> None:
    """Score a model on a benchmark."""


def _options(
    options: CommonOptions,
    compressor: Annotated[
        str | None,
        option(
            _TOKENS,
            "--compressor",
            metavar="NAME[,NAME]",
            help="Compressors to compare, a chain as a+b; the model's own if absent.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        option(
            _TOKENS,
            "--keep",
            metavar="SHARE[,SHARE]",
            help="Shares of the video tokens kept: every compressor is run at each.",
        ),
    ] = None,
    full: Annotated[
        bool,
        option(
            _TOKENS, "--full/--no-full", help="Always make the uncompressed run beside the others."
        ),
    ] = True,
    data: Annotated[
        Path | None,
        option(_FILES, "--data", help="Folder with the official annotation files, or hub."),
    ] = None,
    videos: Annotated[
        Path | None,
        option(_FILES, "--videos", help="Folder of the videos.", show_default="DATA/videos, DATA"),
    ] = None,
    split: Annotated[str | None, option(_FILES, "--split", help="Part of the benchmark.")] = None,
    limit: Annotated[
        int | None, option(_FILES, "--limit", min=1, help="Only the first videos.")
    ] = None,
    out: Annotated[
        Path | None,
        option(_RUN, "--out", help="Folder that keeps every answer; goes on where it stopped."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        option(_RUN, "--max-new-tokens", min=1, help="Longest answer; the benchmark's if absent."),
    ] = None,
    engine: Annotated[
        str | None,
        option(_RUN, "--engine", help=f"Who runs a hub model: {' or '.join(ENGINES)}."),
    ] = None,
    engine_options: Annotated[
        str | None,
        option(
            _RUN,
            "--engine-options",
            metavar="JSON",
            help="Of vLLM, such as '{\"tensor_parallel_size\": 2}'.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, option(_RUN, "--retry-failed", help="Ask again what failed before.")
    ] = False,
    official: Annotated[
        bool, option(_RUN, "--official", help="Show the scores of the official script as such.")
    ] = False,
    memory: Annotated[
        bool, option(_RUN, "--memory", help="Measure memory on a CPU too (slower).")
    ] = False,
    anyway: Annotated[
        bool,
        option(_RUN, "--anyway", help="Score the shipped model also on real footage."),
    ] = False,
) -> None:
    """What every benchmark takes; a pattern for `_command`."""


def _made(
    jobs: Annotated[
        int,
        option(
            _FILES, "--jobs", min=1, help="Processes that write videos.", show_default="one a core"
        ),
    ] = min(8, os.cpu_count() or 1),
    make_only: Annotated[bool, option(_FILES, "--make-only", help="Only write the files.")] = False,
) -> None:
    """What a benchmark takes beside that makes its own videos."""


def _scored(
    baselines: Annotated[
        bool,
        option(_FILES, "--baselines/--no-baselines", help="Also score answers without a video."),
    ] = True,
) -> None:
    """What a benchmark with baselines takes beside."""


def _command(kind: type[Task]) -> Callable[..., None]:
    """The command of one benchmark."""
    parameters, hints = _parameters(_options)
    for wanted, pattern in (
        (hasattr(kind, "prepare"), _made),
        (hasattr(kind, "baselines"), _scored),
    ):
        if wanted:
            more, types = _parameters(pattern)
            parameters, hints = [*parameters, *more], {**hints, **types}
    own: tuple[Field[Any], ...] = fields(kind) if is_dataclass(kind) else ()
    for entry in own:
        hints[entry.name] = Annotated[
            str | None,
            option(
                _FILES, f"--{entry.name.replace('_', '-')}", help=entry.metadata.get("help", "")
            ),
        ]
        parameters.append(
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None)
        )

    def run(options: CommonOptions, **given: Any) -> None:
        told = {entry.name: given.pop(entry.name) for entry in own}
        read = {e.name: e.metadata.get("read", str) for e in own}
        task = kind(**{name: read[name](v) for name, v in told.items() if v is not None})
        _run(task, options, given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([p.replace(kind=keyword) for p in parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, "return": None}
    lines = (kind.summary, f"Splits: {', '.join(kind.splits)}.", f"Source: {kind.citation}.")
    run.__doc__ = "\n\n".join((f"{lines[0][:1].upper()}{lines[0][1:]}.", *lines[1:]))
    decorated: Callable[..., None] = common_options(run)
    return decorated


def _parameters(function: Callable[..., None]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    return list(inspect.signature(function).parameters.values()), hints


def _run(task: Task, options: CommonOptions, given: Mapping[str, Any]) -> None:
    """Check what can be seen to be wrong at once, then run."""
    from .run_settings import wanted

    one_of("--split", given["split"], task.splits)
    one_of("--engine", given["engine"], ENGINES)
    if options.start is not None or options.end is not None:
        raise InputError("--start and --end belong to one video: leave them out here")
    if options.frames == "auto":
        raise InputError("--frames auto goes with ask, ground and caption: give a number")
    if given["out"] is not None:
        output_folder(given["out"].expanduser())
    from .evaluate import evaluate
    from .run_config import Order

    order = Order(
        task=task,
        wanted=wanted(
            given["compressor"],
            given["keep"],
            recipe=options.recipe,
            tokens=options.tokens,
            full=given["full"],
        ),
        **{
            name: given[name]
            for name in ("split", "data", "videos", "limit", "out", "max_new_tokens", "engine")
        },
        **{
            name: given.get(name, False)
            for name in ("retry_failed", "memory", "baselines", "anyway")
        },
        jobs=given.get("jobs", 1),
        engine_options=_read_options(given["engine_options"]),
    )
    if given.get("make_only"):
        _tell_files(order, options)
        return
    finished = evaluate(order, options)
    if finished is not None:
        _tell(finished, order, options, given["official"])


def _read_options(text: str | None) -> dict[str, Any] | None:
    """Options in JSON. Raises InputError for anything but an object."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--engine-options is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError("--engine-options is a JSON object such as '{\"max_model_len\": 8192}'")
    return found


def _tell(finished: Finished, order: Order, options: CommonOptions, official: bool) -> None:
    """Print the results, and what failed."""
    from ..report.sweep import is_sweep, markdown
    from ..report.terminal import check_failures, say_failures, show

    results = finished.results
    more: dict[str, Any] = {}
    if is_sweep(results):
        rows = [_row(one) for one in results["results"].values()]
        more = {"rows": rows, "table": markdown(results)}
    elif order.task.name == "stage":
        from ..report import stage_results as stage

        more = stage.flat(results, finished.rows, finished.baselines)
    if options.json:
        emit({**results, **more})
    else:
        show(results, official=official, scores="baselines" not in more)
        if "table" in more:
            tell(more["table"])
        elif more:
            from ..report import stage_results as stage

            stage.show(more)
    say_failures(results)
    check_failures(results)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """One setting of a sweep in one flat object."""
    headline, relation = one["headline"], one["relative"] or {}
    named = {name: one[name] for name in ("compressor", "keep")}
    named |= {"tokens": one["costs"]["tokens_kept"], **one["scores"]}
    low, high = headline["low"], headline["high"]
    return {**named, "share": relation.get("share"), "low": low, "high": high}


def _tell_files(order: Order, options: CommonOptions) -> None:
    """Make the files of a benchmark, and say where they are."""
    from .clips import items_of, limited

    data, split = order.prepared(options)
    items = limited(items_of(order.task, data, split), order.most)
    clips = {item.vid: item.duration or 0.0 for item in items}
    seconds = sum(clips.values())
    if options.json:
        files = sorted(p.name for p in data.iterdir() if p.suffix in (".txt", ".json", ".jsonl"))
        emit(
            {
                "split": split,
                "seed": options.seed,
                "clips": len(clips),
                "questions": len(items),
                "hours": round(seconds / 3600, 3),
                "folder": str(data),
                "annotations": [name for name in files if name != "stage.json"],
            }
        )
    else:
        tell(f"{len(clips)} clips, {seconds / 60:.1f} minutes, in {data}")


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a run.")],
    official: Annotated[
        bool, typer.Option("--official", help="Show the scores of the official script as such.")
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score the answers of a run again, finished or not, without its model."""
    from ..report.terminal import say_failures, show
    from .records import RunFolder
    from .results import rescore

    with clean_output(json):
        results = rescore(RunFolder(input_folder(folder.expanduser(), "the run")))
        emit(results) if json else show(results, official=official)
        say_failures(results)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="DIR[:SETTING]", help="A run.")],
    second: Annotated[str, typer.Argument(metavar="DIR[:SETTING]", help="Another run.")],
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Test whether two runs differ: paired by question, drawn by video, and McNemar's test."""
    from ..report.terminal import show_comparison
    from .compare_runs import compare as compared

    with clean_output(json):
        rows = compared(first, second)
        if json:
            emit({"first": first, "second": second, "rows": rows})
        else:
            show_comparison(rows, (first, second))


for _name in task_names():
    app.command(_name)(_command(type(get_task(_name))))
