"""``vidllm chat``: many questions about one video, in one process that keeps what it has read."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError, WorkError
from vidllm.longvideo.marks import is_index
from vidllm.models.question import QUESTION_BYTES
from vidllm.progress.interruption import Interrupted

from .answers import tell_answer
from .ask_command import NewTokens, Times, Video, check_asked, check_plain, prepared, told_times
from .failures import explained, fail
from .index_command import open_index
from .options import CommonOptions, common_options, emit, say

if TYPE_CHECKING:
    from vidllm.models.answer import Answer

#: Lines that end a chat.
ENDS = ("exit", "quit")


@common_options
def chat(
    video: Video,
    options: CommonOptions,
    max_new_tokens: NewTokens = None,
    times: Times = None,
    turns: Annotated[
        int,
        typer.Option(
            "--turns", min=0, help="Earlier questions that a hub model is told, with its answers."
        ),
    ] = 0,
) -> None:
    """Ask many questions about a video: one a line, from a terminal or a pipe.

    The model stays loaded, and the video is read and encoded once. Every question stands alone,
    unless --turns tells a model from the hub the ones before it; the shipped model knows single
    questions only. exit, quit or Ctrl-D end the chat.
    """
    path, duration, asking = _opened(video, options, max_new_tokens, times, turns)
    if sys.stdin.isatty():
        alone = "" if turns else "each stands alone; "
        say(f"{path}: a question a line; {alone}{' or '.join(ENDS)} or Ctrl-D to end")
    answered = failed = 0
    notes: set[str] = set()
    history: deque[tuple[str, str]] = deque(maxlen=turns)
    try:
        for question in _lines(options.json):
            told = {"video": path, "question": question}
            try:
                check_asked("the question", question)
                said = asking(question, history)
            except Exception as error:  # the next question may be a better one
                failed += 1
                if options.json:
                    emit({**told, "error": explained(error)[0]})
                fail(error)
            else:
                answered += 1
                if said.text.strip():
                    history.append((question, said.text))
                tell_answer(said, duration, told if options.json else None, known_notes=notes)
    except KeyboardInterrupt:
        if sys.stdin.isatty():
            say("")  # the prompt has its line
        count = f"{answered} {'question' if answered == 1 else 'questions'} answered"
        raise Interrupted(f"stopped, {count}", signal.SIGINT) from None
    if failed and not sys.stdin.isatty():
        raise WorkError(f"{failed} of {answered + failed} questions were not answered")


def _opened(
    video: str,
    options: CommonOptions,
    max_new_tokens: int | None,
    times: bool | None,
    turns: int,
) -> tuple[str, float, Callable[[str, Sequence[tuple[str, str]]], Answer]]:
    """The video's path and seconds, and what answers a question about it, told a history.

    Raises:
        InputError: as `ask`. UnknownFootage: the model does not know such footage.
    """
    if is_index(video):
        check_plain(max_new_tokens, False, times)
        if turns:
            raise InputError("--turns does not go here: an index is asked as it was made")
        held = open_index(video, options)
        return video, held.duration, lambda question, _: held.ask(question)
    clip, llm = prepared(video, options)
    more: dict[str, Any] = told_times(llm, times)
    if turns:
        from vidllm.models.dialogue import Dialogue

        llm.engine.check_dialogue(Dialogue(turns=(("when?", "now"),)))
    if not options.anyway and not llm.knows(clip):
        from vidllm.models.native.footage import UnknownFootage

        raise UnknownFootage

    more |= {"max_new_tokens": max_new_tokens, "anyway": options.anyway}

    def asking(question: str, history: Sequence[tuple[str, str]]) -> Answer:
        return llm.ask(clip, question, history=list(history), **more)

    return clip.path, clip.duration, asking


def _lines(json: bool) -> Iterator[str]:
    """Lines of standard input that are not blank, up to one that ends the chat."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is no text is refused as a question is
        sys.stdin.reconfigure(errors="surrogateescape")
    talking = sys.stdin.isatty()
    edited = talking and sys.stdout.isatty() and not json
    if edited:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited, and called back
    while True:
        if edited:
            try:
                line = input("> ")
            except EOFError:
                say("")
                return
        else:
            if talking:
                sys.stderr.write("> ")
                sys.stderr.flush()
            if not (line := _line()):
                if talking:
                    say("")
                return
        if (question := line.strip()) in ENDS:
            return
        if question:
            yield question


def _line() -> str:
    """The next line; of one that is longer than any question as much as it takes to refuse it."""
    line = sys.stdin.readline(QUESTION_BYTES + 1)
    rest = line
    while rest and not rest.endswith("\n"):
        rest = sys.stdin.readline(QUESTION_BYTES)
    return line
