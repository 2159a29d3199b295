"""What went wrong, as the one line that people see, and its exit code."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import typer

from vidllm.errors import VidllmError
from vidllm.errors.bounds import lacks_memory
from vidllm.errors.paths import reason, shown
from vidllm.errors.printable import printable

from .options import debugging, say

#: What the system says of a path that is wrong, rather than of work that failed.
_OF_PATH = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENXIO,
}  # fmt: skip

_WORD = 400  # signs of a word that a message shows

# Typer carries its own copy of click in newer versions: find the base of its errors by name.
ClickException: type[Any] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)


def fail(error: Exception) -> int:
    """Say what went wrong on standard error; gives the exit code."""
    message, code = explained(error)
    if debugging():
        traceback.print_exc()
    say(f"vidllm: {message}")
    return code


def explained(error: Exception) -> tuple[str, int]:
    """What went wrong on one line, and the exit code."""
    message, code = _explained(error)
    words = [w if len(w) <= _WORD else f"{w[:_WORD]}…" for w in message.split()]
    return printable(" ".join(words)), code


def _explained(error: Exception) -> tuple[str, int]:
    if isinstance(error, VidllmError):
        return str(error), error.exit_code
    if isinstance(error, ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vidllm"
        return f"{error.format_message().strip().rstrip('.')} (see {path} --help)", error.exit_code
    if isinstance(error, typer.Abort):
        return "stopped", 1
    if isinstance(error, OSError):
        return _of_system(error)
    if lacks_memory(error):
        return "memory ran out: fewer frames, smaller ones, or fewer tokens", 1
    hint = "" if debugging() else " (--debug shows where)"
    return f"{type(error).__name__}: {error}{hint}", 1


def _of_system(error: OSError) -> tuple[str, int]:
    """A line and an exit code for what the system refuses: 2 where the path is wrong."""
    names = [shown(name) for name in (error.filename, error.filename2) if name]
    line = f"{', '.join(names)}: {reason(error)}" if names else reason(error)
    return line, 2 if names and error.errno in _OF_PATH else 1
