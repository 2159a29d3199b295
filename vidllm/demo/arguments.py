"""What the boxes and sliders of the page may hold; checked wherever a value comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError

if TYPE_CHECKING:
    from .settings import Settings

SHARE, LONGEST_ANSWER, RATE = (0.02, 1.0), (8, 1024), (0.1, 8.0)
#: Characters of a compressor, which may be a chain with options.
LONGEST_SPEC = 300


@dataclass(frozen=True)
class Argument:
    """One input of a handler.

    Attributes:
        name: as a person reads it. limits: the least and the most of a number, or None for text.
        longest: characters of a text. whole: a number without a fraction.
    """

    name: str
    limits: Callable[[Settings], tuple[float, float]] | None = None
    longest: Callable[[Settings], int] | None = None
    whole: bool = False

    def checked(self, value: Any, settings: Settings) -> Any:
        """The value.

        Raises:
            InputError: another type, a text that is too long, a number out of its limits.
        """
        if self.limits is None:
            return self._text(value, settings)
        least, most = self.limits(settings)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise InputError(f"{self.name} must be a number, got {short(value)}")
        if self.whole and value != int(value):
            raise InputError(f"{self.name} must be a whole number, got {value:g}")
        if not least <= value <= most:
            raise InputError(f"{self.name} must be from {least:g} to {most:g}, got {value:g}")
        return value

    def _text(self, value: Any, settings: Settings) -> str:
        if not isinstance(value, str):
            raise InputError(f"{self.name} must be a text, got {short(value)}")
        longest = settings.max_question if self.longest is None else self.longest(settings)
        if len(value) > longest:
            raise InputError(
                f"{self.name} has {len(value):,} characters, more than the {longest:,} that this "
                "page takes: make it shorter"
            )
        return value


def _spec(_: Settings) -> int:
    return LONGEST_SPEC


#: By the handlers' parameter names.
ARGUMENTS: dict[str, Argument] = {
    "question": Argument("the question"),
    "query": Argument("the description"),
    "spec": Argument("the compressor", longest=_spec),
    "name": Argument("the recipe", longest=_spec),
    "keep": Argument("the share kept", lambda _: SHARE),
    "frames": Argument("the number of frames", lambda s: (1, s.max_frames), whole=True),
    "most": Argument("the answer limit", lambda _: (1, LONGEST_ANSWER[1]), whole=True),
    "rate": Argument("the frames a second", lambda _: RATE),
}


def checked(names: list[str], values: list[Any], settings: Settings) -> list[Any]:
    """The values of a handler's parameters. Raises `InputError` for the first that is wrong."""
    return [
        ARGUMENTS[name].checked(value, settings) if name in ARGUMENTS else value
        for name, value in zip(names, values, strict=True)
    ]


def short(value: Any) -> str:
    """A value as it is shown in a line."""
    told = repr(value)
    return told if len(told) <= 40 else f"{told[:40]}…"
