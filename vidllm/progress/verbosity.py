"""How much the logger ``vidllm`` tells on standard error."""

from __future__ import annotations

import logging
import sys

from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "silent": logging.CRITICAL + 1,
}


class _ToStandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what standard error is when a line comes."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_HANDLER = _ToStandardError()
_HANDLER.setFormatter(logging.Formatter("vidllm: %(message)s"))


def set_verbosity(level: str | int) -> None:
    """Say how much vidllm tells on standard error while it works.

    "info" tells which model was loaded and every answer's receipt, "warning" (as without this call)
    only what is wrong, "silent" nothing. Lines go through the logger "vidllm" of `logging`, which
    may have handlers of its own.

    Args:
        level: "debug", "info", "warning", "error" or "silent"; or a level of `logging`.

    Raises:
        InputError: another word.
    """
    if isinstance(level, str) and level not in LEVELS:
        hint = did_you_mean(level, LEVELS, n=1, otherwise=f"give {', '.join(LEVELS)}")
        raise InputError(f"no verbosity {level!r}: {hint}")
    logger = logging.getLogger("vidllm")
    logger.setLevel(LEVELS[level] if isinstance(level, str) else level)
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
        logger.propagate = False
