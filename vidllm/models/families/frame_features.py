"""A video's features group by group: what the tower makes of a few frames, kept, and clips of it.

Most towers look at frames one by one, or at pairs of them (`FrameGroups.step`), whatever stands
before and behind. What they make of a group can then be kept and put together to any clip later:
the decoder is given what it would be given of these frames. Prompt and positions are made anew for
every clip, with the seconds of its own frames. Whether a tower is of this kind is tried on noise
(`FrameFeatures.probed`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.compressors import build
from vidllm.errors import InputError
from vidllm.video import Limits, VideoClip

from ..engine import compressed_once
from ..question import positions_of
from .clips import PIXELS, HubClip
from .engine import HubEngine
from .pixels import pixels_of, tokens_per_frame

_NEAR = {torch.float32: 1e-3}  # by how much equal features differ where others stand beside them
_NEAR_HALF = 3e-2
_PART = 0.75  # of the decoder's positions that the video of a clip may take
_MOST = 4  # times the usual frames: more are not worth it (docs/long-video.md, Measured)


@dataclass(frozen=True)
class FrameGroups:
    """How a model sees the frames of one video.

    Attributes:
        height, width: of the video's frames in pixels.
        frames: of a clip; all clips have as many, since some families scale frames by their number.
        step: frames of a group. rows, columns: of its tokens.
        tokens: what the tower makes of a group. extra: what it adds behind all groups.
    """

    height: int
    width: int
    frames: int
    step: int
    rows: int
    columns: int
    tokens: int
    extra: int

    @property
    def groups(self) -> int:
        """Of a clip; the last one may lack frames, and its last one stands still then."""
        return -(-self.frames // self.step)


class FrameFeatures:
    """Takes a model's vision features apart by groups of frames, and puts clips together of them.

    Args:
        engine: of the model. shape: as `probed` found it for the video.

    Attributes:
        engine: the same model with a memory of its own, which knows the clips that it puts
            together.

    Raises:
        InputError: a library that takes no features of its own making.
    """

    def __init__(self, engine: HubEngine, shape: FrameGroups) -> None:
        self.engine, self.shape = plain_twin(engine), shape
        self._memory = self.engine.memory
        self._fixed = _steady(self.engine, shape.height, shape.width, shape.step, shape.frames)
        self._template: Any = None
        self._pixels: dict[str, Any] | None = None

    @classmethod
    def probed(
        cls, engine: HubEngine, height: int, width: int, frames: int, moments: int
    ) -> FrameFeatures:
        """For a video of this size, once the tower was tried on noise.

        Args:
            frames: of a clip at most. moments: frames that the video has; clips that do not hold
                all of them have whole groups.

        Raises:
            InputError: a tower whose features of a frame depend on other frames.
        """
        twin = plain_twin(engine)
        step = 4 // _grid(twin, height, width, 4)[0]
        if frames < moments:
            frames = max(step, frames - frames % step)
        _, rows, columns = _grid(twin, height, width, frames)
        shape = FrameGroups(height, width, frames, step, rows, columns, rows * columns, 0)
        made = cls(engine, shape)
        made.shape = made._tried()
        made._found()
        return made

    @property
    def width(self) -> int:
        """Numbers of a stored token: its embedding, and DeepStack's planes behind it."""
        return int(self._output()[1])

    def damage(self) -> str:
        """Which fact of a stored shape is not what the model makes, "" where all are."""
        shape = self.shape
        if shape.step != 4 // _grid(self.engine, shape.height, shape.width, 4)[0]:
            return "field clip.step"
        found = _grid(self.engine, shape.height, shape.width, shape.frames)
        if found != (shape.groups, shape.rows, shape.columns):
            return "field clip"
        with torch.inference_mode():
            blank = torch.zeros(shape.step, shape.height, shape.width, 3, dtype=torch.uint8)
            rows = len(self._through(blank)[0]) if self._fixed else shape.tokens + shape.extra
        return "" if rows == shape.tokens + shape.extra else "field clip.tokens"

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """(G, n, W) of the groups of (F, H, W, 3) uint8 frames; F is a multiple of the step."""
        shape, made = self.shape, []
        for part in frames.split(shape.groups * shape.step):
            count = len(part) // shape.step
            rows, _ = self._through(part if self._fixed else self._filled(part))
            made.append(rows[: count * shape.tokens].unflatten(0, (count, shape.tokens)))
        return torch.cat(made)

    @torch.inference_mode()
    def clip(
        self,
        groups: Tensor,
        seconds: np.ndarray,
        duration: float,
        start: float = 0.0,
        end: float | None = None,
        pace: float | None = None,
    ) -> tuple[VideoClip, HubClip]:
        """A clip of stored groups, which `engine` takes as one that went through the tower.

        Args:
            groups: (G, n, W) of a whole clip. seconds: (T,) of its frames.
            duration: of the video; start, end: of what is looked at.
            pace: seconds from group to group where they are not those between the frames.
        """
        shape = self.shape
        own = self._memory.processor is not None
        size = (shape.height, shape.width) if own else (1, 1)
        clip = _clip(np.zeros((len(seconds), *size, 3), np.uint8), seconds, duration, start, end)
        pixels = None if own else self._arguments()
        video = self._memory.put(clip, self._joined(groups), pixels)
        if pace is not None:
            video.placed = replace(video.placed, pace=pace)
        return clip, video

    def remember(self, video: HubClip) -> None:
        """Let `engine` know a clip again that was put together before others."""
        self._memory.put_back(video)

    def _arguments(self) -> dict[str, Any]:
        """The model's arguments for any clip, where the family's own processor is not asked."""
        if self._pixels is None:
            shape, engine = self.shape, self.engine
            blank = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
            frames = blank.expand(shape.frames, shape.height, shape.width, 3)
            made = pixels_of(engine.kind, frames, engine.memory.options)
            self._pixels = {name: x for name, x in made.items() if name not in PIXELS}
        return self._pixels

    def _filled(self, frames: Tensor) -> Tensor:
        """As many frames as a clip has: the last one stands still, or is left out where it did."""
        short = max(0, self.shape.frames - len(frames))
        still = frames[-1:].expand(short, *frames.shape[1:])
        return torch.cat([frames, still])[: self.shape.frames]

    def _through(self, frames: Tensor) -> tuple[Tensor, Any]:
        """What the tower makes of frames: rows (R, W), and its own output."""
        video = self._memory.open(_clip(frames.numpy(), np.arange(float(len(frames)))))
        encoder = self._memory.encoder()
        if encoder is None:
            raise InputError(NO_FEATURES.format(self.engine.family))
        with compressed_once(self.engine.worked_on):  # whose hooks would change what is kept
            self._memory.see(video, encoder)
        output = video.output
        planes = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        return torch.cat([_rows(plane) for plane in planes], dim=-1), output

    def _output(self) -> tuple[Any, int, Tensor]:
        """The tower's output of two groups, the width of its rows, and those behind all groups."""
        if self._template is None:
            shape = self.shape
            blank = torch.zeros(2 * shape.step, shape.height, shape.width, 3, dtype=torch.uint8)
            with torch.inference_mode():
                rows, output = self._through(blank)
            kept = copy.copy(output)
            for name in list(kept.keys()):
                if name not in ("pooler_output", "deepstack_features", "last_hidden_state"):
                    kept[name] = None
            self._template = kept, rows.shape[1], rows[len(rows) - shape.extra :]
        found: tuple[Any, int, Tensor] = self._template
        return found

    def _joined(self, groups: Tensor) -> Any:
        """Stored groups as the tower's output of their clip."""
        template, _, extra = self._output()
        count, output = len(groups), copy.copy(template)
        rows = torch.cat([groups.flatten(0, 1).to(extra), extra])
        deep = list(template.get("deepstack_features") or ())
        planes = rows.chunk(1 + len(deep), dim=-1)
        output["pooler_output"] = _like(template.pooler_output, planes[0], count)
        if deep:
            told = [_like(had, plane, count) for had, plane in zip(deep, planes[1:], strict=True)]
            output["deepstack_features"] = told
        # Of this only the number of pictures is read.
        output["last_hidden_state"] = rows.new_zeros(count * self.shape.step, 1, 1)
        return output

    @torch.inference_mode()
    def _tried(self) -> FrameGroups:
        """The shape as the tower makes it of noise.

        Raises:
            InputError: what it makes of a group depends on its neighbours or on its place.
        """
        shape = self.shape
        most = 4 if self._fixed else min(4, shape.groups)
        random = torch.Generator().manual_seed(0)
        size = (most, 1, shape.height, shape.width, 3)
        noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=random)
        noise = noise.expand(-1, shape.step, -1, -1, -1)
        first, second = {1: ([0], [0]), 2: ([0, 1], [1, 0]), 3: ([0, 1, 2], [2, 0, 1])}.get(
            most, ([0, 1, 2], [2, 0, 3])
        )
        if not self._fixed:
            first += first[-1:] * (shape.groups - len(first))
            second += second[-1:] * (shape.groups - len(second))
        clips = [noise[order].flatten(0, 1) for order in (first, second)]
        one, two = (self._through(x if self._fixed else self._filled(x))[0] for x in clips)
        if self._fixed:
            alone = len(self._through(noise[0])[0])
            tokens = (len(one) - alone) // (len(first) - 1)
            shape = replace(shape, tokens=tokens, extra=alone - tokens)
        else:
            shape = replace(shape, extra=len(one) - len(first) * shape.tokens)
        count = len(first) * shape.tokens
        if len(one) != len(two) or shape.extra < 0 or count + shape.extra != len(one):
            raise InputError(MIXED.format(self.engine.family))
        ones, twos = (x[:count].unflatten(0, (len(first), -1)).float() for x in (one, two))
        near = _NEAR.get(one.dtype, _NEAR_HALF)
        for number in set(first) & set(second):
            here, there = ones[first.index(number)], twos[second.index(number)]
            if float((here - there).norm()) > near * float(here.norm()):
                raise InputError(MIXED.format(self.engine.family))
        if not torch.allclose(one[count:], two[count:]):
            raise InputError(MIXED.format(self.engine.family))
        return shape

    def _found(self) -> None:
        """See that the model finds the tokens of a clip that was put together where they belong.

        Raises:
            InputError: it does not.
        """
        shape, engine = self.shape, self.engine
        random = torch.Generator().manual_seed(0)
        groups = torch.randn(shape.groups, shape.tokens, self.width, generator=random)
        clip, video = self.clip(groups, np.arange(float(shape.frames)), float(shape.frames))
        with engine.at_work(build("none")) as work:
            try:
                seen = engine.preview(clip, engine.encode(clip, work), "?", work)
            except (InputError, ValueError, RuntimeError, TypeError) as error:
                raise InputError(UNFOUND.format(engine.family)) from error
        want = groups[..., : seen.features.shape[1]].flatten(0, 1).to(seen.features)
        cells = shape.rows * shape.columns
        if len(seen) != shape.groups * cells or video.total != len(seen):
            raise InputError(UNFOUND.format(engine.family))
        if shape.tokens == cells and not torch.equal(seen.features, want):
            raise InputError(UNFOUND.format(engine.family))


