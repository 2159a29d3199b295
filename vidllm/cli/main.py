"""The command line: ``vidllm ask``, ``ground``, ``caption``, ``list``, ``doctor`` and plug-ins.

``eval``, ``bench``, ``cost``, ``train`` and ``demo`` live in their own rooms and are found by the
entry-point group ``vidllm.commands``; each is loaded only when it is used, so that
``vidllm --help`` imports neither torch nor transformers. Exit codes: 0 done, 1 the work failed,
2 bad usage or bad input, the last two with one line on standard error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError, VidllmError, WorkError
from vidllm.errors.bounds import lacks_memory
from vidllm.errors.paths import reason, shown
from vidllm.errors.printable import printable
from vidllm.longvideo.marks import is_index
from vidllm.models.question import check_text
from vidllm.progress.verbosity import set_verbosity

from .index_command import open_index
from .options import (
    AsJson,
    CommonOptions,
    Debug,
    clean_output,
    common_options,
    debugging,
    emit,
    hide_bars,
    say,
    tell,
)
from .plugins import Commands, EndedByKey

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.models.answer import Answer
    from vidllm.video import VideoClip

#: What the system says of a path that is wrong, rather than of work that failed.
_OF_PATH = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENXIO,
}  # fmt: skip

_WORD = 400  # signs of a word that a message shows

# Typer carries its own copy of click in newer versions: find the base of its errors by name.
_ClickException: type[Any] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from vidllm import __version__

        tell(f"vidllm {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Ask a long video a question, get an answer with times, pay for a quarter of the tokens."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


Video = Annotated[
    str,
    typer.Argument(
        metavar="VIDEO", help="A video file, or an index of one (vidllm index).", show_default=False
    ),
]
NewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
ShowPrompt = Annotated[
    bool,
    typer.Option("--show-prompt", help="Print the prompt with its times, on standard error."),
]
Times = Annotated[
    bool | None,
    typer.Option(
        "--times/--no-times",
        help="Tell the frames' seconds in words (models from the hub).",
        show_default=False,
    ),
]


@app.command()
@common_options
def ask(
    video: Video,
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    options: CommonOptions,
    max_new_tokens: NewTokens = None,
    show_prompt: ShowPrompt = False,
    times: Times = None,
) -> None:
    """Answer a question about a video, with the times that the answer names."""
    _not_blank("QUESTION", question)
    if is_index(video):
        _plain_index(max_new_tokens, show_prompt, times)
        _answer(open_index(video, options).ask(question), video, options)
        return
    clip, llm = _prepare(video, options)
    more = _told(llm, times)
    if show_prompt:
        say(llm.prompt_text(clip, question, **more))
    more["anyway"] = options.anyway
    _answer(llm.ask(clip, question, max_new_tokens=max_new_tokens, **more), clip.path, options)


@app.command()
@common_options
def ground(
    video: Video,
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False)],
    options: CommonOptions,
    show_prompt: ShowPrompt = False,
    times: Times = None,
) -> None:
    """Find the moments that a description fits."""
    _not_blank("QUERY", query)
    if is_index(video):
        _plain_index(None, show_prompt, times)
        _answer(open_index(video, options).ground_answer(query), video, options)
        return
    clip, llm = _prepare(video, options)
    more = llm.timed(_told(llm, times))
    if show_prompt:
        say(llm.prompt_text(clip, llm.words("ground", query), **more))
    more["anyway"] = options.anyway
    _answer(llm.ground_answer(clip, query, **more), clip.path, options)


@app.command()
@common_options
def caption(
    video: Video,
    options: CommonOptions,
    max_new_tokens: NewTokens = None,
    show_prompt: ShowPrompt = False,
    times: Times = None,
) -> None:
    """Describe what happens in a video and when."""
    if is_index(video):
        _plain_index(max_new_tokens, show_prompt, times)
        held = open_index(video, options, stretch=True)
        _answer(held.caption(options.start, options.end), video, options)
        return
    clip, llm = _prepare(video, options)
    more = llm.timed(_told(llm, times))
    if show_prompt:
        say(llm.prompt_text(clip, llm.words("caption"), **more))
    more["anyway"] = options.anyway
    _answer(llm.caption(clip, max_new_tokens=max_new_tokens, **more), clip.path, options)


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="compressors, models, recipes, encoders or tasks.")
    ],
    pattern: Annotated[str, typer.Argument(help='Wildcards, for example "*pool*".')] = "*",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/KIND.md, from the registry.")
    ] = False,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List what there is to choose from."""
    from .listing import entries, table

    if markdown:
        from .pages import page

        if pattern != "*" or json:
            raise InputError("--markdown gives the whole page: leave out the pattern and --json")
        tell(page(kind).rstrip("\n"))
        return
    with clean_output(json):
        found = entries(kind, pattern, measured=json)
        emit({kind: found}) if json else tell(table(found))


