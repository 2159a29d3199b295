"""Paint tracks into frames, on a CPU for video files and on a GPU for training, by one code.

Every sprite is a glyph of DejaVu Sans (which ships with matplotlib), placed, scaled and turned by
bilinear sampling, so that motion is smooth to a fraction of a pixel.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .tracks import DISTRACTORS, Tracks
from .words import NOUNS

ATLAS_SIZE = 48
#: Width and height of the benchmark's videos, in pixels.
VIDEO_SIZE = 128


@cache
def atlas() -> Tensor:
    """All sprites as masks (G, 1, 48, 48) float32 in 0..1, each filling its square."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 4 * ATLAS_SIZE
    )
    masks = []
    for glyph in (*NOUNS.values(), *DISTRACTORS):
        left, top, right, bottom = (round(v) for v in font.getbbox(glyph))
        side = max(right - left, bottom - top)
        picture = Image.new("L", (side, side))
        at = ((side - right + left) // 2 - left, (side - bottom + top) // 2 - top)
        ImageDraw.Draw(picture).text(at, glyph, font=font, fill=255)
        small = picture.resize((ATLAS_SIZE - 4, ATLAS_SIZE - 4), Image.Resampling.LANCZOS)
        mask = np.zeros((ATLAS_SIZE, ATLAS_SIZE), dtype=np.float32)
        mask[2:-2, 2:-2] = np.asarray(small, dtype=np.float32) / 255
        masks.append(mask)
    return torch.from_numpy(np.stack(masks))[:, None]


def render(
    state: Tensor,
    glyph: Tensor,
    background: Tensor,
    noise: Tensor,
    seconds: Tensor,
    *,
    size: int = VIDEO_SIZE,
    soft: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Frames (F, 3, size, size) float32 in 0..1 on the device of `state`.

    Args:
        state: (F, S, 8) sprite rows as in `Tracks.state`.
        glyph: (F, S) atlas index, −1 for an empty place.
        background: (F, K, 9) waves as in `Tracks.background`.
        noise: (F,) standard deviation of the pixel noise.
        seconds: (F,) drives the drift of the background.
        soft: (F,) bool, frames of small sprites, which are taken from a smaller picture, or they
            would sparkle; None for what `size` says.
        generator: source of the pixel noise; it fixes the frames when given.
    """
    frames = _backdrop(background, seconds, size)
    sheet = atlas().to(state.device)
    if soft is None and size < 96:  # sprites of some twenty pixels
        sheet = F.avg_pool2d(sheet, 2)
    first = torch.zeros(len(state), dtype=torch.long, device=state.device)
    if soft is not None:
        first = soft.long() * len(sheet)
        sheet = torch.cat([sheet, _softened(sheet)])
    for s in range(state.shape[1]):  # few sprites, painted in order: the later is in front
        shown = torch.nonzero((glyph[:, s] >= 0) & (state[:, s, 4] > 0.004)).flatten()
        if not len(shown):
            continue
        row = state[shown, s]
        mask = F.grid_sample(
            sheet[first[shown] + glyph[shown, s]],
            _sprite_grid(row, size),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        mask = mask * row[:, 4, None, None, None]
        paint = row[:, 5:8, None, None]
        if len(shown) == len(frames):
            frames.lerp_(paint, mask)
        else:
            frames[shown] = torch.lerp(frames[shown], paint, mask)
    shape = (
        frames.shape[0],
        1,
        size,
        size,
    )  # grey noise: a codec keeps it, colour noise it does not
    grain = torch.randn(shape, device=frames.device, generator=generator)
    return (frames + grain * noise[:, None, None, None]).clamp_(0, 1)


def render_tracks(
    shown: Tracks,
    *,
    noise: float | None = None,
    size: int = VIDEO_SIZE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The frames of tracks (F, 3, size, size), on the CPU; see `render`.

    Args:
        noise: instead of the noise that the tracks have.
    """
    count = len(shown.clock)
    return render(
        torch.from_numpy(shown.state),
        torch.from_numpy(shown.glyph).expand(count, -1),
        torch.from_numpy(shown.background).expand(count, -1, -1),
        torch.full((count,), shown.noise if noise is None else noise),
        torch.from_numpy(shown.clock),
        size=size,
        soft=torch.full((count,), True) if shown.small else None,
        generator=generator,
    )


def _softened(sheet: Tensor) -> Tensor:
    """The sprites at half their resolution, as pictures of the same size."""
    small = F.avg_pool2d(sheet, 2)
    return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


def to_uint8(frames: Tensor) -> Tensor:
    """(F, 3, H, W) in 0..1 to (F, H, W, 3) uint8, rounded."""
    return (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _axis(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size


def _backdrop(background: Tensor, seconds: Tensor, size: int) -> Tensor:
    # cos(x + y) = cos x cos y − sin x sin y: every wave is a product of rows and columns.
    axis = 2 * torch.pi * _axis(size, background.device)
    waves = background[:, 1:]
    across = waves[..., 0, None] * axis
    turn = 2 * torch.pi * (waves[..., 2] * seconds[:, None] + waves[..., 3])
    down = waves[..., 1, None] * axis + turn[..., None]
    columns = torch.cat([across.cos(), across.sin()], dim=1)  # (F, 2K, W)
    rows = torch.cat([down.cos(), -down.sin()], dim=1)  # (F, 2K, H)
    colour = torch.cat([waves[..., 4:7]] * 2, dim=1)  # (F, 2K, 3)
    painted = torch.einsum("fkc,fky->fcyk", colour, rows).flatten(1, 2) @ columns
    return painted.unflatten(1, (3, size)) + background[:, 0, 4:7, None, None]


def _sprite_grid(row: Tensor, size: int) -> Tensor:
    """For every pixel the place in the sprite, −1..1 inside it: (F, size, size, 2)."""
    axis = _axis(size, row.device)
    x, y, half, angle = (row[:, i, None, None] for i in range(4))
    dx = (axis[None, None, :] - x) / half
    dy = (axis[None, :, None] - y) / half
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], dim=-1)
