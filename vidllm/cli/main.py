"""The console script: runs a command line, and heeds Ctrl-C from its first moment on.

It imports what is quick alone, for the key may come while anything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

#: Exit code of a command that Ctrl-C ended.
STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script's entry.

    Args:
        arguments: None for those of this process, which is then the command's own.
    """
    started = time.perf_counter()
    words = sys.argv[1:] if arguments is None else list(arguments)

    def line() -> str:
        return f"vidllm: stopped after {time.perf_counter() - started:.0f} s{_going_on(words)}\n"

    own = arguments is None and _is_usual()
    if own:
        signal.signal(signal.SIGINT, _ending_imports(line))
    try:
        from .application import run

        return run(words)
    except KeyboardInterrupt:
        sys.stderr.write(line())
        return STOPPED
    finally:
        if own:  # what is left to do is Python's, and has nothing to say
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_usual() -> bool:
    """Whether Ctrl-C does here what Python makes of it unless told otherwise."""
    main_thread = threading.current_thread() is threading.main_thread()
    return main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _ending_imports(line: Callable[[], str]) -> Callable[[int, FrameType | None], None]:
    """A handler of SIGINT that raises KeyboardInterrupt, or ends this process amid an import.

    Libraries that are being imported turn the exception into another one, or swallow it.
    """
    process = os.getpid()

    def heed(_number: int, frame: FrameType | None) -> None:
        if os.getpid() != process or not _importing(frame):
            raise KeyboardInterrupt
        clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # of a bar, which hides the cursor
        os.write(2, f"{clear}{line()}".encode())
        os._exit(STOPPED)

    return heed


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


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
