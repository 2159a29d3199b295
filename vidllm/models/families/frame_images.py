"""Families that write a video as numbered images: which images are the frames of one video.

Such a prompt marks images and frames by the same id; the text before an image tells them apart,
"Frame3: " or "Frame from 00:02:". It takes the tokenizer to read it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from ..hooks.vision_tower import Sight
from .family import Adapter, Clip


class FramesAsImages(Adapter):
    """Base of these families."""

    modality = "image"
    label: ClassVar[str] = ""
    """A regular expression for all that stands between two frames of a video, without marks and
    white space; its groups are numbers that do not fall."""
    before: ClassVar[int] = 48
    """Ids before a run of image tokens in which the label is looked for."""

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        super().__init__(model, processor)
        if self.tokenizer is None:
            self.tokenizer = local_tokenizer(self.model, self.family)

    @property
    @abstractmethod
    def side(self) -> int:
        """Patches along a side of a frame."""

    @property
    @abstractmethod
    def fold(self) -> int:
        """Patches along a side of a token."""

    @property
    def cells(self) -> int:
        """Tokens along a side of a frame."""
        return self.side // self.fold

    def whole_grid(self) -> str:
        """Empty: the projector looks at the patches of one token only, so copies stand for
        merged ones."""
        return ""

    @staticmethod
    def pictures(inputs: Mapping[str, Any], sight: Sight | None) -> int:
        """How many pictures the vision tower is given, or was; those that only pad do not count."""
        made = (inputs.get("mm_encoder_outputs") or {}).get("image")
        made = made if sight is None else sight.output
        if made is not None:
            return len(made.last_hidden_state)
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return 0
        if pixels.dim() == 4:
            return len(pixels)
        return max(1, int((pixels != 0).flatten(2).any(-1).sum()))

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Runs of image tokens that stand behind the label of a frame."""
        clips: list[Clip] = []
        size, first = self.cells**2, 0
        token = self.config.image_token_id
        copies = self.copies(ids, token, self.pictures(inputs, sight) * size)
        for row, line in enumerate(ids[::copies]):
            places = torch.nonzero(line == token).flatten()
            cuts = torch.nonzero(places.diff() > 1).flatten() + 1
            runs = torch.tensor_split(places, cuts) if len(places) else ()
            video: list[tuple[Tensor, int]] = []
            last: tuple[int, ...] = (-1,)
            end = 0
            for run in runs:
                start = int(run[0])
                inside = self._between(line[max(end, start - self.before) : start])
                found = re.search(f"{self.label}$", inside) if len(run) == size else None
                number = tuple(map(int, found.groups())) if found else (-1,)
                # Nothing but the label stands between frames, and the labels count up.
                alone = found is not None and found.start() == 0 and start - end < self.before
                if not (alone and number >= last):
                    clips += self._clip(len(clips), row, line, video)
                    video = []
                if found:
                    video.append((run, first))
                last = number
                first, end = first + len(run), int(run[-1]) + 1
            clips += self._clip(len(clips), row, line, video)
        return [replace(clip, row=clip.row * copies + n) for clip in clips for n in range(copies)]

    def _between(self, ids: Tensor) -> str:
        """Text without marks such as <img> and without white space."""
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return re.sub(r"<[^<>]*>|\s", "", text)

    def _clip(
        self, number: int, row: int, line: Tensor, video: list[tuple[Tensor, int]]
    ) -> list[Clip]:
        if not video:
            return []
        starts = torch.stack([run[0] for run, _ in video])
        seconds, end = self._times(number, line, starts, None)
        tokens = VideoTokens.blank((len(video), self.cells, self.cells), seconds, end)
        slots = [torch.arange(first, first + len(run)) for run, first in video]
        where = torch.cat([run for run, _ in video])
        return [Clip(row, where, tokens, torch.cat(slots), tuple(seconds))]


def local_tokenizer(model: Any, family: str) -> Any:
    """The tokenizer beside the model's own weights, in its folder or in the hub's cache.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    name = str(getattr(model.config, "_name_or_path", "") or "")
    try:
        if name:
            return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError):
        pass
    raise InputError(
        f"{family} writes a video as numbered images and its tokenizer is not beside its weights: "
        "give compress(..., processor=processor), so that frames can be told from images"
    )
