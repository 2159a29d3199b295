"""Frames that a program holds already, as a clip: numpy, torch, or pictures of PIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from vidllm.errors import InputError
from vidllm.errors.bounds import check, short

_WHEN = "say when the frames are: seconds=[0.0, 0.5, …], one a frame, or fps=2"


def is_frames(video: object) -> bool:
    """Whether this is frames in memory, or meant to be."""
    return isinstance(video, (np.ndarray, list, tuple)) or _of_torch(video)


def frames_of(video: Any) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB of frames in memory.

    Args:
        video: an array or tensor (T, H, W, 3) or (T, 3, H, W), uint8 or floating point in [0, 1];
            or a list of such pictures without T, or of PIL's.

    Raises:
        InputError: something else; the line says what came.
    """
    if isinstance(video, (list, tuple)):
        if not video:
            raise InputError("there are no frames: give at least one")
        pictures = [_picture(one, number) for number, one in enumerate(video)]
        first = pictures[0].shape
        for number, one in enumerate(pictures):
            if one.shape != first:
                raise InputError(
                    f"frame {number} is {_size(one)} and frame 0 is {_size(pictures[0])}: scale "
                    "them to one size"
                )
        return np.stack(pictures)
    array = _plain(video)
    if array.ndim == 4 and array.shape[3] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise InputError(
            f"frames are RGB of shape (T, H, W, 3) or (T, 3, H, W), not {tuple(array.shape)}"
        )
    return _bytes(array)


def seconds_of(count: int, seconds: Any, fps: Any) -> np.ndarray:
    """(T,) when frames in memory are, from the one of the two that is given.

    Raises:
        InputError: none, both, or seconds that are not one a frame, ascending from 0 on.
    """
    if seconds is None and fps is None:
        raise InputError(_WHEN)
    if seconds is not None and fps is not None:
        raise InputError("seconds and fps both say when the frames are: give one")
    if fps is not None:
        check("fps", fps)
        return np.arange(count) / float(fps)
    try:
        times = np.asarray(_plain(seconds) if _of_torch(seconds) else seconds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"seconds are numbers, one a frame, not {short(seconds)}") from error
    if times.shape != (count,):
        told = f"{len(times)} seconds" if times.ndim == 1 else f"seconds of shape {times.shape}"
        raise InputError(f"{count} frames need {count} seconds, one a frame, not {told}")
    if not np.isfinite(times).all() or times.min() < 0 or (np.diff(times) < 0).any():
        raise InputError("seconds must be finite, from 0 on, and in time order")
    return times


def length_of(seconds: np.ndarray, fps: Any, duration: Any) -> float:
    """Seconds of a video of which these are frames; the last one is shown as long as most are.

    Raises:
        InputError: a duration that ends before the last frame.
    """
    if duration is not None:
        check("end", duration, "duration")
        if duration < seconds[-1]:
            raise InputError(
                f"duration is {duration:g} s, and the last frame is at {seconds[-1]:g} s"
            )
        return float(duration)
    if fps is not None:
        return len(seconds) / float(fps)
    steps = np.diff(seconds)
    steps = steps[steps > 0]
    return float(seconds[-1] + (np.median(steps) if len(steps) else 1.0))


def _of_torch(value: object) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


def _plain(value: Any) -> np.ndarray:
    if not _of_torch(value):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        value = value.float()
    array: np.ndarray = value.numpy()
    return array


def _picture(value: Any, number: int) -> np.ndarray:
    """(H, W, 3) uint8 of one picture."""
    if type(value).__module__.split(".")[0] == "PIL":
        return np.asarray(value.convert("RGB"))
    if not isinstance(value, np.ndarray) and not _of_torch(value):
        raise InputError(
            f"frame {number} is {short(value)}: frames are arrays of numpy, tensors of torch or "
            "pictures of PIL"
        )
    array = _plain(value)
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"frame {number} is RGB of shape (H, W, 3) or (3, H, W), not {tuple(array.shape)}"
        )
    return _bytes(array)


def _bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"frames are uint8 or floating point in [0, 1], not {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also NaN
        raise InputError(
            f"frames of floating point are in [0, 1], not from {low:g} to {high:g}: undo the "
            "processor's norm, or give uint8"
        )
    return np.round(array.astype(np.float32) * 255).astype(np.uint8)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
