"""Which method an engine or a request uses, how much it keeps, and what no engine can serve.

An engine takes its choice from the environment, which its worker processes inherit: the spec in
`VIDLLM_COMPRESSOR` and the share in `VIDLLM_KEEP`. A request may name others in its
`mm_processor_kwargs`, as "compressor" and "keep".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from vidllm.compressors import Compressor, build
from vidllm.compressors.shared.parts import Wrapper
from vidllm.encoders.vision.signals import SIGNALS
from vidllm.errors import InputError
from vidllm.errors.bounds import check, short
from vidllm.tokens import VideoTokens

#: Environment variables of an engine, and what they are called in a request.
COMPRESSOR, KEEP = "VIDLLM_COMPRESSOR", "VIDLLM_KEEP"
OPTIONS = ("compressor", "keep")
#: A clip on which a method is tried, (T, H, W): whatever is kept of it, several frames are.
_TRIAL = (16, 4, 4)
_WIDTH = 16


@dataclass(frozen=True)
class Choice:
    """A method by its spec, and the share of every video's tokens that it keeps.

    Attributes:
        spec: as `build` takes it, "none" for no compression.
        keep: in (0, 1]; None where the spec itself says how much stays.
    """

    spec: str = "none"
    keep: float | None = None

    @property
    def method(self) -> Compressor:
        """The method, the same object for equal choices: a learned one makes its module once."""
        return _method(self)

    def count(self, grid: tuple[int, int, int]) -> int:
        """Tokens that are left of a video of this grid (T, H, W) of tokens.

        Raises:
            InputError: a budget that cannot be met on such a grid.
        """
        return _count(self, grid)

    def pack(self) -> bytes:
        """The choice as it travels with a video from the front end to the engine."""
        return f"{self.spec}\n{'' if self.keep is None else repr(self.keep)}".encode()

    @classmethod
    def unpack(cls, data: bytes) -> Choice:
        """The choice that `pack` packed."""
        spec, _, keep = data.decode().partition("\n")
        return cls(spec, float(keep) if keep else None)

    def asked(self, options: Mapping[str, Any]) -> Choice:
        """The choice of a request, for what it names and else this one.

        Args:
            options: "compressor" and "keep", or neither.

        Raises:
            InputError: what cannot be served, by name and reason.
        """
        spec, keep = options.get("compressor"), options.get("keep")
        if spec is None and keep is None:
            return self
        if spec is not None and not isinstance(spec, str):
            raise InputError(f"compressor must be a name such as 'aim', not {short(spec)}")
        if keep is not None:
            check("keep", keep)
        if spec is not None and "weights" in spec:
            raise InputError("a request names no files: start the server with these weights")
        if spec is not None and spec.strip() == "none" and keep is None:
            return served("none", None)
        return served(
            spec if spec is not None else self.spec,
            float(keep) if keep is not None else self.keep,
        )


def from_environment() -> Choice | None:
    """The choice of an engine; None where the environment names no method.

    Raises:
        InputError: a share without a method, or what cannot be served, by name and reason.
    """
    spec, text = os.environ.get(COMPRESSOR, "").strip(), os.environ.get(KEEP, "").strip()
    if not spec:
        if text:
            raise InputError(f"{KEEP}={text} needs a method: set {COMPRESSOR}, for example to aim")
        return None
    keep: float | None = None
    if text:
        try:
            keep = float(text)
        except ValueError:
            raise InputError(f"{KEEP} must be a share such as 0.25, not {short(text)}") from None
        check("keep", keep, KEEP)
    return served(spec, keep)


@lru_cache(maxsize=256)
def served(spec: str, keep: float | None) -> Choice:
    """A choice that an engine can serve.

    Raises:
        InputError: a spec that is wrong, or what cannot be served, by name and reason.
    """
    choice = Choice(spec.strip(), keep)
    method = build(choice.spec, keep=1.0 if keep is None else keep)
    if keep is None and method.lacks_share():
        raise InputError(f"how much should '{method.name}' keep? Set {KEEP}, for example to 0.25")
    reason = refusal(method)
    if reason:
        raise InputError(f"{method.name} cannot be served by vLLM: {reason}")
    _try(choice)
    return choice


def refusal(method: Compressor) -> str:
    """Why no engine can serve a method; "" where one can."""
    if method.query_aware:
        return (
            "it reads the question, and an engine keeps a video's tokens for every question: "
            "choose a method that looks at the video alone"
        )
    if method.late:
        return (
            f"{method.late[0].name} acts inside the decoder, whose layers and KV cache are vLLM's "
            "own: choose a method that acts before it"
        )
    if method.in_tower is not None:
        return (
            "it merges inside the vision tower, which is vLLM's own: write "
            f"{method.in_tower.name}:tower=false, which merges behind it"
        )
    missing = [need for need in method.needs if need not in SIGNALS]
    if missing:
        return (
            f"it reads {' and '.join(missing)}, which vLLM does not give: choose a method that "
            "looks at the vision tower's output alone"
        )
    return ""


def _clip(grid: tuple[int, int, int], alike: bool = False) -> VideoTokens:
    """A clip of random tokens with the tower's signals, or of tokens that are all alike."""
    random, seconds = torch.Generator().manual_seed(0), [float(t) for t in range(grid[0])]
    features = torch.randn(*grid, _WIDTH, generator=random)
    features = features[:1, :1, :1].expand_as(features) if alike else features
    tokens = VideoTokens.from_grid(features, seconds, float(grid[0]))
    told = torch.rand(len(tokens), _WIDTH, generator=random)
    return tokens.with_signals(cls_attention=told[:, 0], vision_keys=told)


@lru_cache(maxsize=4096)
def _count(choice: Choice, grid: tuple[int, int, int]) -> int:
    method = choice.method
    if len(method.methods) > 1 or isinstance(method, Wrapper):
        return len(_built(choice)(_clip(grid)))  # parts of it may not fit the grid
    return method.goal(VideoTokens.blank(grid, [float(t) for t in range(grid[0])], float(grid[0])))


def _try(choice: Choice) -> None:
    """See on two clips that a method leaves a number that is known before, in time order."""
    name = choice.method.name
    for alike in (False, True):
        # One of its own: a learned method makes its module for the width that it meets first.
        after = _built(choice)(_clip(_TRIAL, alike))
        if len(after) != choice.count(_TRIAL):
            raise InputError(
                f"{name} cannot be served by vLLM: what it leaves depends on the video's content, "
                f"and a prompt's length is counted before the video is encoded: set {KEEP}"
            )
        if after.features.shape[1] != _WIDTH:
            raise InputError(f"{name} cannot be served by vLLM: it changes the width of tokens")
        if bool((after.position.diff() <= 0).any()):
            raise InputError(
                f"{name} cannot be served by vLLM: it must leave tokens in time order: leave out "
                "faithful"
            )


def _built(choice: Choice) -> Compressor:
    return build(choice.spec, keep=1.0 if choice.keep is None else choice.keep)


@lru_cache(maxsize=256)
def _method(choice: Choice) -> Compressor:
    return _built(choice)
