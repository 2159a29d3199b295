"""The options that every command which runs a model has, and how a command speaks.

Standard output carries the result and, with ``--json``, one JSON object and nothing else;
everything for the eye (progress, receipts, notes) goes to standard error. Imports typer only, so
that the command line starts at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, TextIO, get_origin, get_type_hints

import typer

from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import check
from vidllm.errors.paths import is_folder
from vidllm.errors.plain import plain
from vidllm.errors.printable import printable, printable_json
from vidllm.models.model_options import ATTENTION, DTYPES, PANEL, ModelOptions

from .loading import imports_kept

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.video import Limits, VideoClip

READERS = ("pyav", "decord")

_TOKENS = "Fewer tokens"
_VIDEO = "Reading the video"
_RUN = "The run"


class _State:
    """What outlives one command: the debug switch and the true standard output."""

    debug = False
    out: TextIO | None = None


def set_debug(value: bool) -> bool:
    """Callback of ``--debug``; once on it stays on."""
    _State.debug = _State.debug or value
    return value


def debugging() -> bool:
    """True when tracebacks are to be shown."""
    return _State.debug


def option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    """A typer option under a heading of the help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of a failure (also VIDLLM_DEBUG=1).",
        envvar="VIDLLM_DEBUG",
        show_envvar=False,
        is_eager=True,
        callback=set_debug,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _number_or_auto(text: str) -> int | str:
    if text != "auto" and not text.lstrip("+-").isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a whole number nor auto")
    try:
        return text if text == "auto" else int(text)
    except ValueError:  # "+-1"
        raise typer.BadParameter(f"{text!r} is neither a whole number nor auto") from None


@dataclass(frozen=True)
class CommonOptions(ModelOptions):
    """The options shared by ``ask``, ``ground``, ``caption`` and every command that runs a model.

    A command takes one parameter ``options: CommonOptions`` under ``@common_options``.
    """

    recipe: Annotated[
        str | None, option(PANEL, "--recipe", help="A named system: vidllm list recipes.")
    ] = None
    compressor: Annotated[
        str | None,
        option(
            _TOKENS,
            "--compressor",
            metavar="NAME[,NAME]",
            help="Token reducers, in order: vidllm list compressors.",
        ),
    ] = None
    keep: Annotated[
        float | None,
        option(
            _TOKENS, "--keep", metavar="SHARE", help="Share of the video tokens kept: 0.1, or 10%."
        ),
    ] = None
    frames: Annotated[
        Any,  # int | "auto" | None
        option(
            _VIDEO,
            "--frames",
            metavar="N|auto",
            parser=_number_or_auto,
            help="Sample this many frames, evenly; auto: as many as go with --tokens.",
        ),
    ] = None
    tokens: Annotated[
        int | None,
        option(_TOKENS, "--tokens", help="Video tokens that the LLM sees at most; sets --keep."),
    ] = None
    fps: Annotated[
        float | None, option(_VIDEO, "--fps", help="Sample at this rate instead of --frames.")
    ] = None
    start: Annotated[float | None, option(_VIDEO, "--start", help="Look from this second on.")] = (
        None
    )
    end: Annotated[float | None, option(_VIDEO, "--end", help="Look up to this second.")] = None
    reader: Annotated[
        str, option(_VIDEO, "--reader", help=f"Video reader: {' or '.join(READERS)}.")
    ] = "pyav"
    max_pixels: Annotated[
        int | None, option(_VIDEO, "--max-pixels", help="Refuse frames of more pixels.")
    ] = None
    max_seconds: Annotated[
        float | None, option(_VIDEO, "--max-seconds", help="Refuse longer videos.")
    ] = None
    max_frames: Annotated[
        int | None, option(_VIDEO, "--max-frames", help="Refuse to sample more frames.")
    ] = None
    anyway: Annotated[
        bool,
        option(_RUN, "--anyway", help="Answer also about footage that the model does not know."),
    ] = False
    seed: Annotated[int, option(_RUN, "--seed", help="Seed of everything random.")] = 0
    json: AsJson = False
    debug: Debug = False

    def check(self) -> None:
        """Refuse what can be seen to be wrong without loading anything.

        Raises:
            InputError: an option out of range, an unknown word, or a model that is not there.
        """
        for option in ("keep", "tokens", "fps", "start", "end", "seed", "frames"):
            value = getattr(self, option)
            if value is not None and value != "auto":
                check(option, value, f"--{option}")
        if self.frames == "auto" and self.tokens is None:
            raise InputError("--frames auto picks frames for a number of tokens: give --tokens")
        if self.frames is not None and self.fps is not None:
            raise InputError("give --frames or --fps, not both")
        one_of("--reader", self.reader, READERS)
        one_of("--dtype", self.dtype, DTYPES)
        one_of("--attn", self.attn, ATTENTION)
        self.limits()
        if (name := self.model_name()) is None or is_folder(name):
            hide_bars()

    def model_name(self) -> str | None:
        """The folder or hub name of the model; None for the shipped default.

        Raises:
            InputError: no such model, recipe or adapters.
        """
        from vidllm.recipes import get_recipe
        from vidllm.recipes.models import model_of

        named = self.named()
        if named is None and self.recipe is None:
            return None
        recipe = None if self.recipe is None else get_recipe(self.recipe)
        return model_of(recipe, named)

    def with_model(self) -> CommonOptions:
        """These options with the weights of the recipe as the model, where none is named."""
        from vidllm.recipes import get_recipe
        from vidllm.recipes.models import ships

        if self.model is not None or self.recipe is None:
            return self
        recipe = get_recipe(self.recipe)
        return replace(self, model=recipe.weights) if ships(recipe) else self

    def limits(self) -> Limits:
        """The limits on reading, with those that were given. Raises ``InputError`` below 1."""
        from vidllm.video import Limits

        given = {
            "max_pixels": self.max_pixels,
            "max_seconds": self.max_seconds,
            "max_frames": self.max_frames,
        }
        return Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def open(self, video: str, *, peek: bool = False) -> VideoClip:
        """The sampled clip of a file. Raises ``InputError`` when it cannot be read.

        Without ``--frames`` and ``--fps`` it has the frames that the model was trained with.
        ``peek`` gives one frame, for ``--frames auto``, which takes the model.
        """
        from vidllm.models.shipped import trained_fps, trained_frames
        from vidllm.video import load_video

        frames, fps = 1 if peek else self.frames, None if peek else self.fps
        if frames is None and fps is None and (tuned := self.tuned()) is not None:
            frames = tuned.frames
        if frames is None and fps is None:
            with contextlib.suppress(WorkError):  # no model: said when it is to be loaded
                fps = trained_fps(self.model_name())
                frames = trained_frames(self.model_name()) if fps is None else None
            if frames is None and fps is None and self.model is not None:
                with imports_kept():
                    from vidllm.models.loading import usual_frames

                told = {} if self.revision is None else {"revision": self.revision}
                frames = usual_frames(str(self.model_name()), **told)
        if frames == "auto":
            raise InputError("--frames auto goes with ask, ground and caption: give a number")
        return load_video(
            video,
            frames=frames,
            fps=fps,
            start=self.start,
            end=self.end,
            reader=self.reader,
            limits=self.limits(),
        )

    def load(
        self, engine: str | None = None, engine_options: Mapping[str, Any] | None = None
    ) -> VideoLLM:
        """The model with its compressors, ready to be asked; `engine` runs a hub model."""
        with imports_kept():
            from vidllm.ask.video_llm import VideoLLM

        return VideoLLM.from_pretrained(
            self.model_name(),
            recipe=self.recipe,
            compressor=self.compressor,
            keep=self.keep,
            **self.loading(),
            engine=engine,
            engine_options=engine_options,
            frames=self.frames,
            fps=self.fps,
            tokens=self.tokens,
            reader=self.reader,
            seed=self.seed,
        )

    def check_words(self) -> None:
        """See that recipe and compressors exist and fit, before a model is loaded.

        Raises:
            InputError: a name or an option of a compressor that is wrong.
        """
        if self.recipe is not None:
            from vidllm.recipes import get_recipe

            get_recipe(self.recipe)
        if self.compressor is not None:
            with imports_kept():
                from vidllm.compressors import build

            build(self.compressor, keep=1.0 if self.keep is None else self.keep)


