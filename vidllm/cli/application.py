"""The commands: ``vidllm ask``, ``chat``, ``list``, ``doctor`` and so on, and plug-ins.

``eval``, ``bench``, ``cost``, ``train`` and ``demo`` live in their own rooms and are found by the
entry-point group ``vidllm.commands``; each is loaded only when it is used, so that
``vidllm --help`` imports neither torch nor transformers. Exit codes: 0 done, 1 the work failed,
2 bad usage or bad input, the last two with one line on standard error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from vidllm.errors import InputError, WorkError
from vidllm.progress.verbosity import set_verbosity

from .ask_command import ask, caption, ground
from .chat_command import chat
from .failures import fail
from .options import AsJson, Debug, clean_output, emit, hide_bars, tell
from .plugins import Commands

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


for _command in (ask, chat, ground, caption):
    app.command()(_command)


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


def run(words: Sequence[str]) -> int:
    """Run the command line `vidllm WORDS`; gives its exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C, where a command has nothing more to say about it.
    """
    _quiet()
    if not any(
        word.startswith(("--model", "--adapter")) for word in words
    ):  # nothing will be downloaded
        hide_bars()
    command = typer.main.get_command(app)
    try:
        with command.make_context("vidllm", list(words)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command
            tell(error.format_message())  # type: ignore[attr-defined]
            return 0
        return fail(error)
    return 0


def _quiet() -> None:
    """Keep standard error for this program: libraries log there only with VIDLLM_DEBUG=1."""
    if os.environ.get("VIDLLM_DEBUG", "") in ("", "0"):
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # retries end in an error of one line
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    set_verbosity("warning")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign shows "?"
            stream.reconfigure(errors="replace")
