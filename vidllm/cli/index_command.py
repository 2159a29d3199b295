"""``vidllm index`` and ``vidllm library``: read a long video once, ask it often, search a folder.

Also what ``ask``, ``ground`` and ``caption`` do with an index in the place of a video.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError, VidllmError, WorkError
from vidllm.errors.paths import input_file
from vidllm.errors.printable import printable

from .loading import imports_kept
from .options import AsJson, CommonOptions, Debug, clean_output, common_options, emit, say, tell

if TYPE_CHECKING:
    from vidllm.longvideo.index import VideoIndex
    from vidllm.longvideo.library import Entry, Hits

app = typer.Typer(help="Read a long video once, to ask it often.")
library = typer.Typer(help="Search a folder of indexed videos.", no_args_is_help=True)

Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The index; VIDEO with the ending .vidx if absent."),
]
Fps = Annotated[float, typer.Option(help="Frames a second that are read.")]
PerMinute = Annotated[
    int | None,
    typer.Option("--tokens-per-minute", help="Video tokens a minute at most; lowers --fps."),
]
Near = Annotated[
    float,
    typer.Option(
        help="Frames that differ from the last encoded one by so many levels of 255 on average "
        "are not encoded again; 0: equal ones only."
    ),
]
Tower = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Merge tokens inside the vision tower, such as tome:keep=0.5, which makes it cheaper.",
    ),
]
Precision = Annotated[str, typer.Option(help="Of stored numbers: float16 or float32.")]
Force = Annotated[bool, typer.Option("--force", help="Make it anew, whatever there is of it.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the library.")]

#: Common options that mean nothing when a whole video is indexed …
_NOT_INDEXED = ("frames", "tokens", "start", "end", "max_frames")
#: … and those that mean something when an index is asked.
_OF_INDEX = (
    "model",
    "revision",
    "adapter",
    "device",
    "device_map",
    "dtype",
    "attn",
    "anyway",
    "seed",
    "json",
    "debug",
)


@app.command()
@common_options
def index(
    video: Annotated[str, typer.Argument(metavar="VIDEO", show_default=False)],
    options: CommonOptions,
    out: Out = None,
    fps: Fps = 1.0,
    tokens_per_minute: PerMinute = None,
    near: Near = 1.0,
    tower: Tower = None,
    precision: Precision = "float16",
    force: Force = False,
) -> None:
    """Read a long video once into an index, which ask, ground and caption then take for it.

    What was done is kept whatever ends the run: the same command goes on from there.
    """
    with imports_kept():
        from vidllm.longvideo import index_video
        from vidllm.longvideo.standing import guard

    _refuse(options, _NOT_INDEXED, "an index holds the whole video")
    file = input_file(video, "video file")
    guard(file.with_suffix(".vidx") if out is None else out)
    options.check_words()
    llm = options.load()
    with _bar(Path(video).name, options.json) as progress:
        made = index_video(
            llm, video, out, fps=fps, tokens_per_minute=tokens_per_minute, near=near,
            tower=tower, precision=precision, reader=options.reader, limits=options.limits(),
            progress=progress, force=force, anyway=options.anyway,
        )  # fmt: skip
    _notes(made.notes)
    emit(_told(made)) if options.json else tell(str(made.path))
    say(_receipt(made))


@library.callback()
def _group() -> None:
    """Search a folder of indexed videos."""


@library.command()
@common_options
def add(
    folder: Folder,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Videos, or indexes.")],
    options: CommonOptions,
    fps: Fps = 1.0,
    tokens_per_minute: PerMinute = None,
    near: Near = 1.0,
    tower: Tower = None,
    precision: Precision = "float16",
    force: Force = False,
) -> None:
    """Index videos into a library, or take indexes into it; goes on after a file that fails."""
    from vidllm.longvideo.marks import is_index

    with imports_kept():
        from vidllm.longvideo.library import VideoLibrary

    _refuse(options, _NOT_INDEXED, "an index holds the whole video")
    options.check_words()
    videos = [file for file in files if not is_index(file)]
    held = VideoLibrary(folder, options.load() if videos else None)
    plan = {
        "fps": fps, "tokens_per_minute": tokens_per_minute, "near": near, "tower": tower,
        "precision": precision, "force": force, "reader": options.reader,
        "limits": options.limits(), "anyway": options.anyway,
    }  # fmt: skip
    added, failed = [], []
    for file in files:
        try:
            with _bar(Path(file).name, options.json) as progress:
                more = {**plan, "progress": progress} if file in videos else {}
                added.append(held.add(file, **more))
        except VidllmError as error:
            if len(files) == 1:
                raise
            failed.append(Path(file).name)
            say(f"{error}")
        else:
            say(f"{added[-1].name}: {_clock(added[-1].duration)}")
    if options.json:
        emit({"folder": str(held.folder), "added": [entry.as_dict() for entry in added],
              "failed": failed})  # fmt: skip
    if failed:
        raise WorkError(f"{len(failed)} of {len(files)} were not added: {', '.join(failed)}")


@library.command("list")
def list_(folder: Folder, json: AsJson = False, debug: Debug = False) -> None:
    """List what is in a library, and what is wrong with it."""
    from vidllm.longvideo.library import VideoLibrary

    with clean_output(json):
        entries = VideoLibrary(folder).list()
        if json:
            emit({"folder": str(folder), "videos": [entry.as_dict() for entry in entries]})
            return
        tell("\n".join(map(_line, entries)) or f"{folder} is empty")
        _notes([entry.problem for entry in entries if entry.problem])


@library.command()
def remove(
    folder: Folder,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="As list shows them.")],
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take videos and their indexes out of a library; the videos stay where they are."""
    from vidllm.longvideo.library import VideoLibrary

    with clean_output(json):
        held = VideoLibrary(folder)
        removed = [held.remove(name) for name in names]
        if json:
            emit({"folder": str(folder), "removed": [entry.as_dict() for entry in removed]})