def options_of(
    kind: type[Any], command: Callable[..., Any], *, first: bool = False
) -> Callable[..., Any]:
    """Give a typer command the fields of a dataclass that are declared as options.

    Args:
        kind: the dataclass; of its fields those with an ``Annotated`` option count.
        command: has a parameter annotated with ``kind``, which gets the object made of them; a
            parameter of its own of the same name as a field takes that field's place.
        first: the fields stand before the command's own parameters in its help.
    """
    hints = get_type_hints(command, include_extras=True)
    holder = next(name for name, hint in hints.items() if hint is kind)
    types = get_type_hints(kind, include_extras=True)
    shared = [
        item
        for item in fields(kind)
        if get_origin(types[item.name]) is Annotated and item.name not in hints
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        parameter.replace(annotation=hints.get(parameter.name, str), kind=keyword)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != holder
    ]
    more = [
        inspect.Parameter(item.name, keyword, default=item.default, annotation=types[item.name])
        for item in shared
    ]

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        made = kind(**{item.name: values.pop(item.name) for item in shared})
        return command(**values, **{holder: made})

    every = [*more, *own] if first else [*own, *more]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    return run


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a typer command the ``CommonOptions``, checked before it runs."""
    hints = get_type_hints(command, include_extras=True)
    holder = next(name for name, hint in hints.items() if hint is CommonOptions)

    @functools.wraps(command)
    def checked(**values: Any) -> Any:
        options = values[holder]
        options.check()
        with clean_output(options.json):
            return command(**values)

    return options_of(CommonOptions, checked)


@contextlib.contextmanager
def clean_output(only_json: bool) -> Any:
    """Keep standard output for ``emit`` and ``tell``: other prints go to standard error."""
    before, _State.out = _State.out, sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr) if only_json else contextlib.nullcontext():
            yield
    finally:
        _State.out = before


def emit(result: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command on standard output (NaN and infinity as null)."""
    text = printable_json(json.dumps(plain(result), ensure_ascii=False))
    print(text, file=_State.out or sys.stdout, flush=True)


def tell(text: str) -> None:
    """Print a result for people on standard output."""
    print(printable(text, lines=True), file=_State.out or sys.stdout, flush=True)


def say(text: str) -> None:
    """Print progress, a receipt or a note on standard error."""
    print(printable(text, lines=True), file=sys.stderr, flush=True)


def hide_bars() -> None:
    """Keep the hub's and transformers' progress bars away: only a download deserves one.

    To be called before either is imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def one_of(option: str, value: str | None, words: tuple[str, ...]) -> None:
    """Raise ``InputError`` unless the value is absent or one of the words."""
    if value is not None and value not in words:
        raise InputError(f"{option} must be one of {', '.join(words)}, got {value!r}")
