"""`vidllm train footage`: what the made world looks like to a model's vision tower.

Scenes of the training split, from seeds that training itself does not reach, are rendered, go
through codecs, scalers and letterboxes, and then through the tower. Three quarters of the clips
give the mean and the covariance of its features, the others what distance is usual and, by the
highest score among them, the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.encoders.vision import to_pixels
from vidllm.encoders.vision.frame_tower import ConvStem
from vidllm.errors import InputError
from vidllm.models.loading import load_native, model_kind
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.footage import (
    FORMAT,
    Boundary,
    Card,
    KnownFootage,
    Layer,
    contrast,
    features,
    tower_mark,
    without_bars,
)
from vidllm.models.native.model import NativeVideoLLM

from ..files import one_thread
from ..render import VIDEO_SIZE, render_tracks, to_uint8
from ..scenes import Scene, make_scene
from ..tracks import tracks
from .settings import plan_of
from .sign_pages import sign_page

#: The first scene: beyond the clips that training draws and the frames that its tower sees.
FIRST = 50_000_000
#: Layers of a convolutional stem: what is near the pixels tells worlds apart best. A plane in
#: deeper ones separates the pages that are drawn, and takes rare clips of the made world for pages.
STEM_LAYERS = (2, 4)
#: The threshold is the highest score of the clips kept out, times this: they are as many as a
#: benchmark's, and a tail goes on.
MARGIN = 1.25
#: The boundary as well. The room on its other side is small.
BOUNDARY_MARGIN = 1.1
#: Of the least contrast of any clip a frame must have this share, or it shows nothing.
CONTRAST_SHARE = 0.3
#: One clip of so many is kept out of the mean and the covariance.
_HELD = 4
_SHRINK = 1e-2  # added to variances about 1: directions that never vary stay finite
_LEAST_DEVIATION = 1e-4  # as well
_CODED = 0.5  # share of clips and pages that went through a codec
_RIDGE = 0.3  # added to the variances of the boundary, which are about 1


def calibrate(
    model: NativeVideoLLM,
    *,
    clips: int = 6000,
    frames: int = 2,
    pages: int | None = None,
    seed: int = 0,
    layers: Sequence[str] = (),
) -> KnownFootage:
    """Measure the statistics of the made world for a model.

    Args:
        clips: at least 100, each of another scene; a quarter is kept for the usual distance.
        frames: of a clip. seed: of the scenes and of what is done to them.
        pages: of signs, a quarter of which is kept out too; two thirds of `clips` by default.
        layers: of the tower, by name; those of its stem for the project's towers.

    Raises:
        InputError: too few clips, or a tower whose layers are not named or see whole clips.
    """
    if clips < 100 or frames < 1:
        raise InputError(f"at least 100 clips of 1 frame are needed, not {clips} of {frames}")
    vision = model.vision
    stems = [name for name, part in vision.named_modules() if isinstance(part, ConvStem)]
    if not layers and not stems:
        raise InputError("name the layers of this vision tower, such as --layers a.b.0,a.b.4")
    names = list(layers) or [f"{stems[0]}.{layer}" for layer in STEM_LAYERS]
    versions = plan_of(model.config.vision).versions  # of the world that it was trained on
    rng = np.random.default_rng([23, seed])
    noise = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = []
    least: list[float] = []
    with one_thread():
        for number in range(clips):
            first, version = FIRST + seed * clips, versions[number % len(versions)]
            drawn = make_scene("train", first + number, version)
            pixels = _clip(drawn, frames, rng, noise, vision.image_size)
            least.append(float(contrast(pixels).median()))
            picture = without_bars(pixels)
            assert picture is not None  # a scene has a background that varies
            parts.append(features(vision, names, picture))
        floor = round(CONTRAST_SHARE * min(least), 4)
        others = _pages(
            vision, names, 2 * clips // 3 if pages is None else pages, frames, floor, seed
        )
        made = [
            _layer(
                [part[at] for number, part in enumerate(parts) if number % _HELD],
                [part[at] for part in parts[::_HELD]],
            )
            for at in range(len(names))
        ]
    scores = torch.tensor([
        max(layer.score(part) for layer, part in zip(made, clip, strict=True))
        for clip in parts[::_HELD]
    ])  # fmt: skip
    highest = float(scores.max())
    most = round(MARGIN * highest, 2)
    boundary = _boundary([torch.cat(clip, 1) for clip in parts], others, most)
    missed = [boundary.score(page) <= most for page in others[::_HELD]]
    told = {"split": "train", "versions": sorted(set(versions)), "first": FIRST + seed * clips,
            "clips": clips, "frames": frames, "held": len(scores), "highest": round(highest, 2),
            "pages": len(others), "missed": round(sum(missed) / len(missed), 4),
            "seed": seed}  # fmt: skip
    card = Card(FORMAT, names, most, floor, tower_mark(vision), "", told, names)
    return KnownFootage(card, tuple(made), boundary)


def calibrate_folder(folder: Path, **options: object) -> KnownFootage:
    """As `calibrate`, for the model in a folder, into which the statistics are written.

    Raises:
        InputError: no model of this project there. WorkError: it cannot be read or written.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"--out {folder} holds no model: give the folder of a trained one")
    if model_kind(str(folder)) != NativeConfig.model_type:
        raise InputError(f"--out {folder} is no model of this project")
    model, _ = load_native(str(folder), None)
    known = calibrate(model.eval(), **options)  # type: ignore[arg-type]
    known.save(folder)
    return known


