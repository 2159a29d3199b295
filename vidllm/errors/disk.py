"""What to say where a file cannot be written."""

from __future__ import annotations

import errno
import re

from . import WorkError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
}


_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class UnwrittenError(WorkError):
    """A file or folder cannot be written.

    Attributes:
        remedy: what to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def unwritten(place: object, error: Exception) -> UnwrittenError:
    """One line on a file or folder that cannot be written, a full disk named first.

    Args:
        error: an OSError, or what a library made of one ("… (os error 28)").
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    reason = getattr(error, "strerror", None) or str(error)
    if number in _FULL:
        return UnwrittenError(f"{_FULL[number]}: {place} cannot be written", "make room")
    remedy = "allow it to be written" if number in _CLOSED else "see to that"
    return UnwrittenError(f"{place} cannot be written: {reason}", remedy)
