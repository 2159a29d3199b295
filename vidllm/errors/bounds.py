"""Bounds of every number that comes from outside: options, specs, configs, headers of files.

`BOUNDS` is the one table. A number is compared with its bound before anything of its size is
made. Imports the errors only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import InputError, WorkError

_SHOWN = 40  # signs of a value that a message shows
_INT = 2**31 - 1


@dataclass(frozen=True)
class Bound:
    """What a number may be.

    Attributes:
        low, high: least and greatest. whole: no fractions. above: `low` itself is not allowed.
    """

    low: float
    high: float
    whole: bool = True
    above: bool = False

    def allows(self, value: object) -> bool:
        """Whether a value is a number inside the bound; NaN and booleans never are."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            try:
                value = value.item()  # type: ignore[attr-defined]  # numpy's and torch's numbers
            except (AttributeError, ValueError, RuntimeError, TypeError):
                return False
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return False
        if self.whole and isinstance(value, float) and not value.is_integer():
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        begin = f"{'above' if self.above else 'at least'} {low}"
        if self.low == 0 and not self.above:
            begin = "from 0 on"
        return f"{begin} and at most {high}"


def _real(low: float, high: float, *, above: bool = False) -> Bound:
    return Bound(low, high, whole=False, above=above)


#: By name of the option, the argument or the field; a hyphen is an underscore here.
BOUNDS: Mapping[str, Bound] = {
    # Reading a video
    "frames": Bound(1, 10**6),
    "fps": _real(0, 1e9, above=True),
    "start": _real(0, 1e9),
    "end": _real(0, 1e9),
    "max_pixels": Bound(1, 10**12),
    "max_seconds": _real(0, math.inf, above=True),
    "max_frames": Bound(1, 10**12),
    "max_bytes": Bound(1, 2**63 - 1),
    # Fewer tokens, and answers
    "keep": _real(0, 1, above=True),
    "budget": Bound(1, _INT),
    "tokens": Bound(1, _INT),
    "max_new_tokens": Bound(1, _INT),
    "seed": Bound(0, 2**63 - 1),
    "temperature": _real(0, 100),
    "top_p": _real(0, 1, above=True),
    # An index and a library
    "tokens_per_minute": Bound(1, _INT),
    "near": _real(0, 255.999),
    "limit": Bound(1, _INT),
    # Costs and measurements
    "text": Bound(1, 10**7),
    "size": Bound(1, 16384),
    "scale": _real(0, 1, above=True),
    "side": Bound(1, 1024),
    "width": Bound(1, 2**16),
    "runs": Bound(1, 10**5),
    "steps": Bound(1, 10**8),
    "seeds": Bound(1, 10**5),
    "tested": Bound(1, 10**7),
    "clips": Bound(1, 10**7),
    "new_tokens": Bound(2, 10**5),
    "seconds_short": Bound(1, 10**6),
    "seconds_long": Bound(1, 10**6),
    "lengths": Bound(1, 10**7),
    "dims": Bound(1, 2**16),
    "ways": Bound(1, 2),
    # Training
    "steps_see": Bound(0, 10**8),
    "steps_mix": Bound(0, 10**8),
    "steps_answer": Bound(0, 10**8),
    "batch": Bound(1, 2**16),
    "lr": _real(0, 100),
    "minutes": _real(0, 1e7),
    "workers": Bound(0, 512),
    "threads": Bound(0, 4096),
    # A run and its report
    "jobs": Bound(1, 512),
    "worst": Bound(0, 200),
    # The page
    "max_upload_mb": _real(0, 1e7, above=True),
    "max_memory_mb": _real(0, 1e7, above=True),
    "waiting": Bound(1, 10**6),
    "max_question": Bound(1, 2**16),
    "max_uploads_mb": _real(0, 1e9, above=True),
    "max_idle_minutes": _real(0, 1e7, above=True),
    "port": Bound(1, 65535),
}
#: Frames a second of an index.
INDEX_FPS = _real(0, 60, above=True)
#: Numbers of options that have no row of their own.
WHOLE, REAL = Bound(-_INT, _INT), _real(-1e12, 1e12)

_OF_LIMITS = ("max_pixels", "max_seconds", "max_frames")
_OF_SPECS = ("keep", "budget", "seed")  # other options of methods may share a name with a row

#: A compressor spec as text, the methods of one chain, and wrappers inside each other.
SPEC_SIGNS, SPEC_ITEMS, SPEC_DEPTH = 4096, 64, 16
#: One text on the command line that is no question.
TEXT_SIGNS = 2**16


def check(name: str, value: Any, told: str | None = None) -> None:
    """Compare a number with its bound.

    Args:
        name: of its row in `BOUNDS`. told: how a message calls it; the name if absent.

    Raises:
        InputError: no number, or one outside; the line names it, the value and the bound.
    """
    within(BOUNDS[name], value, told or name)


