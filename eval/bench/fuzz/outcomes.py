"""What may become of a damaged input, and what a target of the campaign is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

#: Read, and what was got is what the whole input gives.
WHOLE = "read whole"
#: Read, and a note says that something is missing or was repaired.
NOTED = "read with a note"
#: Refused in one line (`InputError`, `WorkError`).
REFUSED = "refused"
#: Media, without a note: other pixels at the same seconds, which a codec cannot always know.
PICTURES = "other pictures"
#: Media, without a note: the file states other times or sizes than before, and does not
#: contradict itself.
TIMES = "other times"
#: Files, without a note: a value that could as well be the right one gives another answer.
ANSWER = "other answer"
RAW, HANG, MEMORY, CRASH = "raw error", "hang", "too much memory", "crash"
#: Accepted without a note, with another answer, although the damage could be seen.
CHANGED = "silently changed"
#: A clip that cannot be: wrong shapes, seconds that fall or are no numbers, too many frames.
INSANE = "insane"
FAULTS = (RAW, HANG, MEMORY, CRASH, CHANGED, INSANE)


@dataclass(frozen=True)
class Case:
    """One damaged input.

    Args:
        mutation: what was done to it. work: reads it; gives (outcome, what is to be said of it),
            or raises. Errors of `vidllm.errors` count as `REFUSED`, all others as `RAW`.
        memory: stated limit of this case, where it is not that of its target.
    """

    mutation: str
    work: Callable[[], tuple[str, str]]
    memory: int | None = None


class Target(Protocol):
    """A kind of input.

    Args:
        folder: holds the undamaged, which is made where it is not there yet.
    """

    #: Bytes beyond those held before that a case may take: the stated limit.
    memory: ClassVar[int]
    #: Seconds of CPU after which a case hangs.
    seconds: ClassVar[float]
    #: How many cases there are; None for as many as wanted.
    cases: ClassVar[int | None]

    def __init__(self, folder: Path) -> None: ...

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """Make a case.

        Args:
            draw: of its own; the same numbers each time. place: an empty folder for its files.
        """
