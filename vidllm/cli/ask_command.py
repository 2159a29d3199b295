"""``vidllm ask``, ``ground`` and ``caption``: one question about a video or about an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.longvideo.marks import is_index
from vidllm.models.question import check_text

from .answers import tell_answer
from .index_command import open_index
from .options import CommonOptions, common_options, say

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.video import VideoClip

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
    check_asked("QUESTION", question)
    if is_index(video):
        check_plain(max_new_tokens, show_prompt, times)
        held = open_index(video, options)
        tell_answer(held.ask(question), held.duration, json_of(video, options))
        return
    clip, llm = prepared(video, options)
    more = told_times(llm, times)
    if show_prompt:
        say(llm.prompt_text(clip, question, **more))
    more["anyway"] = options.anyway
    said = llm.ask(clip, question, max_new_tokens=max_new_tokens, **more)
    tell_answer(said, clip.duration, json_of(clip.path, options))


@common_options
def ground(
    video: Video,
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False)],
    options: CommonOptions,
    show_prompt: ShowPrompt = False,
    times: Times = None,
) -> None:
    """Find the moments that a description fits."""
    check_asked("QUERY", query)
    if is_index(video):
        check_plain(None, show_prompt, times)
        held = open_index(video, options)
        said = held.ground_answer(query)
        tell_answer(said, held.duration, json_of(video, options), of="ground")
        return
    clip, llm = prepared(video, options)
    more = llm.timed(told_times(llm, times))
    if show_prompt:
        say(llm.prompt_text(clip, llm.words("ground", query), **more))
    more["anyway"] = options.anyway
    said = llm.ground_answer(clip, query, **more)
    tell_answer(said, clip.duration, json_of(clip.path, options), of="ground")


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
        check_plain(max_new_tokens, show_prompt, times)
        held = open_index(video, options, stretch=True)
        said = held.caption(options.start, options.end)
        tell_answer(said, held.duration, json_of(video, options), of="caption")
        return
    clip, llm = prepared(video, options)
    more = llm.timed(told_times(llm, times))
    if show_prompt:
        say(llm.prompt_text(clip, llm.words("caption"), **more))
    more["anyway"] = options.anyway
    said = llm.caption(clip, max_new_tokens=max_new_tokens, **more)
    tell_answer(said, clip.duration, json_of(clip.path, options), of="caption")


def json_of(video: str, options: CommonOptions) -> dict[str, str] | None:
    """What a JSON object about an answer begins with; None where none is wanted."""
    return {"video": video} if options.json else None


def check_asked(name: str, text: str) -> None:
    """Refuse a question that is no text, or blank, before anything is opened for it."""
    check_text(text)
    if not text.strip():
        raise InputError(f"{name} is empty: write it in quotes, as one argument")


def prepared(video: str, options: CommonOptions) -> tuple[VideoClip, VideoLLM]:
    """The clip, then the model: a bad file or option fails before the model costs anything."""
    auto = options.frames == "auto"
    clip = options.open(video, peek=auto)
    options.check_words()
    llm = options.load()
    if auto:  # the model counts its tokens
        start, end = options.start, options.end
        clip = llm.sample(video, start=start, end=end, limits=options.limits())
    return clip, llm


def told_times(llm: VideoLLM, times: bool | None) -> Any:
    """The option `times` of models from the hub, if it was given."""
    if times is None:
        return {}
    if not llm.engine.writes_times:
        raise InputError("--times is for models from the hub: this one has a time code of its own")
    return {"times": times}


def check_plain(max_new_tokens: int | None, show_prompt: bool, times: bool | None) -> None:
    """Refuse options that mean nothing where an index is asked."""
    given = {"--max-new-tokens": max_new_tokens, "--show-prompt": show_prompt or None}
    for name, value in {**given, "--times": times}.items():
        if value is not None:
            raise InputError(f"{name} does not go here: an index is asked as it was made")
