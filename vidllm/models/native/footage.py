"""Whether footage is of the world that a model was trained on, by its vision tower's features.

A model of a small made world answers about any footage in that world's words. What its tower makes
of frames is compared with what it made of the made world: the Mahalanobis distance of the features
of several layers (Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples,
NeurIPS 2018), without classes, and a plane between it and pages of its signs on other ground
says on which side a frame lies. `vidllm train footage` measures the statistics; a model whose
folder lacks them makes no claim.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vidllm.encoders.vision import to_pixels
from vidllm.errors import InputError, WorkError

if TYPE_CHECKING:
    from vidllm.video import VideoClip

FORMAT = 3
_FORMATS = (2, 3)  # 2 has no boundary
CARD, STATISTICS = "footage.json", "footage.safetensors"
#: Frames of a clip that are looked at, at most.
FRAMES = 8
#: Shares of the cells of a frame at which a channel's values are read, beside mean and deviation.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: And shares of the steps between neighbouring cells, whose logarithm is read beside their mean's.
_STEP_SHARES = (0.25, 0.5, 0.75)
_LEAST_STEP = 0.02  # added to steps, so that flat ground has a logarithm
#: Rows and columns at the edge that vary by less, in shares of the whole range, are bars.
_BAR = 16 / 255
_EDGE = 2  # rows and columns beside a bar that a codec or a scaler has mixed with it
_COARSE = 16  # places along a side over which pixels are averaged before contrast is read
_FARTHEST = 6.0  # deviations from the made world that a boundary tells apart
_LEAST = 4  # so many times smaller than the frame a picture inside bars may be

UNKNOWN = "this video is not of the made world that this model knows"
_ADVICE = (
    "another model is needed, such as --model Qwen/Qwen2.5-VL-3B-Instruct; "
    "--anyway (anyway=True) has this one answer all the same"
)
_NOTE = "what it says about it means nothing: another model is needed, such as " + (
    "--model Qwen/Qwen2.5-VL-3B-Instruct"
)


class UnknownFootage(InputError):
    """The footage is not of the world that the model was trained on."""

    def __init__(self) -> None:
        super().__init__(f"{UNKNOWN}: {_ADVICE}")


def unknown_notes(anyway: bool) -> tuple[str, ...]:
    """The note on what a model says about footage that it does not know.

    Raises:
        UnknownFootage: `anyway` is false.
    """
    if not anyway:
        raise UnknownFootage
    return (f"{UNKNOWN}; {_NOTE}",)


def warnings_in(notes: Iterable[str]) -> tuple[str, ...]:
    """Those of an answer's notes that say so."""
    return tuple(note for note in notes if note.startswith(UNKNOWN))


@dataclass(frozen=True)
class Card:
    """What `footage.json` says of the statistics beside it.

    Attributes:
        format: of the files. layers: modules of the tower by dotted name, in order.
        threshold: score above which footage is unknown. contrast: in 0..1; frames with less show
            nothing. tower: `tower_mark` of the tower that was measured. sha256: of the tensors.
        made: how they were made (split, first scene, clips, frames, seed, pages missed).
        boundary: layers that the boundary reads, side by side; none where there is none.
    """

    format: int
    layers: list[str]
    threshold: float
    contrast: float
    tower: str
    sha256: str
    made: dict[str, Any]
    boundary: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        right = (
            self.format in _FORMATS
            and _names(self.layers)
            and len(self.layers) > 0
            and _names(self.boundary)
            and _positive(self.threshold)
            and _positive(self.contrast)
            and self.contrast < 1
            and isinstance(self.tower, str)
            and isinstance(self.sha256, str)
            and isinstance(self.made, dict)
        )
        if not right:
            raise ValueError("a field is out of range")


