"""A vision encoder with its recognition head: clips in, logits of classes out, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vidllm.errors import InputError

from .base import VisionEncoder, get_vision
from .heads import build_head

_CONFIG, _WEIGHTS = "recogniser.json", "model.safetensors"


class Recogniser(nn.Module):
    """A vision encoder and the head that belongs to it.

    Args:
        encoder: name of `vision_names`; options: of the encoder.
        labels: names of the classes.
        head: "mean" or "query"; by default the encoder's own.

    Raises:
        InputError: an encoder or options that are not known, or fewer than two labels.
    """

    def __init__(
        self,
        encoder: str,
        labels: Sequence[str],
        options: dict[str, Any] | None = None,
        head: str = "",
    ) -> None:
        super().__init__()
        if len(set(labels)) < 2 or len(set(labels)) != len(labels):
            raise InputError("recognition needs two different labels or more")
        self.config = {
            "encoder": encoder,
            "labels": list(labels),
            "options": dict(options or {}),
            "head": head,
        }
        self.encoder: VisionEncoder = get_vision(encoder, **(options or {}))
        self.head = build_head(self.encoder, len(labels), head)

    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of clips, arguments as for a `VisionEncoder`."""
        return cast(Tensor, self.head(self.encoder(frames, seconds, mask)))

    def save(self, folder: str | Path) -> None:
        """Write the config and all weights (safetensors) to a folder."""
        from safetensors.torch import save_file

        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / _CONFIG).write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, out / _WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Recogniser:
        """What `save` wrote, in evaluation mode.

        Raises:
            InputError: a folder without a recogniser.
        """
        from safetensors.torch import load_file

        home = Path(folder)
        if not (home / _CONFIG).is_file() or not (home / _WEIGHTS).is_file():
            raise InputError(f"no recogniser in {home}: it needs {_CONFIG} and {_WEIGHTS}")
        model = cls(**json.loads((home / _CONFIG).read_text(encoding="utf-8")))
        model.load_state_dict(load_file(home / _WEIGHTS))
        return model.eval()