def within(bound: Bound, value: Any, told: str) -> None:
    """As `check`, for a bound at hand."""
    if not bound.allows(value):
        whole = bound.whole and not (isinstance(value, int) and not isinstance(value, bool))
        kind = "a whole number, " if whole else ""
        raise InputError(f"{told} must be {kind}{bound}, got {short(value)}")


def read_share(text: str, told: str = "--keep") -> float:
    """A share of the tokens as people write it: "0.1", "10%" or "10 %".

    Args:
        told: how a message calls it.

    Raises:
        InputError: no number, or one outside (0, 1].
    """
    words = text.strip()
    percent = words.endswith("%")
    try:
        value = float(words.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not BOUNDS["keep"].allows(value):
        raise InputError(
            f"{told} must be {BOUNDS['keep']}, or a percentage such as 10%, got {short(words)}"
        )
    return value


def read_shares(text: str, told: str = "--keep") -> list[float]:
    """The shares of a list such as "1,0.5,25%". Raises InputError as `read_share`."""
    return [read_share(part, told) for part in text.split(",")]


def number(name: str, text: str, *, whole: bool, told: str) -> Any:
    """A number of a compressor's spec, inside the bound of its name or else of its kind.

    Args:
        name: of the option; `keep`, `budget` and `seed` have rows in `BOUNDS`. told: how a
            message calls it.

    Raises:
        InputError: one outside. ValueError: no number.
    """
    bound = BOUNDS[name] if name in _OF_SPECS else WHOLE if whole else REAL
    if whole and len(text) > _SHOWN and text.strip().lstrip("+-").isdecimal():
        raise InputError(f"{told} must be {bound}, got {len(text)} digits")
    if name == "keep" and "%" in text:
        return read_share(text, told)
    value = int(text) if whole else float(text)
    within(bound, value, told)
    return value


def short(value: object) -> str:
    """A value for a message; one of thousands of digits is cut."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]}… ({len(text) - 2} signs)"


def _number(value: float) -> str:
    if value == math.inf:
        return "infinity"
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, numpy's, torch's on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in said or "out of memory" in said
    )


@contextlib.contextmanager
def memory_answered(what: str) -> Iterator[None]:
    """Memory that runs out in this block is an answer of one line.

    Args:
        what: takes it, as the begin of the sentence.

    Raises:
        WorkError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise WorkError(
            f"{what} takes more memory than is free: fewer frames, smaller ones, or fewer tokens"
        ) from error


def guard_command(command: Any) -> Any:
    """Have every value of a command, and of the commands in it, checked where it is read.

    Numbers are compared with `BOUNDS` by the option's name, and texts are looked at for what no
    text holds.
    """
    for parameter in getattr(command, "params", ()):
        if not isinstance(parameter.process_value, _Guarded):
            parameter.process_value = _Guarded(parameter)
    for inner in getattr(command, "commands", {}).values():
        guard_command(inner)
    return command


class _Guarded:
    """`process_value` of a command's parameter, with the value checked before and after."""

    def __init__(self, parameter: Any) -> None:
        self.process, self.name = parameter.process_value, str(parameter.name)
        long = [word for word in parameter.opts if word.startswith("--")]
        metavar = parameter.metavar if isinstance(parameter.metavar, str) else self.name.upper()
        self.told = long[0] if long else metavar.removesuffix("...")
        self.bound = BOUNDS.get(self.name)

    def __call__(self, ctx: Any, value: Any) -> Any:
        given = list(value) if isinstance(value, (list, tuple)) else [value]
        for text in given:
            if isinstance(text, str):
                self._text(text)
        if self.name == "keep" and isinstance(value, str) and "," not in value:
            value = repr(read_share(value, self.told))
        made = self.process(ctx, value)
        for one in made if isinstance(made, (list, tuple)) else [made]:
            if self.name in _OF_LIMITS:  # `vidllm.tokens.budget.Limits` looks at these
                continue
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                usual = WHOLE if isinstance(one, int) else REAL
                within(self.bound or usual, one, self.told)
            elif isinstance(one, Path) and "" in given:
                raise InputError(f"{self.told} is empty: give a path")
        return made

    def _text(self, text: str) -> None:
        if self.bound is not None and len(text) > 400 and text.lstrip("+-").isdecimal():
            raise InputError(f"{self.told} must be {self.bound}, got {len(text)} digits")
        if "\0" in text:
            raise InputError(f"{self.told} holds a null character: leave it out")
        if len(text) > TEXT_SIGNS and self.name not in ("question", "query"):
            raise InputError(
                f"{self.told} is {len(text)} signs long, above the limit of {TEXT_SIGNS}"
            )
