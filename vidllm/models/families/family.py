"""What a family tells: its parts, the videos of a prompt, and its vision tower's signals."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vidllm.encoders.vision.signals import SIGNALS
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens
from vidllm.tokens.video_tokens import Keep

from ..engine import Shared
from ..hooks.pruning import DECODER_SIGNALS
from ..hooks.vision_tower import Sight
from .served import FAMILIES, PARTS, SINCE, check_transformers
from .unserved import refusal

_BEFORE = 24  # ids before a frame in which its time is looked for


@dataclass(frozen=True)
class Clip:
    """One video of one prompt.

    Attributes:
        row: of the batch.
        where: (V,) long, where its tokens stand in the prompt, ascending.
        tokens: their places and seconds, without features; V of them.
        slots: (V,) long, their numbers among all tokens that the vision tower made in its last
            call, which is the one for videos.
        seconds: (T,) of the frames of its grid.
    """

    row: int
    where: Tensor
    tokens: VideoTokens
    slots: Tensor
    seconds: tuple[float, ...] = ()


class Adapter(ABC):
    """Base of the families.

    Args:
        model: of transformers, with or without its language head.
        processor: its processor or tokenizer; only for times that stand in the prompt as text,
            and for families that write a video as numbered images.
    """

    family: str = ""
    decoder_name: ClassVar[str] = "language_model"
    tower_name: ClassVar[str] = ""
    modality: ClassVar[str] = "video"
    """What `generate` calls the tower's output for videos: "video" or "image"."""
    special: ClassVar[int] = 0
    """Tokens of the tower before the patches of a frame (CLS)."""
    stamp: ClassVar[str | None] = None
    """A regular expression for the time that is written before a frame, in seconds, or in
    minutes and seconds."""
    mrope: ClassVar[bool] = False
    """Whether positions of time, row and column go side by side."""
    token_types: ClassVar[bool] = False
    """Whether the model takes `mm_token_type_ids`: 1 for images, 2 for videos, 0 for text."""
    beside: ClassVar[tuple[str, ...]] = ()
    """The model's arguments about its videos that `generate` gives to the tower alone."""
    processor_options: ClassVar[dict[str, Any]] = {}
    """What the family's own processor is asked for, beside the frames."""
    merging: ClassVar[str] = "cells"
    """How its tower merges where it may: squares of "cells", in a "packed" row (see `packed`), or
    patches of a grid that is "pooled" behind it."""
    pace: ClassVar[str] = ""
    """The model's argument for the seconds from one frame of the grid to the next, "" for none."""

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        self.model = cast(Any, model)
        inner = getattr(model, "model", None)
        self.core = cast(Any, inner if hasattr(inner, self.decoder_name) else model)
        self.config: Any = self.core.config
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.holder: Any = None  # the model that this one is a part of
        self.wrappers: tuple[nn.Module, ...] = ()  # PEFT's, which call its forward past its hooks
        self._told: Shared[list[tuple[list[float], float]]] = Shared([])
        self._given: Shared[dict[str, Any]] = Shared({})

    @property
    def decoder(self) -> nn.Module:
        """The text model: embeddings of a prompt in, last hidden states out."""
        return cast(nn.Module, getattr(self.core, self.decoder_name))

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return cast(nn.Module, getattr(self.core, self.tower_name))

    @property
    def merge(self) -> int:
        """Patches along a side of a token, where the config of the tower says it."""
        return int(self.config.vision_config.spatial_merge_size)

    @property
    def video_token(self) -> int:
        """The id that stands for video tokens in a prompt."""
        return int(self.config.video_token_id)

    @property
    def own_token(self) -> bool:
        """Whether pictures are marked by another id than videos."""
        named = getattr(self.config, "video_token_id", None)
        return self.modality == "video" and named not in (None, self.config.image_token_id)

    @property
    def provides(self) -> tuple[str, ...]:
        """Signals that compressors may need and that this model gives."""
        return (*SIGNALS, *DECODER_SIGNALS)

    @property
    def attention(self) -> nn.Module:
        """The attention of the tower whose queries and keys make the signals: of its last layer."""
        return cast(nn.Module, cast(Any, self.tower).encoder.layers[-1].self_attn)

    @abstractmethod
    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """The videos of a batch.

        Args:
            ids: (B, L) long on the CPU. inputs: all of what the model is called with.
            sight: the call of the tower that made the videos' tokens, where it was before the
                model's own, as in `generate`.

        Raises:
            InputError: inputs that do not fit the prompt.
        """

    @abstractmethod
    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """One row a token that a call of the tower made, (N,) or (N, d)."""

    def whole_grid(self) -> str:
        """Why no cell may merge inside the vision tower; empty where they may."""
        return "has a tower in which merging is not worked out"

    def merging_layer(self, layer: nn.Module) -> Any:
        """A layer of the tower as `encoders.vision.merging` wants it."""
        return layer

    def vision(self, ids: Tensor) -> Tensor:
        """(B, L) bool: tokens of the prompt that stand for pictures."""
        named = (getattr(self.config, f"{kind}_token_id", None) for kind in ("image", "video"))
        return torch.isin(ids, torch.tensor([n for n in named if n is not None]))

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The model's arguments in `beside`; empty where the first is missing.

        `generate` runs the tower by itself and takes away what it gave to it. Then they are those
        of this thread's last call that had them.
        """
        found = {name: inputs.get(name) for name in self.beside}
        if found and found[self.beside[0]] is not None:
            self._given.set(found)
            return found
        made = (inputs.get("mm_encoder_outputs") or {}).get(self.modality)
        return {} if made is None else self._given.get()

    def grid_clips(
        self,
        ids: Tensor,
        grids: Sequence[tuple[int, int, int]],
        *,
        extra: int = 0,
        step: Sequence[float] | None = None,
        present: Sequence[Tensor] | None = None,
    ) -> list[Clip]:
        """Clips of families that mark video tokens by an id of their own.

        Args:
            grids: (T, H, W) of every video in order, in tokens.
            extra: tokens behind each that belong to no frame.
            step: seconds from one frame of the grid to the next, one a video (or so many each).
            present: for every video the tokens of its grid that the prompt holds; None for all.
        """
        clips: list[Clip] = []
        sizes = [t * h * w for t, h, w in grids]
        owns = [torch.arange(size) for size in sizes] if present is None else list(present)
        copies = self.copies(ids, self.video_token, sum(map(len, owns)) + extra * len(grids))
        video, first = 0, 0
        for row, line in enumerate(ids[::copies]):
            places = torch.nonzero(line == self.video_token).flatten()
            done = 0
            while done < len(places):
                if video == len(grids):
                    raise InputError(MISFIT.format("others"))
                own, (frames, rows, columns) = owns[video], grids[video]
                where = places[done : done + len(own)]
                done += len(own) + extra
                if done > len(places):
                    raise InputError(MISFIT.format("others"))
                begins = torch.searchsorted(own, torch.arange(frames) * rows * columns)
                gaps = torch.nonzero(where.diff() > 1).flatten() + 1
                if not bool(torch.isin(gaps, begins).all()):  # text inside a frame
                    raise InputError(MISFIT.format("others"))
                starts = where[begins.clamp(max=len(own) - 1)]
                pace = None if step is None else step[video * len(step) // len(grids)]
                seconds, end = self._times(video, line, starts, pace)
                tokens = VideoTokens.blank((frames, rows, columns), seconds, end)
                if len(own) < sizes[video]:
                    tokens = tokens.apply(Keep(own))
                clip = Clip(row * copies, where, tokens, own + first, tuple(seconds))
                clips += [replace(clip, row=row * copies + n) for n in range(copies)]
                video, first = video + 1, first + sizes[video]
        if video < len(grids):
            raise InputError(MISFIT.format("fewer"))
        return clips

    @staticmethod
    def copies(ids: Tensor, token: int, known: int) -> int:
        """How often every row stands in the batch (beams, several answers a prompt).

        Args:
            token: the id of picture tokens. known: how many of them the tower makes.

        Raises:
            InputError: a prompt with more or fewer of them.
        """
        count = int((ids == token).sum())
        copies = max(1, count // max(1, known))
        if count != known * copies or len(ids) % copies:
            raise InputError(MISFIT.format(f"{count} of {known}"))
        return copies

    def tell_seconds(self, *videos: tuple[Sequence[float], float]) -> None:
        """Say when the frames of the next prompts were, where the caller knows it better.

        Prompts round times, and some families write none. What is told goes to the compressors;
        the prompt stays as it is.

        Args:
            videos: for every video of a prompt, in order, the seconds of its frames (of the slots
                of its token grid) and the second at which it ends; none to read prompts again.
        """
        self._told.set([([float(s) for s in seconds], float(end)) for seconds, end in videos])

    def _times(
        self, video: int, line: Tensor, starts: Tensor, step: float | None
    ) -> tuple[list[float], float]:
        """Times of the frames of a video, told or read (see `_seconds`)."""
        told = self._told.get()
        if not told:
            return self._seconds(line, starts, step)
        if video >= len(told) or len(told[video][0]) != len(starts):
            counts = ", ".join(str(len(seconds)) for seconds, _ in told)
            raise InputError(
                f"video {video + 1} of the prompt has {len(starts)} frames, but seconds were told "
                f"for {len(told)} videos of {counts}: tell those of every video"
            )
        return told[video]

    def _seconds(
        self, line: Tensor, starts: Tensor, step: float | None
    ) -> tuple[list[float], float]:
        """Times of the frames that start at these places of a prompt, and the end of the last."""
        count = len(starts)
        if step is None:
            found = [self._read_time(line[max(0, p - _BEFORE) : p]) for p in starts.tolist()]
            read = [time for time in found if time is not None]
            if len(read) == count and read == sorted(read):
                return read, read[-1] + (read[-1] - read[0]) / max(1, count - 1)
            step = 1.0
        return [i * step for i in range(count)], count * step

    def _read_time(self, before: Tensor) -> float | None:
        if self.tokenizer is None or self.stamp is None:
            return None
        text = self.tokenizer.decode(before.tolist(), skip_special_tokens=False)
        found = re.findall(self.stamp, text)
        if not found:
            return None
        parts = found[-1] if isinstance(found[-1], tuple) else (found[-1],)
        return sum(float(part) * 60.0**power for power, part in enumerate(reversed(parts)))


MISFIT = (
    "the prompt's video tokens do not fit its videos ({}): pass ids and pixels of one call of the "
    "processor, with nothing cut off"
)


def grids_of(value: Any, merge: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """(V, 3) grids of patches as grids of tokens, `merge` patches a side (one, or one a video)."""
    lines: list[list[int]] = torch.as_tensor(value).tolist()
    sides = [merge] * len(lines) if isinstance(merge, int) else list(merge)
    return [(t, h // m, w // m) for (t, h, w), m in zip(lines, sides, strict=True)]


def grid_from(inputs: Mapping[str, Any], sight: Sight | None, name: str) -> Any:
    """What the model or its tower was told of the videos: "grid_thw" or "merge_sizes"."""
    if sight is not None and name in sight.inputs:
        return sight.inputs[name]
    return inputs.get(f"video_{name}")


def floats_of(value: Any) -> list[float] | None:
    """A tensor or list of numbers as a list; None for None."""
    return None if value is None else [float(v) for v in value]


#: What wrappers (DistributedDataParallel, FSDP, torch.compile, engines) call the model in them.
_WRAPPED = ("module", "_orig_mod")


def _inside(model: Any) -> str:
    """How to get at a model of `FAMILIES` in its wrappers, such as ".module"; "" without one."""
    path, inner = "", model
    while True:
        parts = getattr(inner, "_modules", None) or vars(inner)
        name = next((n for n in _WRAPPED if n in parts), None)
        if name is None:
            break
        path, inner = f"{path}.{name}", parts[name]
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    known = kind in FAMILIES or kind in PARTS
    return path if known or hasattr(inner, "get_base_model") else ""


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """The adapter of a model.

    Args:
        model: with or without its language head, or wrapped by PEFT.
        processor: the model's processor or its tokenizer, where the family needs one.

    Raises:
        InputError: a family that is not served, or not with this transformers.
    """
    wrapped: Any = model
    inside = _inside(model)
    if inside:
        raise InputError(
            f"a {type(model).__name__} hides the model that compress works on: pass model{inside}"
        )
    inner: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    kind = str(getattr(getattr(inner, "config", None), "model_type", type(inner).__name__))
    holder = inner if kind in PARTS else None
    if kind in PARTS:  # the part that reads and writes text
        inner, kind = getattr(inner, PARTS[kind][0]), PARTS[kind][1]
    if kind not in FAMILIES:
        raise InputError(refusal(kind))
    if kind in SINCE:
        check_transformers(kind)
    name, module, cls = FAMILIES[kind]
    adapter: Adapter = getattr(import_module(f".{module}", __package__), cls)(inner, processor)
    adapter.family, adapter.holder = name, holder
    adapter.wrappers = () if inner is wrapped or holder is not None else (wrapped,)
    return adapter