@app.command()
def doctor(json: AsJson = False, debug: Debug = False) -> None:
    """Check the install: versions, device, decoders, weights, disk."""
    from .doctor import examine

    with clean_output(json):
        checks = examine()
        broken = [check.name for check in checks if check.state == "broken"]
        if json:
            emit({"ok": not broken, "checks": [check.as_dict() for check in checks]})
        else:
            tell("\n".join(str(check) for check in checks))
        if broken:
            raise WorkError(f"{len(broken)} checks failed: {', '.join(broken)}")


def _not_blank(name: str, text: str) -> None:
    check_text(text)
    if not text.strip():
        raise InputError(f"{name} is empty: write it in quotes, as one argument")


def _prepare(video: str, options: CommonOptions) -> tuple[VideoClip, VideoLLM]:
    """The clip, then the model: a bad file or option fails before the model costs anything."""
    auto = options.frames == "auto"
    clip = options.open(video, peek=auto)
    options.check_words()
    llm = options.load()
    if auto:  # the model counts its tokens
        start, end = options.start, options.end
        clip = llm.sample(video, start=start, end=end, limits=options.limits())
    return clip, llm


def _told(llm: VideoLLM, times: bool | None) -> Any:
    """The option `times` of models from the hub, if it was given."""
    if times is None:
        return {}
    if not llm.engine.writes_times:
        raise InputError("--times is for models from the hub: this one has a time code of its own")
    return {"times": times}


def _plain_index(max_new_tokens: int | None, show_prompt: bool, times: bool | None) -> None:
    """Refuse options that mean nothing where an index is asked."""
    given = {"--max-new-tokens": max_new_tokens, "--show-prompt": show_prompt or None}
    for name, value in {**given, "--times": times}.items():
        if value is not None:
            raise InputError(f"{name} does not go here: an index is asked as it was made")


def _answer(answer: Answer, path: str, options: CommonOptions) -> None:
    for note in answer.notes:
        say(f"note: {note}")
    if options.json:
        emit({"video": path, **answer.as_dict()})
    else:
        tell(answer.text)
        if answer.spans:
            tell(", ".join(f"{span.start:.1f} s – {span.end:.1f} s" for span in answer.spans))
    say(str(answer.receipt))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script's entry."""
    started = time.perf_counter()
    words = sys.argv[1:] if arguments is None else list(arguments)
    _quiet()
    if not any(word.startswith("--model") for word in words):  # nothing will be downloaded
        hide_bars()
    try:
        command = typer.main.get_command(app)
        code = command.main(
            args=words,
            prog_name="vidllm",
            standalone_mode=False,
        )
        return code if isinstance(code, int) else 0
    except (EndedByKey, KeyboardInterrupt):
        spent = time.perf_counter() - started
        return _fail(f"stopped after {spent:.0f} s{_going_on(words)}", EndedByKey.exit_code)
    except VidllmError as error:
        return _fail(str(error), error.exit_code)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command
            tell(error.format_message())
            return 0
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vidllm"
        message = error.format_message().strip().rstrip(".")
        return _fail(f"{message} (see {path} --help)", error.exit_code)
    except typer.Abort:
        return _fail("stopped", 1)
    except OSError as error:
        return _fail(*_of_system(error))
    except Exception as error:
        if lacks_memory(error):
            return _fail("memory ran out: fewer frames, smaller ones, or fewer tokens", 1)
        hint = "" if debugging() else " (--debug shows where)"
        return _fail(f"{type(error).__name__}: {error}{hint}", 1)


def _of_system(error: OSError) -> tuple[str, int]:
    """A line and an exit code for what the system refuses: 2 where the path is wrong."""
    names = [shown(name) for name in (error.filename, error.filename2) if name]
    line = f"{', '.join(names)}: {reason(error)}" if names else reason(error)
    return line, 2 if names and error.errno in _OF_PATH else 1


def _going_on(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C, for commands that keep what they did; "" for the others."""
    again = ": run the same command again to go on"
    named = [word for word in words if not word.startswith("-")]
    if named[:1] == ["index"] or named[:2] in (["library", "add"], ["bench", "methods"]):
        return again
    if named[:1] == ["eval"]:
        kept = any(word == "--out" or word.startswith("--out=") for word in words)
        return again if kept else ": nothing is kept without --out DIR"
    if named[:1] == ["train"]:
        return ": --resume goes on from the last save, where there is one"
    return ""


def _fail(message: str, code: int) -> int:
    if debugging():
        traceback.print_exc()
    say(f"vidllm: {_one_line(message)}")
    return code


def _one_line(message: str) -> str:
    """A message on one line, what no terminal prints spelt out, words without end cut."""
    words = [w if len(w) <= _WORD else f"{w[:_WORD]}…" for w in message.split()]
    return printable(" ".join(words))


def _quiet() -> None:
    """Keep standard error for this program: libraries log there only with VIDLLM_DEBUG=1."""
    if os.environ.get("VIDLLM_DEBUG", "") in ("", "0"):
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    set_verbosity("warning")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign shows "?"
            stream.reconfigure(errors="replace")
