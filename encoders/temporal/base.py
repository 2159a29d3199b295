"""What every temporal encoder promises, and the registry that finds one by name."""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from vidllm.errors import InputError


class TemporalEncoder(nn.Module, ABC):
    """Mix the tokens of a clip over time; the number of tokens does not change.

    The valid outputs never depend on what stands at padded frames.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    @abstractmethod
    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch of clips.

        Args:
            x: (B, T, N, D) tokens, N of them a frame in raster order.
            seconds: (B, T) float, the time of every frame in seconds.
            mask: (B, T) bool, True at real frames; None when no frame is padding. The
                padding stands before or after the real frames of a clip.

        Returns:
            (B, T, N, D); padded frames come back as they were given.
        """

    def check(self, x: Tensor, seconds: Tensor, mask: Tensor | None) -> None:
        """Raise InputError when the shapes do not fit together."""
        if x.dim() != 4:
            raise InputError(f"a temporal encoder takes (B, T, N, D) tokens, not {tuple(x.shape)}")
        batch = tuple(x.shape[:2])
        if tuple(seconds.shape) != batch:
            raise InputError(
                f"seconds must be {batch} for these tokens, not {tuple(seconds.shape)}"
            )
        if mask is not None and (tuple(mask.shape) != batch or mask.dtype != torch.bool):
            raise InputError(
                f"mask must be bool {batch} for these tokens, not {mask.dtype} {tuple(mask.shape)}"
            )


_REGISTRY: dict[str, type[TemporalEncoder]] = {}
_E = TypeVar("_E", bound=type[TemporalEncoder])


def register_temporal(name: str) -> Callable[[_E], _E]:
    """Class decorator: make an encoder available as `get_temporal(name)`."""

    def add(cls: _E) -> _E:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def temporal_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


def get_temporal(name: str, dim: int, **options: Any) -> TemporalEncoder:
    """Build the encoder called `name` for tokens of width `dim`.

    Raises:
        InputError: no encoder or no option of that name; the message names close matches.
    """
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=2, cutoff=0.4) or temporal_names()
        raise InputError(f"no temporal encoder {name!r}: did you mean {' or '.join(close)}?")
    known = [p for p in inspect.signature(_REGISTRY[name]).parameters if p != "dim"]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=2, cutoff=0.4) or known or ["none"]
            raise InputError(
                f"temporal encoder {name!r} has no option {key!r}: it takes {', '.join(close)}"
            )
    return _REGISTRY[name](dim, **options)