def _layer(fitted: list[Tensor], held: list[Tensor]) -> Layer:
    rows = torch.cat(fitted).double()
    mean, deviation = rows.mean(0), rows.std(0).clamp_min(_LEAST_DEVIATION)
    values, vectors = torch.linalg.eigh(torch.cov(((rows - mean) / deviation).T))
    # Half precision halves the file; scores are of what is stored.
    whiten = (vectors / (values.clamp_min(0) + _SHRINK).sqrt()).half()
    plain = Layer(mean.float(), deviation.float(), whiten.float(), torch.tensor([0.0, 1.0]))
    scores = torch.tensor([plain.score(part) for part in held])
    return replace(plain, scale=torch.stack([scores.mean(), scores.std()]))


def _boundary(known: list[Tensor], pages: list[Tensor], threshold: float) -> Boundary:
    """Between clips (F, D) of the made world and pages of signs: ridge regression on −1 and 1."""
    left = torch.cat([part for number, part in enumerate(known) if number % _HELD]).double()
    right = torch.cat([part for number, part in enumerate(pages) if number % _HELD]).double()
    mean, deviation = left.mean(0), left.std(0).clamp_min(_LEAST_DEVIATION)
    plain = Boundary(
        mean.float(), deviation.float(), torch.zeros(len(mean)), torch.tensor([0.0, 1.0])
    )
    left, right = (
        plain.coordinates(left.float()).double(),
        plain.coordinates(right.float()).double(),
    )
    between = (left.mean(0) + right.mean(0)) / 2  # both kinds count the same, however many
    sides = [part - between for part in (left, right)]
    spread = sum((part.T @ part / len(part) for part in sides), torch.zeros(())) / 2
    ridge = _RIDGE * torch.eye(len(mean), dtype=torch.float64)
    weight = torch.linalg.solve(spread + ridge, (right.mean(0) - left.mean(0)) / 2)
    plain = replace(plain, weight=weight.float())
    held = torch.tensor([plain.score(part) for part in known[::_HELD]])
    room = BOUNDARY_MARGIN * (held.max() - held.mean()).clamp_min(1e-3)
    # So that the end of the room has the score at which footage is unknown.
    return replace(plain, scale=torch.stack([held.mean(), room / threshold]))