UNFOUND = (
    "{} cannot be indexed: its prompt does not take features of frames that were made before, in "
    "the place of a video"
)
MIXED = (
    "{} cannot be indexed: what its vision tower makes of a frame depends on the frames around it, "
    "or on its time, so that stored frames cannot stand for a clip"
)
NO_FEATURES = (
    "{} cannot be indexed here: this transformers has the model encode a video with every prompt; "
    "install a newer one"
)


def plain_twin(engine: HubEngine) -> HubEngine:
    """The same model with a memory of its own, and without its family's own choice of tokens, which
    looks at the frame before (VideoLLaMA3)."""
    twin = engine.twin()
    if "use_token_compression" in twin.memory.options:
        twin.memory.options = {**twin.memory.options, "use_token_compression": False}
    return twin


def clip_frames(
    engine: HubEngine, height: int, width: int, moments: int, share: float
) -> tuple[int, float]:
    """Frames of a clip, and video tokens of one of them before compression.

    The family's usual number, more where a method leaves a share of the tokens, fewer where the
    decoder's positions have no room for them.

    Args:
        moments: frames that there are. share: of the tokens that the decoder reads.
    """
    usual, positions = engine.usual_frames, positions_of(engine.decoder_config)
    held = max(1, Limits().max_bytes // (3 * height * width))
    frames = min(moments, held, int(usual * min(_MOST, max(1.0, 1 / share)) + 1e-6))
    while True:
        tokens = engine.count(height, width, frames)
        taken = tokens * (share if engine.adapter.mrope else 1.0)
        if positions is None or taken <= _PART * positions or frames == 1:
            return frames, tokens / frames
        frames = max(1, min(frames - 1, int(frames * _PART * positions / taken)))


def _clip(
    frames: np.ndarray,
    seconds: Sequence[float] | np.ndarray,
    duration: float | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> VideoClip:
    times = np.asarray(seconds, np.float64)
    length = float(times[-1]) + 1.0 if duration is None else duration
    return VideoClip(frames, times, 1.0, length, np.arange(len(times)), "", start=start, end=end)


def _grid(engine: HubEngine, height: int, width: int, frames: int) -> tuple[int, int, int]:
    """(T', rows, columns) of the tokens of a clip."""
    memory = engine.memory
    if memory.processor is None:
        options, config = memory.options, engine.adapter.config
        return tokens_per_frame(engine.kind, height, width, frames, options, config)
    blank = np.zeros((frames, height, width, 3), np.uint8)
    return memory.open(_clip(blank, np.arange(float(frames)))).grid


def _steady(engine: HubEngine, height: int, width: int, step: int, frames: int) -> bool:
    """Whether frames are scaled alike however many a clip has."""
    counts = {step, 4 * step, frames}
    return len({_grid(engine, height, width, count)[1:] for count in counts}) == 1


def _rows(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.flatten(0, -2)
    return torch.cat([_rows(part) for part in value])


def _like(had: Any, rows: Tensor, groups: int) -> Any:
    """Rows in the form of what the tower made of two groups."""
    if isinstance(had, Tensor):
        if had.dim() == 2:
            return rows
        return rows[None] if len(had) == 1 else rows.unflatten(0, (groups * len(had) // 2, -1))
    if len(had) == 1:
        return type(had)([_like(had[0], rows, groups)])
    return type(had)(rows.chunk(groups * len(had) // 2))
