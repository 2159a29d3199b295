"""Frames in memory as a clip: every kind that programs hold, and a line for every mistake."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vidllm import InputError, VideoClip

RGB = np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
KINDS: dict[str, Any] = {
    "numpy": RGB,
    "numpy channels first": RGB.transpose(0, 3, 1, 2),
    "torch": torch.from_numpy(RGB),
    "torch channels first": torch.from_numpy(RGB).permute(0, 3, 1, 2),
    "floats": RGB.astype(np.float32) / 255,
    "torch floats": torch.from_numpy(RGB).permute(0, 3, 1, 2).double() / 255,
    "list of arrays": list(RGB),
    "list of tensors": [torch.from_numpy(one).permute(2, 0, 1) for one in RGB],
    "list of pictures": [Image.fromarray(one) for one in RGB],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_clip(kind: str) -> None:
    clip = VideoClip.from_frames(KINDS[kind], fps=2)
    assert np.array_equal(clip.frames, RGB)
    assert clip.seconds.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert (clip.duration, clip.fps) == (2.0, 2.0)


def test_seconds_say_when_the_frames_are() -> None:
    clip = VideoClip.from_frames(RGB, seconds=torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert clip.seconds.tolist() == [1.0, 2.0, 4.0, 5.0] and clip.duration == 6.0
    assert VideoClip.from_frames(RGB, seconds=[1, 2, 4, 5], duration=9).duration == 9.0
    assert VideoClip.from_frames(RGB[:1], seconds=[3.0]).duration == 4.0


WRONG: Sequence[tuple[Any, dict[str, Any], str]] = (
    (RGB, {}, r"^say when the frames are: seconds=\[.*, one a frame, or fps=2$"),
    (RGB, {"seconds": [0, 1, 2, 3], "fps": 1}, "both say when"),
    (RGB, {"seconds": [0, 1, 2]}, "4 frames need 4 seconds, one a frame, not 3 seconds"),
    (RGB, {"seconds": [[0, 1, 2, 3]]}, r"not seconds of shape \(1, 4\)"),
    (RGB, {"seconds": [0, 2, 1, 3]}, "in time order"),
    (RGB, {"seconds": [0, 1, 2, np.nan]}, "must be finite"),
    (RGB, {"seconds": ["a", "b", "c", "d"]}, "seconds are numbers"),
    (RGB, {"fps": 0}, "fps must be"),
    (RGB, {"fps": 1, "duration": 2}, "duration is 2 s, and the last frame is at 3 s"),
    (RGB[0], {"fps": 1}, r"of shape \(T, H, W, 3\) or \(T, 3, H, W\), not \(12, 16, 3\)"),
    (RGB[..., :1], {"fps": 1}, r"not \(4, 12, 16, 1\)"),
    (RGB[:0], {"fps": 1}, r"not \(0, 12, 16, 3\)"),
    (RGB.astype(np.int64), {"fps": 1}, r"uint8 or floating point in \[0, 1\], not int64"),
    (RGB.astype(np.float32), {"fps": 1}, r"in \[0, 1\], not from 0 to 255: undo"),
    (np.full((2, 4, 4, 3), np.nan), {"fps": 1}, "not from nan to nan"),
    ([], {"fps": 1}, "there are no frames"),
    ([RGB[0], RGB[0, :6]], {"fps": 1}, "frame 1 is 16x6 and frame 0 is 16x12"),
    (["a.png"], {"fps": 1}, "frame 0 is 'a.png': frames are arrays of numpy, tensors"),
    ([RGB[0], RGB[0, 0]], {"fps": 1}, r"frame 1 is RGB of shape \(H, W, 3\).*not \(16, 3\)"),
)


@pytest.mark.parametrize(("frames", "when", "told"), WRONG)
def test_a_mistake_gets_one_line(frames: Any, when: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        VideoClip.from_frames(frames, **when)
    assert "\n" not in str(caught.value)


def test_a_clip_is_shown_in_a_notebook_and_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = VideoClip.from_frames(RGB, fps=2)
    assert clip.contact_sheet(most=3, columns=2).size == (480, 2 * (180 + 18))
    with pytest.raises(InputError, match="and this is none: "):
        clip.show()
    (tmp_path / "IPython").mkdir()  # what a notebook's kernel gives, without installing one
    (tmp_path / "IPython" / "__init__.py").write_text(
        "from . import display\nclass Shell: kernel = True\ndef get_ipython(): return Shell()\n"
    )
    (tmp_path / "IPython" / "display.py").write_text("shown = []\ndisplay = shown.append\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("IPython", "IPython.display"):  # as they were, for whoever asks afterwards
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    clip.show(most=2)
    from IPython import display  # type: ignore[import-not-found]

    assert [picture.size for picture in display.shown] == [(480, 198)]
