"""Frames to tokens for an index: what is already known is not encoded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.encoders.temporal import TemporalEncoder
from vidllm.errors import InputError
from vidllm.models.native.model import NativeVideoLLM

_PROBE = 16  # one of so many frames that were not encoded is encoded after all, to state the error
_AT_ONCE = 16  # frames in the vision tower at once: more are hardly faster, and take more memory


@dataclass
class Encoded:
    """Tokens of a block.

    Attributes:
        tokens: (R, N, D) of the frames that were encoded. row: (F,) which of them each frame has.
        error: the largest relative error of tokens that stand for another frame, of those probed.
    """

    tokens: Tensor
    row: Tensor
    error: float


@torch.inference_mode()
def encode_block(
    model: NativeVideoLLM, pixels: Tensor, near: float, tower: Compressor | None = None
) -> Encoded:
    """Tokens of frames, those that look like the last encoded one left out.

    Args:
        pixels: (F, 3, S, S) in 0..1. near: mean absolute difference of pixels, in levels of 255,
            up to which a frame counts as the same; 0 for equal pixels only.
        tower: what merges tokens inside the vision tower; all places keep a token.
    """
    new: list[int] = []
    row = torch.zeros(len(pixels), dtype=torch.int32)
    for at, frame in enumerate(pixels):
        if new and float((frame - pixels[new[-1]]).abs().mean()) * 255 <= near:
            row[at] = len(new) - 1
            continue
        row[at] = len(new)
        new.append(at)
    if not new:
        return Encoded(torch.zeros(0, model.grid_side**2, width(model)), row, 0.0)
    tokens = _tokens(model, pixels[new], tower)
    error = 0.0
    skipped = [at for at in range(len(pixels)) if at not in set(new)][::_PROBE] if near else []
    if skipped:
        true = _tokens(model, pixels[skipped], tower)
        taken = tokens[row[skipped].long().to(tokens.device)]
        error = float(((true - taken).norm(dim=-1) / true.norm(dim=-1).clamp_min(1e-6)).max())
    return Encoded(tokens, row, error)


def _tokens(model: NativeVideoLLM, pixels: Tensor, tower: Compressor | None) -> Tensor:
    made = []
    for part in pixels.to(model.device).split(_AT_ONCE):
        inside = None if tower is None else model.tower_part(tower, len(part))[0]
        made.append(model.project(part) if inside is None else model.project_merged(part, inside))
    return torch.cat(made)


@torch.inference_mode()
def check_tower(model: NativeVideoLLM, method: Compressor) -> None:
    """See that a method merges inside the model's tower, on an empty picture.

    Raises:
        InputError: it does not, and why.
    """
    inside = model.tower_part(method, _AT_ONCE)[0]
    if inside is None or len(method.methods) > 1:
        raise InputError(
            f"{method.name} does not merge inside this vision tower: give one of tome, pyra, "
            "tempme, mustdrop with a share below 1, such as tome:keep=0.5"
        )
    size = model.vision.image_size
    _tokens(model, torch.zeros(_AT_ONCE, 3, size, size), method)


def width(model: NativeVideoLLM) -> int:
    """Numbers in a token."""
    return int(model.language_model.config.hidden_size)


class Carried:
    """The temporal encoders of a model over a video of any length, where they can stream."""

    def __init__(self, model: NativeVideoLLM) -> None:
        self.encoders: list[TemporalEncoder] = list(model.temporal)  # type: ignore[arg-type]
        self.states: list[Any] = [None] * len(self.encoders)

    @classmethod
    def of(cls, model: NativeVideoLLM) -> Carried | None:
        """None where an encoder reads backwards too: it then mixes window by window."""
        if not len(model.temporal) or not all(e.streams for e in model.temporal):
            return None
        return cls(model)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, seconds: Tensor) -> Tensor:
        """The next frames (F, N, D) at (F,) seconds; there may be none."""
        if not len(tokens):
            return tokens
        x, times = tokens[None], seconds[None].to(tokens.device)
        for at, encoder in enumerate(self.encoders):
            x, self.states[at] = encoder.stream(x, times, self.states[at])
        return x[0]