@dataclass(frozen=True)
class Layer:
    """Statistics of one layer's features.

    Attributes:
        mean: (D,). deviation: (D,), above 0. whiten: (D, D), features minus mean, over deviation,
            times this have unit variance.
        scale: (2,) mean and deviation of the logarithm of a known clip's distance.
    """

    mean: Tensor
    deviation: Tensor
    whiten: Tensor
    scale: Tensor

    def distance(self, features: Tensor) -> Tensor:
        """(F, D) to (F,): the root of the mean squared coordinate, about 1 for known frames."""
        moved = (features - self.mean) / self.deviation @ self.whiten
        return moved.square().mean(1).sqrt()

    def score(self, features: Tensor) -> float:
        """Deviations by which the median distance of a clip's frames exceeds the usual one."""
        middle, spread = self.scale.tolist()
        median = float(self.distance(features).quantile(0.5))
        return (math.log(max(median, 1e-12)) - middle) / spread


@dataclass(frozen=True)
class Boundary:
    """A plane between the made world and pages of its signs on other ground.

    Attributes:
        mean: (D,), deviation: (D,) above 0, of the made world's features. weight: (D,) across the
            plane, towards the pages.
        scale: (2,) what known clips usually give, and the unit in which more is counted.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    scale: Tensor

    def coordinates(self, features: Tensor) -> Tensor:
        """(F, D) features in deviations from the made world's mean, those far off cut short."""
        return ((features - self.mean) / self.deviation).clamp(-_FARTHEST, _FARTHEST)

    def score(self, features: Tensor) -> float:
        """How far the median of a clip's frames (F, D) lies towards the pages."""
        usual, unit = self.scale.tolist()
        return (float((self.coordinates(features) @ self.weight).quantile(0.5)) - usual) / unit


