"""Encoders: `vision` turns frames into token grids, `temporal` lets the frames talk, `heads` read.

Light on purpose: the packages (and torch with them) load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["heads", "temporal", "vision"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
