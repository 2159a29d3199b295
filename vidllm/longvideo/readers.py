"""Who asks an index: windows with the project's own models, looks with those of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from vidllm.models.families.engine import HubEngine
from vidllm.models.native.engine import NativeEngine

from .answering import IndexContents, Reader
from .looking import LookReader
from .many import Many
from .many_looks import ManyLooks


def reader_of(index: IndexContents, engine: NativeEngine | HubEngine) -> Reader | LookReader:
    """What asks one index.

    Raises:
        InputError: the index's compressor cannot be made.
    """
    return LookReader(index, engine) if isinstance(engine, HubEngine) else Reader(index, engine)


def many_of(
    readers: Sequence[Reader | LookReader], engine: NativeEngine | HubEngine
) -> Many | ManyLooks:
    """What asks many indexes of one model at once; `readers` are those of `reader_of`."""
    if isinstance(engine, HubEngine):
        return ManyLooks(cast(Sequence[LookReader], readers), engine)
    return Many(cast(Sequence[Reader], readers), engine.model)
