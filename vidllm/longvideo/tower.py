"""Frames to tokens for an index: what is already known is not encoded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.encoders.temporal import TemporalEncoder
from vidllm.errors import InputError
from vidllm.models.engine import Engine
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.model import NativeVideoLLM

from .encoders import FrameEncoder, NativeEncoder, carries

_PROBE = 16  # one of so many frames that were not encoded is encoded after all, to state the error


@dataclass
class Encoded:
    """Tokens of a block.

    Attributes:
        tokens: (R, N, D) of the groups that were encoded. row: (F,) which of them each frame has.
        error: the largest relative error of tokens that stand for another frame, of those probed.
    """

    tokens: Tensor
    row: Tensor
    error: float


@torch.inference_mode()
def encode_block(encoder: FrameEncoder, pixels: Tensor, near: float) -> Encoded:
    """Tokens of frames, those that look like the last encoded ones left out.

    Args:
        pixels: (F, ...) in 0..1, or bytes; F is a multiple of the encoder's step, and a group of
            so many frames is one. near: mean absolute difference of pixels, in levels of 255, up
            to which a group counts as the same; 0 for equal pixels only.
    """
    step = encoder.step
    groups = pixels.unflatten(0, (-1, step)) if len(pixels) else pixels[:, None]
    new: list[int] = []
    row = torch.zeros(len(groups), dtype=torch.int32)
    for at, group in enumerate(groups):
        if new and _levels(group, groups[new[-1]]) <= near:
            row[at] = len(new) - 1
            continue
        row[at] = len(new)
        new.append(at)
    if not new:
        return Encoded(torch.zeros(0, encoder.cells, encoder.width), row, 0.0)
    tokens = encoder.tokens(groups[new].flatten(0, 1))
    error = 0.0
    skipped = [at for at in range(len(groups)) if at not in set(new)][::_PROBE] if near else []
    if skipped:
        true = encoder.tokens(groups[skipped].flatten(0, 1))
        taken = tokens[row[skipped].long().to(tokens.device)]
        error = float(((true - taken).norm(dim=-1) / true.norm(dim=-1).clamp_min(1e-6)).max())
    return Encoded(tokens, row.repeat_interleave(step), error)


def _levels(one: Tensor, other: Tensor) -> float:
    """The mean absolute difference of pixels in levels of 255."""
    if one.dtype == torch.uint8:
        return float((one.short() - other.short()).abs().float().mean())
    return float((one - other).abs().mean()) * 255


@torch.inference_mode()
def check_tower(engine: Engine, method: Compressor) -> None:
    """See that a method merges inside the model's tower, on an empty picture.

    Raises:
        InputError: it does not, and why.
    """
    if not isinstance(engine, NativeEngine):
        raise InputError(
            f"{method.name} inside the vision tower is for vidllm's own models: leave out --tower, "
            f"since an index of {engine.family} holds what its tower makes of whole frames"
        )
    model, count = engine.model, 16
    inside = model.tower_part(method, count)[0]
    if inside is None or len(method.methods) > 1:
        raise InputError(
            f"{method.name} does not merge inside this vision tower: give one of tome, pyra, "
            "tempme, mustdrop with a share below 1, such as tome:keep=0.5"
        )
    size = model.vision.image_size
    NativeEncoder(engine, method).tokens(torch.zeros(count, 3, size, size))


class Carried:
    """The temporal encoders of a model over a video of any length, where they can stream."""

    def __init__(self, model: NativeVideoLLM) -> None:
        self.encoders: list[TemporalEncoder] = list(model.temporal)  # type: ignore[arg-type]
        self.states: list[Any] = [None] * len(self.encoders)

    @classmethod
    def of(cls, model: NativeVideoLLM) -> Carried | None:
        """None where an encoder reads backwards too: it then mixes window by window."""
        return cls(model) if carries(model) else None

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, seconds: Tensor) -> Tensor:
        """The next frames (F, N, D) at (F,) seconds; there may be none."""
        if not len(tokens):
            return tokens
        x, times = tokens[None], seconds[None].to(tokens.device)
        for at, encoder in enumerate(self.encoders):
            x, self.states[at] = encoder.stream(x, times, self.states[at])
        return x[0]