@library.command()
@common_options
def ground(
    folder: Folder,
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False)],
    options: CommonOptions,
    limit: Annotated[int, typer.Option(min=1, help="Moments at most.")] = 10,
) -> None:
    """Find the moments of all videos that a description fits, the best first."""
    import time

    from vidllm.longvideo.library import VideoLibrary

    _refuse_for_index(options)
    if not query.strip():
        raise InputError("QUERY is empty: write it in quotes, as one argument")
    VideoLibrary(folder).list()  # a wrong folder fails before the model costs anything
    held = VideoLibrary(folder, options.load())
    began = time.perf_counter()
    hits = held.ground(query, limit)
    wall = time.perf_counter() - began
    _notes(hits.notes)
    if options.json:
        emit({"folder": str(held.folder), "query": query, "seconds": round(wall, 3),
              "hits": [hit.as_dict() for hit in hits], "notes": list(hits.notes)})  # fmt: skip
    else:
        tell(_table(hits) or "nothing was found")
    say(f"{len(hits)} moments in {len(held.list())} videos · {wall:.2f} s")


def open_index(path: str, options: CommonOptions, *, stretch: bool = False) -> VideoIndex:
    """The index that `ask`, `ground` and `caption` were given in the place of a video.

    Args:
        stretch: `--start` and `--end` are the command's own.

    Raises:
        InputError: a damaged index, another model, or an option for videos.
    """
    with imports_kept():
        from vidllm.longvideo.index import VideoIndex

    _refuse_for_index(options, ("start", "end") if stretch else ())
    VideoIndex.load(path)  # what is wrong with the file is said before the model costs anything
    return VideoIndex.load(path, options.load(), check=False, check_source=False)


def _refuse_for_index(options: CommonOptions, also: Sequence[str] = ()) -> None:
    names = {item.name for item in fields(CommonOptions)} - {*_OF_INDEX, *also}
    _refuse(options, sorted(names), "an index is asked as it was made")


def _refuse(options: CommonOptions, names: Sequence[str], why: str) -> None:
    usual = {item.name: item.default for item in fields(CommonOptions)}
    for name in names:
        if getattr(options, name) != usual[name]:
            raise InputError(f"--{name.replace('_', '-')} does not go here: {why}")


@contextlib.contextmanager
def _bar(name: str, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on standard error, where that is a terminal; Ctrl-C says how to go on."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.fields[name]}"), BarColumn(), TextColumn("{task.fields[where]}"),
               TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
    reached: list[float] = []
    with Progress(*columns, console=console, transient=True,
                  disable=quiet or not console.is_terminal) as bar:  # fmt: skip
        task = bar.add_task("", total=None, name=printable(name), where="", speed="")

        def progress(done: float, total: float) -> None:
            if not reached:  # what an earlier run did does not count as speed
                bar.reset(task, total=total, completed=int(done))
            reached[:] = [done, total]
            speed = bar.tasks[0].speed
            bar.update(
                task, completed=done, where=f"{_clock(done)} of {_clock(total)}",
                speed="" if speed is None else f"{speed:.0f}× real time",
            )  # fmt: skip

        try:
            yield progress
        except KeyboardInterrupt:
            bar.stop()
            where = f" at {_clock(reached[0])} of {_clock(reached[1])}" if reached else ""
            say(f"vidllm: stopped{where}: run the same command again to go on")
            raise typer.Exit(130) from None


def _told(made: VideoIndex) -> dict[str, Any]:
    facts, size = made.facts, made.path.stat().st_size
    told = {key: facts[key] for key in ("duration", "until", "complete", "fps", "recipe", "lost",
                                        "near_error", "levels")}  # fmt: skip
    return {
        "index": str(made.path), "video": facts["source"]["path"], **told, "bytes": size,
        "mb_per_minute": _per_minute(made), "notes": list(made.notes), "made": made.made,
    }  # fmt: skip


def _receipt(made: VideoIndex) -> str:
    """The one line about an index: what it took and what it weighs."""
    size = made.path.stat().st_size / 1e6
    weighs = f"{size:.3g} MB ({_per_minute(made):.2g} MB a minute)"
    if made.made is None:
        return f"{_clock(made.duration)} was indexed before, with the same settings · {weighs}"
    done = made.made
    wall, covered = done["wall"], made.duration - done["resumed"]
    before = f" after {_clock(done['resumed'])} of an earlier run" if done["resumed"] else ""
    return (
        f"{_clock(covered)} indexed in {_clock(wall)} ({done['speed']:.0f}×){before} · "
        f"{done['frames']} frames, {done['encoded']} encoded · {weighs}"
    )


def _per_minute(made: VideoIndex) -> float:
    return round(made.path.stat().st_size / 1e6 / max(made.duration / 60, 1e-9), 4)


def _line(entry: Entry) -> str:
    state = "" if entry.problem is None else "  !"
    part = "" if entry.complete or entry.problem else " in part"
    size = f"{entry.bytes / 1e6:8.2f} MB"
    return f"{entry.name:<24} {_clock(entry.duration):>8}{part} {size}  {entry.video}{state}"


def _table(hits: Hits) -> str:
    return "\n".join(
        f"{hit.span.score:.2f}  {_clock(hit.span.start):>8} – {_clock(hit.span.end):<8} "
        f"{hit.name:<24} {hit.video}"
        for hit in hits
    )


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _clock(seconds: float) -> str:
    from vidllm.timecode.clock import clock

    return clock(seconds)
