"""The frozen model that a head stands on, and what it sees in the scenes of the made world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.models.heads.frozen_frames import FrozenFrames, frozen_mark
from vidllm.models.heads.systems import load_start
from vidllm.models.shipped import default_model, shipped_models
from vidllm.stage.scenes import Scene
from vidllm.stage.tracks import tracks
from vidllm.stage.training.settings import TrainSettings, build_model
from vidllm.stage.training.trainee import paint

from .head_settings import HeadSettings

#: Where a model for trying out lies inside a training's folder.
TINY = "start"
_PART = 128  # frames painted at once


class Start:
    """A frozen model to stand on.

    Attributes:
        frozen: its features. tokenizer: of it. name: as a config names it. mark: of its weights.

    Args:
        settings: size "tiny" makes a random model in the training's folder, and "small" takes
            `init` or the shipped one. reads: which features.

    Raises:
        InputError: no such model.
    """

    def __init__(self, settings: HeadSettings, reads: str) -> None:
        self.tokenizer: PreTrainedTokenizerBase
        if settings.size == "tiny" and not settings.init:
            self.name = TINY
            folder = Path(settings.out) / TINY
            if not (folder / "config.json").is_file():
                _write_tiny(folder, settings.seed)
            model, self.tokenizer = load_start(str(folder))
        else:
            init = settings.init or default_model().name
            self.name = init if init in shipped_models() else str(Path(init).expanduser().resolve())
            model, self.tokenizer = load_start(self.name)
        self.mark = frozen_mark(model)
        cuda = torch.cuda.is_available() and settings.device in ("auto", "cuda")
        torch.nn.Module.to(model, device="cuda" if cuda else "cpu")
        self.frozen = FrozenFrames(model, reads)


def _write_tiny(folder: Path, seed: int) -> None:
    """A tiny model with random weights and an image transformer, for trying out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        told = TrainSettings(out="", size="tiny", vision="vit", compressors="none", keep=1.0)
        model, tokenizer = build_model(told)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def painted(scene: Scene, seconds: np.ndarray, size: int, seed: int) -> Tensor:
    """Frames (T, 3, size, size) in 0..1 of a scene as a file would show them, always the same."""
    shown = tracks(scene, seconds)
    row = {
        "state": shown.state,
        "glyph": shown.glyph,
        "background": shown.background,
        "noise": np.asarray(shown.noise, dtype=np.float32),
        "clock": shown.clock,
        "soft": np.asarray(shown.small),
        "seconds": np.asarray(seconds, dtype=np.float32),
    }
    batch = {name: torch.from_numpy(np.asarray(value))[None] for name, value in row.items()}
    along = ("state", "clock", "seconds")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = []
        for first in range(0, len(seconds), _PART):
            cut = slice(first, first + _PART)
            part = {k: v[:, cut] if k in along else v for k, v in batch.items()}
            parts.append(paint(part, size, noisy=True))
    return torch.cat(parts)


def seen(frozen: FrozenFrames, scene: Scene, seconds: np.ndarray, seed: int) -> Tensor:
    """(T, D) features of a scene at seconds (T,), as its file would give them."""
    frames = painted(scene, seconds, frozen.size, seed)
    return frozen(frames, torch.from_numpy(np.asarray(seconds, dtype=np.float32)))