def _pages(
    vision: torch.nn.Module, layers: list[str], count: int, frames: int, floor: float, seed: int
) -> list[Tensor]:
    """Features (F, D) of so many pages of signs, of all layers side by side."""
    rng = np.random.default_rng([41, seed])
    size = int(vision.image_size)  # type: ignore[arg-type]
    found: list[Tensor] = []
    while len(found) < max(count, 2 * _HELD):
        page = sign_page(rng, frames)
        if rng.random() < 0.8:  # as small as a made clip
            page = F.interpolate(page, (VIDEO_SIZE, VIDEO_SIZE), mode="bilinear", antialias=True)
        if rng.random() < 0.3:
            grain = rng.normal(0, rng.uniform(0, 0.02), (frames, 1, *page.shape[-2:]))
            page = (page + torch.from_numpy(grain).float()).clamp(0, 1)
        pixels = to_pixels(to_uint8(_worse(page, rng)), size)
        picture = without_bars(pixels)
        if picture is not None and float(contrast(pixels).median()) >= floor:
            found.append(torch.cat(features(vision, layers, picture), 1))
    return found


def _clip(
    drawn: Scene, count: int, rng: np.random.Generator, noise: torch.Generator, size: int
) -> Tensor:
    """Frames (F, 3, S, S) of a scene, as a tower sees them of a file that went through hands."""
    seconds = np.sort(rng.uniform(0, drawn.duration, count))
    moving = tracks(drawn, seconds)
    grain = moving.noise * float(rng.uniform(0, 1))
    painted = render_tracks(moving, noise=grain, generator=noise)
    return to_pixels(to_uint8(_worse(painted, rng)), size)


def _worse(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Frames (F, 3, H, W) scaled, with bars, softened or through a codec, or as they are."""
    kind = int(rng.integers(4))
    if kind == 1:
        frames = _coarse(frames, int(rng.integers(40, VIDEO_SIZE)), int(rng.integers(40, 129)))
    if kind == 2:
        frames = _softened(frames, float(rng.uniform(0, 1)))
    if kind == 3:
        frames = _barred(frames, rng)
    return _coded(frames, rng) if rng.random() < _CODED else frames


def _coded(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Through a video codec of some quality and back, (F, 3, H, W) to even height and width."""
    import av

    high, wide = frames.shape[2] // 2 * 2, frames.shape[3] // 2 * 2
    if rng.random() < 0.5:
        codec, back, step = "mpeg4", "mpeg4", str(int(4 * 8 ** rng.random()))
        options = {"qmin": step, "qmax": step}
    else:
        codec, back, rate = "libx264", "h264", str(rng.integers(22, 41))
        options = {"crf": rate, "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
    coder: Any = av.CodecContext.create(codec, "w")
    reader: Any = av.CodecContext.create(back, "r")
    coder.width, coder.height, coder.pix_fmt = wide, high, "yuv420p"
    coder.time_base, coder.options = Fraction(1, 10), options
    packets = []
    for number, picture in enumerate(to_uint8(frames[:, :, :high, :wide]).numpy()):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts = number
        packets += coder.encode(frame)
    packets += coder.encode(None)
    read = [frame for packet in [*packets, None] for frame in reader.decode(packet)]
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in read])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _coarse(frames: Tensor, height: int, width: int) -> Tensor:
    """Scaled down and up again, with another aspect ratio."""
    small = F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
    return F.interpolate(small, size=frames.shape[-2:], mode="bilinear").clamp(0, 1)


def _softened(frames: Tensor, amount: float) -> Tensor:
    """As a codec: half the colour resolution, and what is fine in brightness gone in part."""
    luma = frames.mean(1, keepdim=True)
    colour = F.avg_pool2d(frames - luma, 2, ceil_mode=True)
    colour = F.interpolate(colour, size=frames.shape[-2:], mode="bilinear")
    soft = F.avg_pool2d(F.pad(luma, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (luma + amount * (soft - luma) + colour).clamp(0, 1)


def _barred(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """With black bars above and below, or on both sides."""
    bar = int(rng.integers(4, 56))
    return F.pad(frames, (0, 0, bar, bar) if rng.integers(2) else (bar, bar, 0, 0))
