"""Pictures that nearly are of the made world, and are not: its signs on other ground.

A web page of ★ and ♥ has the shapes and the colours of the made world. What it lacks is its ground:
several waves that drift. `vidllm train footage` draws such pages, and some bare grounds, and puts a
boundary between them and the made world (outliers that are shown in training: Hendrycks et al.,
Deep Anomaly Detection with Outlier Exposure, ICLR 2019).
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..words import COLOURS, NOUNS

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

SIDE = 256  # of a page's width, in pixels; it is twice as high
#: Signs that no actor of the made world is.
_OTHERS = "☀☃☕☘☢☯♠♨♻⚖⚙⚡✂✌✓❄➜ABCDEFGHRSXabcdefgh0123456789"
_PAINTS = [tuple(round(255 * part) for part in colour) for colour in COLOURS.values()]


def sign_page(rng: np.random.Generator, count: int) -> Tensor:
    """So many views (F, 3, H, W) in 0..1 of one page of signs, at places that it scrolls to.

    One page in seven has no signs.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(_ground(rng))
    pen = ImageDraw.Draw(image)
    known = list(NOUNS.values()) if rng.random() < 0.7 else list(_OTHERS)
    signs = [known[i] for i in rng.integers(0, len(known), int(rng.integers(1, 5)))]
    size = int(np.exp(rng.uniform(math.log(12), math.log(150))))
    wanted = max(2, int(rng.uniform(0.05, 0.45) * 2 * SIDE**2 / (0.6 * size**2)))
    if rng.random() < 0.15:
        wanted = 0
    ordered, step = rng.random() < 0.3, int(size * rng.uniform(1.1, 2))
    row = max(1, SIDE // step)
    for number in range(min(wanted, 150)):
        place = (int(rng.integers(-size // 2, SIDE)), int(rng.integers(-size // 2, 2 * SIDE)))
        own, paint, sign = size, _paint(rng), signs[rng.integers(len(signs))]
        if ordered:
            pen.text((number % row * step, number // row * step), sign, paint, _face(own))
            continue
        if rng.random() < 0.3:
            own = max(10, int(size * rng.uniform(0.4, 1.2)))
        if rng.random() < 0.3:
            turned = Image.new("L", (2 * own, 2 * own))
            ImageDraw.Draw(turned).text((own, own), sign, 255, _face(own), anchor="mm")
            turned = turned.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
            image.paste(paint, place, turned)
        else:
            pen.text(place, sign, paint, _face(own))
    page = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    high, wide = int(rng.integers(120, SIDE)), int(rng.integers(140, SIDE + 1))
    tops = rng.integers(0, 2 * SIDE - high, count).tolist()
    return torch.cat([page[:, :, top : top + high, :wide] for top in tops])


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A ground that is none of the made world's: (2 SIDE, SIDE, 3) uint8.

    One colour, or a gradient of two to five; on some clouds, or lights, or a disc on black. Half
    is dark ground with clouds of any fineness.
    """
    y, x = np.mgrid[0 : 2 * SIDE, 0:SIDE] / SIDE
    count = int(rng.integers(2, 6))
    low, high = (0, 256) if rng.random() < 0.4 else (5, 110)
    stops = rng.integers(low, high, (count, 3)).astype(np.float64)
    if rng.random() < 0.5:
        stops = stops.mean(0) + 0.4 * (stops - stops.mean(0))
    kind, angle = int(rng.integers(4)), rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == 0:
        stops[:] = stops[0]
    if kind == 1:
        along = np.hypot(x - rng.uniform(), y - rng.uniform(0, 2))
    along = (along - along.min()) / np.ptp(along)
    places = np.linspace(0, 1, count)
    made = np.stack([np.interp(along, places, stops[:, part]) for part in range(3)], axis=-1)
    more = int(rng.integers(8))
    if more == 0:
        made += rng.uniform(10, 60) * _clouds(rng)
    if more > 3:  # nearest to the made world's waves: as dark, and as faint
        dark = rng.uniform(15, 95, 3) if rng.random() < 0.7 else made
        made = dark + math.exp(rng.uniform(math.log(4), math.log(40))) * _clouds(rng)
    if more == 1:
        for _ in range(int(rng.integers(4, 16))):
            far = np.hypot(x - rng.uniform(), y - rng.uniform(0, 2)) / rng.uniform(0.1, 0.3)
            light = rng.uniform(0.1, 0.5) * np.exp(-(far**2))[..., None]
            made += light * (np.asarray(_paint(rng)) - made)
    if more == 2:
        made = rng.uniform(0.05, 0.8) * np.clip(made + rng.uniform(10, 60) * _clouds(rng), 0, 255)
        far = np.hypot(x - rng.uniform(0.2, 0.8), y % 1 - rng.uniform(0.3, 0.7))
        made *= (far < rng.uniform(0.2, 0.7))[..., None]
    return made.clip(0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise of several octaves about 0, in deviations: (2 SIDE, SIDE, 3), or 1 for 3."""
    from PIL import Image

    cells = int(math.exp(rng.uniform(math.log(3), math.log(48))))
    fall, parts = rng.uniform(0.4, 0.9), 1 + 2 * rng.integers(2)
    made = np.zeros((2 * SIDE, SIDE, int(parts)))
    for octave in range(4):
        side = min(SIDE, cells * 2**octave)
        for part in range(int(parts)):
            noise = Image.fromarray(rng.normal(0, 1, (2 * side, side)).astype(np.float32))
            large = noise.resize((SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
            made[..., part] += fall**octave * np.asarray(large)
    return made / made.std()


def _paint(rng: np.random.Generator) -> tuple[int, ...]:
    if rng.random() < 0.8:
        return _PAINTS[rng.integers(len(_PAINTS))]
    return tuple(int(part) for part in rng.integers(0, 256, 3))


@cache
def _face(size: int) -> FreeTypeFont:
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