@dataclass(frozen=True)
class KnownFootage:
    """The statistics of the footage that a model knows.

    Attributes:
        card: see there. layers: one of each of the card's layers. boundary: None where the card
            names no layers for it.
    """

    card: Card
    layers: tuple[Layer, ...]
    boundary: Boundary | None = None

    def score(self, vision: nn.Module, pixels: Tensor) -> float:
        """How far frames are from those that are known: above `card.threshold` is unknown.

        The largest over the layers and the boundary; infinite where more than half of the frames
        show nothing, or where nothing is between their bars.

        Args:
            vision: the tower. pixels: (F, 3, S, S) in 0..1, S as the tower takes them, F > 0.
        """
        if float(contrast(pixels).quantile(0.5)) < self.card.contrast:
            return math.inf
        picture = without_bars(pixels)
        if picture is None:
            return math.inf
        names = list(dict.fromkeys([*self.card.layers, *self.card.boundary]))
        seen = dict(zip(names, features(vision, names, picture), strict=True))
        pairs = zip(self.card.layers, self.layers, strict=True)
        found = [layer.score(seen[name]) for name, layer in pairs]
        if self.boundary is not None:
            side_by_side = torch.cat([seen[name] for name in self.card.boundary], dim=1)
            found.append(self.boundary.score(side_by_side))
        return max(value if math.isfinite(value) else math.inf for value in found)

    def knows(self, vision: nn.Module, pixels: Tensor) -> bool:
        """Whether frames are of the world that the model knows; arguments as for `score`."""
        return not len(pixels) or self.score(vision, pixels) <= self.card.threshold

    def save(self, folder: Path) -> None:
        """Write both files into a model's folder. Raises WorkError where that fails."""
        tensors = {
            f"{number}.{item.name}": getattr(layer, item.name).contiguous()
            for number, layer in enumerate(self.layers)
            for item in fields(Layer)
        }
        for name in tensors:  # as it was measured: half precision halves the file
            if name.endswith(".whiten"):
                tensors[name] = tensors[name].half()
        if self.boundary is not None:
            for item in fields(Boundary):
                tensors[f"boundary.{item.name}"] = getattr(self.boundary, item.name).contiguous()
        data = save(tensors)
        told = {**asdict(self.card), "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps(told, indent=1) + "\n"
        try:
            for name, content in ((STATISTICS, data), (CARD, text.encode())):
                part = folder / f".{name}.part"
                part.write_bytes(content)
                part.replace(folder / name)
        except OSError as error:
            raise WorkError(f"{folder} cannot be written: {error.strerror or error}") from error


def load_known(folder: str | Path, vision: nn.Module) -> KnownFootage | None:
    """The statistics in a model's folder, or None where there are none.

    Raises:
        WorkError: damaged files, or statistics of another tower.
    """
    card_file, data_file = Path(folder) / CARD, Path(folder) / STATISTICS
    if not card_file.is_file() and not data_file.is_file():
        return None
    try:
        card = Card(**json.loads(card_file.read_text(encoding="utf-8")))
        data = data_file.read_bytes()
        if hashlib.sha256(data).hexdigest() != card.sha256:
            raise ValueError("the sha256 differs")
        tensors = load(data)
        layers = tuple(
            Layer(*(tensors[f"{number}.{item.name}"].float() for item in fields(Layer)))
            for number in range(len(card.layers))
        )
        for layer in layers:
            _check_layer(layer)
        boundary = None
        if card.boundary:
            parts = (tensors[f"boundary.{item.name}"].float() for item in fields(Boundary))
            boundary = Boundary(*parts)
            _check_boundary(boundary)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise WorkError(
            f"{CARD} and {STATISTICS} in {folder} do not fit each other or are damaged: get the "
            "model again, or make them anew with vidllm train footage"
        ) from error
    if card.tower != tower_mark(vision):
        raise WorkError(
            f"{CARD} in {folder} is of another vision tower: make it anew with "
            f"vidllm train footage --out {folder}"
        )
    return KnownFootage(card, layers, boundary)


def tower_mark(vision: nn.Module) -> str:
    """A hash of a tower's weights in float32, as they are loaded."""
    digest = hashlib.sha256()
    for name, value in sorted(vision.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def clip_pixels(clip: VideoClip, size: int) -> Tensor:
    """At most `FRAMES` frames (F, 3, S, S) of a clip, evenly spread, as a tower takes them."""
    chosen = spread(len(clip), FRAMES)
    if not len(chosen):
        return torch.zeros(0, 3, size, size)
    # One by one: as float32, frames are many times their bytes.
    return torch.cat([to_pixels(torch.from_numpy(clip.frames[i][None].copy()), size)
                      for i in chosen])  # fmt: skip


class ClipCheck:
    """Whether a model knows clips; each is looked at once.

    Args:
        footage: what it knows; None for a model that makes no claim, which knows all.
    """

    def __init__(self, footage: KnownFootage | None) -> None:
        self.footage = footage
        self._known: WeakKeyDictionary[VideoClip, bool] = WeakKeyDictionary()

    def knows(self, clip: VideoClip, vision: Any) -> bool:
        """Whether a clip is of that footage, as the model's tower `vision` sees it."""
        if self.footage is None:
            return True
        if clip not in self._known:
            pixels = clip_pixels(clip, vision.image_size)
            self._known[clip] = self.footage.knows(vision, pixels)
        return self._known[clip]


def spread(count: int, most: int) -> np.ndarray:
    """Numbers (K,) of at most `most` of `count` things, in the middle of equal parts."""
    wanted = min(count, most)
    return ((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)


def contrast(pixels: Tensor) -> Tensor:
    """(F, 3, S, S) to (F,): the largest range of a channel over a coarse grid, so without grain."""
    coarse = F.adaptive_avg_pool2d(pixels, _COARSE)
    return (coarse.amax((2, 3)) - coarse.amin((2, 3))).amax(1)


def without_bars(pixels: Tensor) -> Tensor | None:
    """Frames without the bars at their edges, resized to what they were; None if little is left.

    Bars are rows and columns that are of one colour in every frame, such as those of a letterbox.

    Args:
        pixels: (F, 3, S, S) in 0..1.
    """
    size = pixels.shape[-1]
    top, bottom = _inside(pixels, 3)
    left, right = _inside(pixels, 2)
    if min(bottom - top, right - left) * _LEAST < size:
        return None
    if (top, bottom, left, right) == (0, size, 0, size):
        return pixels
    # The rows beside a bar have some of it.
    top, bottom = top + _EDGE * (top > 0), bottom - _EDGE * (bottom < size)
    left, right = left + _EDGE * (left > 0), right - _EDGE * (right < size)
    return F.interpolate(
        pixels[:, :, top:bottom, left:right],
        size=(size, size),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )


@torch.no_grad()
def features(vision: nn.Module, layers: Iterable[str], pixels: Tensor) -> list[Tensor]:
    """What layers of a tower make of frames, without places: one (F, D) of every layer.

    Of every channel the mean, the deviation and five quantiles over a frame's cells, and how far
    neighbouring cells differ: the logarithms of three quantiles and of the mean. In float32,
    whatever the tower computes in. What is behind the last of the layers is not computed.

    Args:
        layers: modules by name, whose output is (F, C, H, W) or (F, N, C), or a tuple with it; N
            cells are those of a square.
        pixels: (F, 3, S, S) in 0..1.

    Raises:
        InputError: a module that is not there or gives something else.
    """
    outputs: dict[str, Tensor] = {}
    hooks = []
    wanted = list(layers)

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output
            if len(outputs) == len(wanted):
                raise _Enough

        return hook

    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in vision.state_dict().items()
    }
    device = next(iter(state.values())).device
    try:
        for name in wanted:
            hooks.append(vision.get_submodule(name).register_forward_hook(keep(name)))
        with suppress(_Enough):
            torch.func.functional_call(vision, state, (pixels.to(device, torch.float32),))
    except AttributeError as error:
        raise InputError(f"the vision tower has no layer of that name: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return [_described(name, outputs.get(name), len(pixels)) for name in wanted]


class _Enough(Exception):
    """All layers that are wanted have been computed."""


def _described(name: str, output: Tensor | None, count: int) -> Tensor:
    told = f"layer {name} of the vision tower gives no features of single frames"
    if output is None or output.dim() not in (3, 4) or len(output) != count:
        raise InputError(told)
    grid = output.float().cpu()
    if grid.dim() == 3:
        side = math.isqrt(grid.shape[1])
        if side**2 != grid.shape[1]:
            raise InputError(told)
        grid = grid.transpose(1, 2).unflatten(2, (side, side))
    if min(grid.shape[2:]) < 2:
        raise InputError(told)
    corner = grid[:, :, :-1, :-1]
    steps = ((grid[:, :, 1:, :-1] - corner) ** 2 + (grid[:, :, :-1, 1:] - corner) ** 2).sqrt()
    cells, steps = grid.flatten(2), steps.flatten(2)
    sharp = torch.stack([*_at(steps, _STEP_SHARES), steps.mean(2)]) + _LEAST_STEP
    return torch.cat([cells.mean(2), cells.std(2), *_at(cells, _SHARES), *sharp.log()], dim=1)


def _at(values: Tensor, shares: Iterable[float]) -> list[Tensor]:
    """(F, C, N) to one (F, C) of every share of the sorted values."""
    places = [round(share * (values.shape[2] - 1)) for share in shares]
    # Not sorted as a whole, which would take nearly twice the check's time.
    ranked = torch.from_numpy(np.partition(values.numpy(), places, axis=2))
    return [ranked[:, :, place] for place in places]


def _inside(pixels: Tensor, along: int) -> tuple[int, int]:
    """First and last (exclusive) row or column that is not of one colour in every frame."""
    varies = (pixels.amax(along) - pixels.amin(along)).amax((0, 1)) > _BAR
    at = varies.nonzero()[:, 0].tolist()
    return (at[0], at[-1] + 1) if at else (0, 0)


def _check_layer(layer: Layer) -> None:
    size = len(layer.mean)
    _check(layer, [(size,), (size,), (size, size), (2,)])


def _check_boundary(boundary: Boundary) -> None:
    size = len(boundary.mean)
    _check(boundary, [(size,), (size,), (size,), (2,)])


def _check(found: Layer | Boundary, shapes: list[tuple[int, ...]]) -> None:
    tensors = [getattr(found, item.name) for item in fields(found)]
    if [tuple(t.shape) for t in tensors] != shapes:
        raise ValueError("tensors of wrong shapes")
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise ValueError("tensors with numbers that are none")
    if float(found.deviation.min()) <= 0 or float(found.scale[1]) <= 0:
        raise ValueError("deviations that are none")


def _names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(isinstance(v, str) for v in value)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
