"""What to say where a file cannot be written."""

from __future__ import annotations

import errno
import re

from vidllm.errors import WorkError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
}


def unwritten(place: object, error: Exception) -> WorkError:
    """One line on a file or folder that cannot be written, a full disk named first.

    Args:
        error: an OSError, or what a library made of one ("… (os error 28)").
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    reason = getattr(error, "strerror", None) or str(error)
    if number in _FULL:
        return WorkError(f"{_FULL[number]}: {place} cannot be written")
    return WorkError(f"{place} cannot be written: {reason}")
