"""The frame strip: small pictures of the sampled frames under a map of the tokens that are kept.

The pictures are one image, sent once a clip; the map is a tiny image a frame, sent at every move
of the slider.
"""

from __future__ import annotations

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from vidllm.tokens import TokenMap
from vidllm.video import VideoClip

from .drawing import clock
from .terms import term

_WIDE = 128  # pixels of a small picture
_COLUMNS = 16  # of the image that holds them all
#: Colours laid over a place by what became of its token: RGBA.
_COVER = np.array([(12, 12, 16, 205), (37, 99, 235, 120), (0, 0, 0, 0)], dtype=np.uint8)
DROPPED, MERGED, KEPT = range(3)


def sprite(clip: VideoClip) -> str:
    """A style sheet with the pictures of a clip's frames."""
    tall = max(1, round(_WIDE * clip.height / clip.width))
    columns, rows = _sides(len(clip))
    sheet = Image.new("RGB", (columns * _WIDE, rows * tall))
    for number, frame in enumerate(clip.frames):
        small = Image.fromarray(frame).resize((_WIDE, tall), Image.Resampling.BILINEAR, None, 2.0)
        row, column = divmod(number, columns)
        sheet.paste(small, (column * _WIDE, row * tall))
    made = io.BytesIO()
    sheet.save(made, "JPEG", quality=78)
    data = base64.b64encode(made.getvalue()).decode()
    return (
        "<style>#strip .vl-pic{"
        f"background-image:url(data:image/jpeg;base64,{data});"
        f"background-size:{100 * columns}% {100 * rows}%;aspect-ratio:{_WIDE}/{tall}"
        "}</style>"
    )


def strip(clip: VideoClip, kept: TokenMap | None, note: str = "") -> str:
    """The frames of a clip, or one a slot of its tokens, under what is kept of them.

    Args:
        kept: None where it is not known. note: a line above, as HTML.
    """
    if kept is None:
        shown = list(range(len(clip)))
        covers = [""] * len(clip)
        words = [clock(t) for t in clip.seconds.tolist()]
    else:
        near = np.abs(clip.seconds[None] - kept.seconds[:, None]).argmin(1)
        shown = [int(i) for i in near]
        covers = [cover(part) for part in fates(kept)]
        cells = kept.grid[1] * kept.grid[2]
        words = [
            f"{clock(t)}: {count} of {cells} tokens"
            for t, count in zip(kept.seconds.tolist(), kept.per_frame().tolist(), strict=True)
        ]
    figures = [
        f'<figure title="{escape(word)}"><div class="vl-pic" style="{_place(i, len(clip))}">'
        f"{image}</div><figcaption>{clock(float(clip.seconds[i]))}</figcaption></figure>"
        for i, image, word in zip(shown, covers, words, strict=True)
    ]
    legend = "" if kept is None else _LEGEND
    return (
        f'{note}{legend}<div class="vl-strip" tabindex="0" role="region" '
        f'aria-label="frames of the video">{"".join(figures)}</div>'
    )


def fates(kept: TokenMap) -> np.ndarray:
    """(T, h, w) what became of every original token: `KEPT` where a kept token stands, alone or
    with others merged into it; `MERGED` where it went into one that stands elsewhere; `DROPPED`.
    """
    fate = np.where(kept.carrier >= 0, MERGED, DROPPED)
    fate[kept.place] = KEPT
    return fate.reshape(kept.grid)


def cover(fate: np.ndarray) -> str:
    """An image to lay over a frame, a pixel a token: clear where one is kept.

    Args:
        fate: (h, w) of `fates`.
    """
    if (fate == KEPT).all():
        return ""
    made = io.BytesIO()
    Image.fromarray(_COVER[fate], "RGBA").save(made, "PNG", compress_level=6)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}">'


_LEGEND = (
    '<p class="vl-legend">'
    + "".join(
        f'<span><i class="vl-{fate}"></i>{term(fate, shown)}</span>'
        for fate, shown in (("kept", ""), ("merged", "merged into another token"), ("dropped", ""))
    )
    + "</p>"
)


def _sides(count: int) -> tuple[int, int]:
    columns = min(_COLUMNS, count)
    return columns, math.ceil(count / columns)


def _place(number: int, count: int) -> str:
    columns, rows = _sides(count)
    row, column = divmod(number, columns)
    across = 100 * column / max(1, columns - 1)
    down = 100 * row / max(1, rows - 1)
    return f"background-position:{across:.4g}% {down:.4g}%"
