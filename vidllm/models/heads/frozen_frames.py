"""The frozen part of one of our own models: frames in, one feature a frame out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.encoders.vision import VisionEncoder, to_pixels
from vidllm.errors import InputError

from ..native.footage import KnownFootage
from ..native.model import NativeVideoLLM

if TYPE_CHECKING:
    from vidllm.video import VideoClip

#: What can be read: the tower's cells; tokens of the projector, in the LLM's space and without
#: time; the same behind the temporal encoders.
READS = ("cells", "tokens", "mixed")
_PART = 64  # frames at once


@dataclass(frozen=True)
class FrozenFrames:
    """Reads features off a model that learns nothing any more.

    A feature is the mean over the places of a frame, each brought to unit variance first. Tokens
    lie in the space of the LLM's word embeddings, for the model was trained to read off them with
    these what is shown.

    Args:
        model: one of our own. reads: of `READS`.
        footage: what footage it knows; None for a model that makes no claim.

    Raises:
        InputError: something else to read, or a tower that sees whole clips.
    """

    model: NativeVideoLLM
    reads: str = "mixed"
    footage: KnownFootage | None = None

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise InputError(f"features are one of {', '.join(READS)}, not {self.reads!r}")
        if isinstance(self.model.vision, VisionEncoder):
            raise InputError(
                f"a feature a frame needs a tower of single frames, not {self.model.vision.name}"
            )

    @property
    def width(self) -> int:
        """Of a feature."""
        if self.reads == "cells":
            return int(self.model.vision.hidden_size)
        return int(self.model.config.text["hidden_size"])

    @property
    def size(self) -> int:
        """Pixels of a side of the frames."""
        return int(self.model.vision.image_size)

    def __call__(self, frames: Tensor, seconds: Tensor) -> Tensor:
        """Frames (T, 3, S, S) in 0..1 at seconds (T,) to features (T, width) float32, no graph."""
        return self.features(self.rows(frames), seconds)

    @torch.no_grad()
    def rows(self, frames: Tensor) -> Tensor:
        """Frames (T, 3, S, S) in 0..1 to what is read of each alone (T, N, width)."""
        model = self.model
        weight = next(model.projector.parameters())
        look = model.vision if self.reads == "cells" else model.project
        return torch.cat(
            [look(part) for part in frames.to(weight.device, weight.dtype).split(_PART)]
        )

    @torch.no_grad()
    def features(self, rows: Tensor, seconds: Tensor) -> Tensor:
        """Of all frames of a clip, `rows` (T, N, width) at seconds (T,), to (T, width) float32."""
        if self.reads == "mixed":
            times = seconds.to(rows.device, torch.float32)
            rows = self.model.mix(rows[None], times[None])[0]
        rows = rows.float()
        return F.layer_norm(rows, rows.shape[-1:]).mean(1)

    def of_clip(self, clip: VideoClip) -> Tensor:
        """(T, width): the features of a clip's frames at its own seconds."""
        frames = torch.from_numpy(clip.frames.copy()).split(_PART)
        pixels = torch.cat([to_pixels(part.to(self.model.device), self.size) for part in frames])
        seconds = np.asarray(clip.seconds - clip.start, dtype=np.float32)
        return self(pixels, torch.from_numpy(seconds))

    def words(self) -> Tensor:
        """(words, dim) the LLM's word embeddings, apart from its weights."""
        table: Tensor = self.model.language_model.get_input_embeddings().weight
        return table.detach().float().cpu().clone()


def frozen_mark(model: NativeVideoLLM) -> str:
    """A hash of what is frozen: the weights of tower, projector and temporal encoders.

    As bfloat16, in which models are kept, so that it does not depend on how one was loaded.
    """
    digest = hashlib.sha256()
    for module in (model.vision, model.projector, model.temporal):
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            kept = value.detach().to("cpu", torch.bfloat16).contiguous().reshape(-1)
            digest.update(kept.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
