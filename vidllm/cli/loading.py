"""Start quickly: import the model's libraries without the garbage collector going over them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_kept() -> Iterator[None]:
    """For imports that stay until the process ends: what they make is never looked at for garbage.

    They make millions of objects. The collector would go over all of them several times while
    they are made, and again at the end of the process: a third of what a short command takes.
    Within a block of another nothing more is done.
    """
    if not gc.isenabled():
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()
