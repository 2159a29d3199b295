"""Temporal encoders between a hub model's projector and its decoder, and their file.

STORM (arXiv 2503.04130) reads the projected tokens of a clip over time before it pools them. Here
the encoders stand in a model that was trained without: they begin as the identity, are trained
beside it or alone, and are kept as a small safetensors file of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vidllm.encoders.temporal import get_temporal
from vidllm.errors import InputError
from vidllm.errors.disk import unwritten
from vidllm.errors.schema import Anything, Array, Integer, Object, String, damage, parse, validate
from vidllm.errors.writing import whole_file
from vidllm.tokens import VideoTokens

from ..tuned import TEMPORAL as FILE

_KIND, _FORMAT = "vidllm-temporal", 1
_ADVICE = "get the adapter again"
#: What stands as JSON in the header.
_HEADER = Object(
    {
        "format": Integer(1),
        "encoders": Array(Object({"name": String(longest=100)}, other=Anything()), 1, 64),
        "width": Integer(1, 2**20),
        "model_type": String(longest=100),
        "recipe": String(longest=100),
    }
)


class TemporalAdapter(nn.Module):
    """Temporal encoders for the tokens of one model; new ones are the identity.

    They run in float32 where the model does not, since small steps of training are lost in half
    precision.

    Args:
        encoders: in order, each {"name": …, options} of `vidllm.encoders.temporal`.
        width: of the decoder's embeddings. model_type: of the model.
        recipe: the system that they are a part of, "" for none.

    Raises:
        InputError: an unknown encoder or option, or one that changes the model before it is
            trained.
    """

    def __init__(
        self,
        encoders: Sequence[Mapping[str, Any]],
        width: int,
        model_type: str,
        recipe: str = "",
    ) -> None:
        super().__init__()
        self.specs = [dict(spec) for spec in encoders]
        self.width, self.model_type, self.recipe = width, model_type, recipe
        try:
            made = [get_temporal(**{"dim": width, **spec}) for spec in self.specs]
        except InputError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:  # an option that is no number
            raise InputError(f"temporal encoder {' and '.join(self.names)}: {error}") from error
        self.encoders = nn.ModuleList(module.float() for module in made)

    @property
    def names(self) -> tuple[str, ...]:
        """Of its encoders, in order."""
        return tuple(str(spec["name"]) for spec in self.specs)

    @torch.no_grad()
    def check_new(self) -> None:
        """See that the encoders are the identity before training.

        Raises:
            InputError: one is not.
        """
        x = torch.linspace(-1, 1, 12 * self.width).view(1, 3, 4, self.width)
        if not torch.equal(self._mixed(x, torch.arange(3.0)[None]), x):
            raise InputError(
                f"temporal encoder {' and '.join(self.names)} is not the identity before it is "
                "trained, so it would change what the model says: leave out zero_init"
            )

    def check_model(self, width: int, model_type: str) -> None:
        """See that it was made for a model.

        Raises:
            InputError: it was made for another one.
        """
        if (width, model_type) != (self.width, self.model_type):
            raise InputError(
                f"this temporal encoder was made for a {self.model_type} of width {self.width}, "
                f"and the model is a {model_type} of width {width}: load it on its own model"
            )

    def forward(self, features: Tensor, tokens: VideoTokens, seconds: Sequence[float]) -> Tensor:
        """Encode one video.

        Args:
            features: (L, D) of its tokens. tokens: their places; cells of the grid may be missing.
            seconds: (T,) of the frames of the grid.

        Returns:
            (L, D) in the dtype of `features`.
        """
        frames, rows, columns = tokens.grid
        place = tokens.position
        grid = features
        if len(place) < tokens.total:
            grid = features[_nearest(place, frames, rows * columns).to(features.device)]
        own = next(iter(self.parameters()), features)
        x = grid.to(own.device, torch.promote_types(own.dtype, torch.float32))
        times = torch.tensor([list(seconds)], dtype=torch.float32, device=x.device)
        mixed = self._mixed(x.view(1, frames, rows * columns, -1), times).flatten(0, 2)
        return mixed.to(features)[place.to(features.device)]

    def _mixed(self, x: Tensor, seconds: Tensor) -> Tensor:
        for encoder in self.encoders:
            x = encoder(x, seconds)
        return x

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `temporal.safetensors` into a folder, which is made.

        Raises:
            WorkError: it cannot be written.
        """
        path = Path(folder) / FILE
        told = {
            "format": _FORMAT,
            "encoders": self.specs,
            "width": self.width,
            "model_type": self.model_type,
            "recipe": self.recipe,
        }
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                part.write_bytes(save(state, {_KIND: json.dumps(told)}))
        except (OSError, SafetensorError) as error:
            raise unwritten(path, error) from error
        return path

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> TemporalAdapter:
        """What `save_pretrained` wrote, from its folder or file.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = Path(place) / FILE if Path(place).is_dir() else Path(place)
        if not path.is_file():
            raise InputError(f"no temporal encoder in {place}: {FILE} is missing")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = dict(file.metadata() or {})
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise InputError(damage(path, "it is no whole safetensors file", _ADVICE)) from error
        if _KIND not in header:
            raise InputError(f"{path} holds no temporal encoder of vidllm")
        told = parse(header[_KIND], path, _ADVICE)
        validate(told, _HEADER, path, _ADVICE)
        if told["format"] != _FORMAT:
            raise InputError(f"{path} was written by another version of vidllm: {_ADVICE}")
        made = cls(told["encoders"], told["width"], told["model_type"], told["recipe"])
        try:
            made.load_state_dict(state)
        except RuntimeError as error:
            reason = "its weights do not fit its encoders"
            raise InputError(damage(path, reason, _ADVICE)) from error
        return made


def _nearest(place: Tensor, frames: int, cells: int) -> Tensor:
    """For every cell of a grid (T * N,) which of the tokens at `place` (L,) stands for it.

    A cell that a family's own choice left out is as it was in the last frame that has it (or, at
    the beginning, as in the first one).
    """
    own = torch.full((frames * cells,), -1)
    own[place] = torch.arange(len(place))
    table = own.view(frames, cells)
    when = torch.where(table >= 0, torch.arange(frames)[:, None], -1).cummax(0).values
    first = (table >= 0).int().argmax(0)
    when = torch.where(when < 0, first, when)
    return table.gather(0, when).flatten().clamp(min=0)
