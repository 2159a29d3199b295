"""How a video file says that its pictures are to be shown: pixel shape, turns, and what is left.

Pictures come out as players show them: pixels square, turned and mirrored upright. What is not
undone (interlacing, HDR transfer, projections) is told in a note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from av.sidedata.sidedata import Type

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: Pixels as wide as these are believed: anamorphic video has up to about 3.
_WIDEST = 8.0
_TURN = 2.0  # degrees that a quarter turn may be off
_HDR = {16: "PQ", 18: "HLG"}  # ITU-T H.273, transfer characteristics
SIZES_NOTE = "the file has pictures of different sizes: all are made equally large"
TRANSPARENT_NOTE = "the video has transparency: its pictures are shown without"
_TRANSPARENT = ("yuva", "gbrap", "ya")  # formats of pixels; GIF and PNG pictures have others
_SIDE = {
    Type.STEREO3D: "the video is stereoscopic: the pictures hold both views, or one of them",
    Type.SPHERICAL: "the video is spherical: the pictures are its flat projection",
}


def display_size(stream: VideoStream) -> tuple[tuple[int, int], list[str]]:
    """(height, width) of a stream's pictures with square pixels, before turns, and notes.

    The shorter side grows, as in players: no pixel is lost.
    """
    height, width = stream.codec_context.height, stream.codec_context.width
    aspect = float(stream.sample_aspect_ratio or 1)
    # VP8 and VP9 hold transparency in data beside the pictures, which decoders leave alone.
    notes = [TRANSPARENT_NOTE] if stream.metadata.get("alpha_mode") == "1" else []
    if aspect <= 0 or aspect == 1.0:
        return (height, width), notes
    if not 1 / _WIDEST <= aspect <= _WIDEST:
        told = f"the file asks for pixels {aspect:.3g} times as wide as high: shown as square ones"
        return (height, width), [*notes, told]
    if aspect > 1:
        return (height, max(1, round(width * aspect))), notes
    return (max(1, round(height / aspect)), width), notes


def upright(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """(H, W, 3) turned and mirrored by a display matrix, to the nearest quarter turn.

    Args:
        matrix: (3, 3) as in ISO/IEC 14496-12, 8.3.2: (x, y) times it; None to do nothing.
    """
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return picture.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """(3, 3) int32 of a frame; None where it has none."""
    known = _side_data(frame)
    if known is None:
        turn = np.deg2rad(frame.rotation)
        (a, b), size = (np.cos(turn), np.sin(turn)), 1 << 16
        return np.rint([[a * size, -b * size, 0], [b * size, a * size, 0], [0, 0, 1]]).astype("=i4")
    data = known.get(Type.DISPLAYMATRIX.name)
    if data is None or data.buffer_size < 36:
        return None
    return np.frombuffer(bytes(data)[:36], "=i4").reshape(3, 3)


def _side_data(frame: VideoFrame) -> Any:
    """What gets a frame's side data by the names of their kinds; None where PyAV cannot."""
    try:
        return frame.side_data
    except ValueError:  # a kind that it has no name for, such as EXIF
        return None


def is_mirrored(matrix: np.ndarray | None) -> bool:
    """Whether a display matrix shows a picture as in a mirror."""
    return matrix is not None and _determinant(matrix) < 0


def _determinant(matrix: np.ndarray) -> float:
    (a, b), (c, d) = matrix[:2, :2].astype(float).tolist()
    return float(a * d - b * c)


def frame_notes(frame: VideoFrame) -> list[str]:
    """What a picture asks for and is not given, one line each."""
    notes = []
    if frame.interlaced_frame:
        notes.append("the video is interlaced: what moves has comb-like edges")
    if (transfer := _HDR.get(int(frame.color_trc))) is not None:
        notes.append(f"the video is HDR ({transfer}): colours come paler than players show them")
    known = _side_data(frame)
    notes += [note for kind, note in _SIDE.items() if known and known.get(kind.name) is not None]
    if known is None and frame.rotation:
        notes.append("the pictures are turned as their EXIF data says, but never mirrored")
    if frame.format.name.startswith(_TRANSPARENT):
        notes.append(TRANSPARENT_NOTE)
    matrix = display_matrix(frame)
    off = frame.rotation % 90 if matrix is not None and _determinant(matrix) else 0
    if min(off, 90 - off) > _TURN:
        notes.append(
            f"the file asks for a turn of {frame.rotation % 360:g} degrees:"
            " turned by the nearest quarter"
        )
    return notes
