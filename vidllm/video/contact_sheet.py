"""Frames of a clip side by side, each with its time: for notebooks, and to save as a picture."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _LINE = 240, 18  # pixels of a frame, and of the line below it


def contact_sheet(
    frames: np.ndarray, seconds: np.ndarray, most: int = 12, columns: int = 4
) -> Image:
    """One picture of at most `most` of the frames, evenly taken, in rows of `columns`.

    Args:
        frames: (T, H, W, 3) uint8. seconds: (T,).

    Raises:
        InputError: no frames, or a number below 1.
    """
    if not len(frames) or most < 1 or columns < 1:
        raise InputError("a contact sheet has at least one frame and one column")
    from PIL import Image, ImageDraw

    count = min(most, len(frames))
    chosen = np.round(np.linspace(0, len(frames) - 1, count)).astype(int)
    height = max(1, round(_WIDTH * frames.shape[1] / frames.shape[2]))
    columns = min(columns, count)
    size = columns * _WIDTH, math.ceil(count / columns) * (height + _LINE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        left, top = place % columns * _WIDTH, place // columns * (height + _LINE)
        sheet.paste(Image.fromarray(frames[index]).resize((_WIDTH, height)), (left, top))
        draw.text((left + 4, top + height + 3), f"{seconds[index]:.1f} s", fill="black")
    return sheet


def show_in_notebook(picture: Any) -> None:
    """Display a picture in the running notebook.

    Raises:
        InputError: there is none.
    """
    try:
        python: Any = importlib.import_module("IPython")
        shell: Any = python.get_ipython()
    except ImportError:
        shell = None
    if not hasattr(shell, "kernel"):
        raise InputError(
            "show() draws in a Jupyter notebook, and this is none: "
            "clip.contact_sheet().save('frames.png') writes the picture"
        )
    python.display.display(picture)
