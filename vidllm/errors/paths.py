"""Paths from outside: looked at before work begins, where something is read or will be written.

Every command and every public function that takes a path asks here. A path that cannot serve is
an `InputError` of one line that names it; nothing here opens a pipe or a device, so nothing hangs.
Imports the errors only, so that the command line starts at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

from . import InputError
from .printable import printable

PathLike: TypeAlias = str | os.PathLike[str]

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# RFC 3986, 3.1; two letters at least: "C:/film.mp4" is a path. A `Path` keeps one slash only.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LONGEST = 160  # signs of a path that a message shows


def shown(path: object) -> str:
    """A path for a message: what no terminal prints is escaped, what is long is cut."""
    text = os.fsdecode(path) if isinstance(path, (bytes, str, os.PathLike)) else str(path)
    text = printable(text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def reason(error: OSError) -> str:
    """What the system says, as the end of a sentence."""
    words = error.strerror or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]


def look(path: PathLike, what: str = "the path", use: str = "read") -> os.stat_result | None:
    """What is at a path, links followed; None where nothing is.

    Args:
        what: the path is, for a message about an empty one. use: what is to be done with it.

    Raises:
        InputError: a path that cannot be: empty, too long, with a null character, through a file,
            a link to nothing or to itself, or in a folder that may not be entered.
    """
    text = os.fspath(path)
    if not text:
        raise InputError(f"{what} is empty: give a path")
    try:
        return Path(text).stat()
    except FileNotFoundError:
        if Path(text).is_symlink():
            why = "it is a link to what is not there"
        else:
            return None
    except NotADirectoryError:
        if use == "read":
            return None
        why = "a part of the path is no folder"
    except ValueError:  # also UnicodeEncodeError
        why = "no path may hold such a sign"
    except PermissionError:
        why = "permission denied, check the folders on the way"
    except OSError as error:
        why = reason(error)
    raise InputError(f"{shown(text)} cannot be {use}: {why}")


def is_file(path: PathLike) -> bool:
    """Whether a regular file is there; False for a path that cannot be."""
    try:
        found = look(path)
    except InputError:
        return False
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: PathLike) -> bool:
    """Whether a folder is there; False for a path that cannot be."""
    try:
        found = look(path)
    except InputError:
        return False
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_address(path: PathLike) -> bool:
    """Whether a path reads as an address of the network, such as "https://…"."""
    return _ADDRESS.match(os.fspath(path)) is not None


def input_file(path: PathLike, what: str = "file", *, missing: str = "") -> Path:
    """The path of a file that can be read and is not empty.

    Args:
        what: should be there, such as "video file". missing: the line where nothing is there.

    Raises:
        InputError: it is not; one line says why.
    """
    text = os.fspath(path)
    if is_address(text) and look(text) is None:
        raise InputError(f"{shown(text)}: URLs are not fetched: download it and give the file")
    found = look(path, f"the path of the {what}")
    if found is None:
        raise InputError(missing or f"{shown(path)}: no such file")
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{shown(path)} is a folder: give one {what}")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{shown(path)} is {_kind(found)}, not a regular file: give one {what}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)} may not be read: check its permissions")
    if not found.st_size:
        raise InputError(f"{shown(path)} is empty")
    return Path(path)


def input_folder(path: PathLike, what: str = "folder") -> Path:
    """The path of a folder that can be read.

    Args:
        what: should be there, such as "--data".

    Raises:
        InputError: it is not; one line says why.
    """
    found = look(path, what)
    if found is None:
        raise InputError(f"{what} {shown(path)} is no folder: it is not there")
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{what} {shown(path)} is no folder: it is {_kind(found)}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{what} {shown(path)} may not be read: check its permissions")
    return Path(path)


def output_file(path: PathLike, what: str = "--out", *, beside: str = "") -> Path:
    """The path of a file that can be written, made or not; nothing is left behind.

    Args:
        what: asks for it, such as "--out". beside: the longest ending that a name beside it gets
            while it is made.

    Raises:
        InputError: it cannot; one line says why.
    """
    found = look(path, what, f"written ({what})")
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{what} {shown(path)} is a folder: give a file")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{what} {shown(path)} is {_kind(found)}: give a regular file")
        if not os.access(path, os.W_OK):
            raise InputError(f"{what} {shown(path)} may not be written: check its permissions")
    if beside:
        look(os.fspath(path) + beside, what, f"written ({what})")
    _writable(Path(path).absolute().parent, path, what)
    return Path(path)


def output_folder(path: PathLike, what: str = "--out") -> Path:
    """The path of a folder that can be written into, made or not; nothing is left behind.

    Raises:
        InputError: it cannot; one line says why.
    """
    found = look(path, what, f"written ({what})")
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{what} {shown(path)} is {_kind(found)}: give a folder")
    _writable(Path(path).absolute(), path, what)
    return Path(path)


def _writable(folder: Path, path: PathLike, what: str) -> None:
    """See that a file can be made in a folder, or in the nearest one above it that is there."""
    for place in (folder, *folder.parents):
        found = look(place, what, f"written ({what})")
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise InputError(
                f"{what} {shown(path)} cannot be written: {shown(place)} is {_kind(found)}"
            )
        try:
            handle, name = tempfile.mkstemp(prefix=".vidllm-", dir=place)
            os.close(handle)
        except OSError as error:
            raise InputError(f"{what} {shown(path)} cannot be written: {reason(error)}") from error
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return


def _kind(found: os.stat_result) -> str:
    return next((words for test, words in _KINDS if test(found.st_mode)), "a file")


def option(parameter: Any) -> str:
    """How a command calls one of its parameters: "--out", or "DIR" for an argument."""
    names = [name for name in getattr(parameter, "opts", ()) if name.startswith("--")]
    if names:
        return str(names[0])
    words = getattr(parameter, "metavar", None) or getattr(parameter, "name", None) or "the path"
    return str(words).removesuffix("...")
