"""Damaged media: small clips of every usual container, mutated, read as `load_video` reads them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vidllm.errors.printable import printable
from vidllm.video import Limits, VideoClip, load_video

from .byte_damage import ANYWHERE, lie
from .outcomes import CHANGED, INSANE, NOTED, PICTURES, TIMES, WHOLE, Case

#: What a clip may cost here; the memory of a case is compared with `max_bytes`.
LIMITS = Limits(max_pixels=2**21, max_bytes=2**27, max_frames=512)
#: How a file is read.
READINGS: tuple[dict[str, Any], ...] = (
    {"frames": 8},
    {"frames": 200},
    {"fps": 4.0},
    {"times": (1.1, 0.0, 0.7)},
    {"frames": 3, "start": 0.4, "end": 1.3},
)
#: Containers that state how long they are, so that what is cut off them can be noticed.
_STATES_LENGTH = ("mp4", "mov", "mkv", "webm", "avi")
_LIE = "field"


@dataclass(frozen=True)
class Clip:
    """How an undamaged clip is encoded."""

    suffix: str
    codec: str = "libx264"
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    uneven: bool = False
    audio: bool = False
    rotation: int = 0
    states_length: bool = True


_B = {"bf": "2", "preset": "ultrafast"}
CLIPS: dict[str, Clip] = {
    "mp4": Clip("mp4", options=_B),
    "mp4-faststart": Clip("mp4", options=_B, container={"movflags": "faststart"}),
    "mp4-uneven": Clip("mp4", options=_B, uneven=True),
    "mp4-audio": Clip("mp4", options=_B, audio=True, rotation=90),
    "mp4-fragments": Clip(
        "mp4",
        options=_B,
        container={"movflags": "frag_keyframe+empty_moov"},
        states_length=False,
    ),
    "mov": Clip("mov", "mpeg4"),
    "mkv": Clip("mkv", options=_B),
    "mkv-uneven": Clip("mkv", options=_B, uneven=True),
    "webm": Clip("webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "avi": Clip("avi", "mpeg4", options={"bf": "2"}),
    "ts": Clip("ts", options=_B, states_length=False),
    "gif": Clip("gif", "gif", "rgb8", states_length=False),
}


class MediaTarget:
    """Mutated media files; see `outcomes.Target`.

    Args:
        folder: for the undamaged clips.
    """

    memory: ClassVar[int] = LIMITS.max_bytes
    seconds: ClassVar[float] = 5.0
    cases: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._right: dict[tuple[str, int], VideoClip] = {}
        for name, clip in CLIPS.items():
            path = folder / f"{name}.{clip.suffix}"
            if not path.exists():
                write_clip(path, clip)
            self._files[name] = path
            for number, reading in enumerate(READINGS):
                self._right[name, number] = load_video(path, **reading, limits=LIMITS)

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """See `outcomes.Target.case`."""
        name = list(CLIPS)[number % len(CLIPS)]
        data = bytearray(self._files[name].read_bytes())
        mutation = _LIE if draw.random() < 0.3 else draw.choice(list(ANYWHERE))
        suffix = CLIPS[name].suffix
        if mutation == _LIE:
            lie(data, draw, suffix)
        else:
            alike = [n for n in CLIPS if CLIPS[n].suffix == suffix and n != name]
            other = draw.choice(alike or list(CLIPS))
            ANYWHERE[mutation](data, draw, self._files[other].read_bytes())
        path = place / self._files[name].name
        path.write_bytes(data)
        reading = draw.randrange(len(READINGS))
        return Case(f"{suffix} {mutation}", lambda: self._read(path, name, reading, mutation))

    def _read(self, path: Path, name: str, reading: int, mutation: str) -> tuple[str, str]:
        clip = load_video(path, **READINGS[reading], limits=LIMITS)
        if problem := insane(clip, READINGS[reading]):
            return INSANE, f"{problem} ({READINGS[reading]})"
        right = self._right[name, reading]
        new = [note for note in clip.notes if note not in right.notes]
        if new:
            return NOTED, "; ".join(new)
        same_times = np.array_equal(clip.seconds, right.seconds)
        if not same_times or clip.frames.shape != right.frames.shape:
            told = f"{len(clip)} frames to {clip.seconds[-1]:.3f} s ({READINGS[reading]})"
            if mutation == "cut" and CLIPS[name].states_length:
                return CHANGED, told
            return TIMES, told
        same = np.array_equal(clip.frames, right.frames)
        return (WHOLE if same else PICTURES), ""


def insane(clip: VideoClip, reading: dict[str, Any], limits: Limits = LIMITS) -> str:
    """What cannot be of a clip that was read so; empty for one that can."""
    count, times = len(clip), reading.get("times")
    finite = [*clip.seconds.tolist(), clip.fps, clip.duration]
    most = reading.get("frames", limits.max_frames) if times is None else len(times)
    checks = {
        "shape": clip.frames.ndim == 4 and clip.frames.shape[3] == 3 and count > 0,
        "type": clip.frames.dtype == np.uint8,
        "as many seconds": clip.seconds.shape == clip.indices.shape == (count,),
        "numbers": bool(np.isfinite(finite).all()),
        "seconds from 0": bool((clip.seconds >= 0).all()),
        "fps and duration": clip.fps > 0 and clip.duration > 0,
        "seconds within the file": bool((clip.seconds <= clip.duration + 1e-6).all()),
        "frames asked": count <= most,
        "pixels": clip.width * clip.height <= limits.max_pixels,
        "bytes": clip.frames.nbytes <= limits.max_bytes,
        "lines": all(note.strip() and note == printable(note) for note in clip.notes),
    }
    if times is None:
        checks["rising"] = bool((np.diff(clip.seconds) >= 0).all())
        checks["rising indices"] = bool((np.diff(clip.indices) > 0).all())
        low, high = reading.get("start", 0.0), reading.get("end", np.inf)
        shown = clip.seconds[1:]  # the first may be shown since before
        checks["range"] = bool(((shown >= low) & (shown < high)).all())
    return ", ".join(name for name, right in checks.items() if not right)


def write_clip(path: Path, clip: Clip, frames: int = 20) -> None:
    """Encode two seconds of a small moving picture; the same bytes each time."""
    import av

    base = Fraction(1, 1000) if clip.uneven else Fraction(1, 10)
    with av.open(str(path), "w", container_options=clip.container) as out:
        stream: Any = out.add_stream(clip.codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, clip.pixels
        stream.codec_context.gop_size = 6
        stream.options = {"threads": "1", **clip.options}
        if clip.uneven:
            stream.codec_context.time_base = base
        if clip.rotation:
            stream.set_display_rotation(clip.rotation)
        sound: Any = out.add_stream("aac", rate=16000) if clip.audio else None
        if sound is not None:
            sound.layout = "mono"
            for start in range(0, 32_000, 1024):
                wave = np.sin(np.arange(start, start + 1024, dtype=np.float32) / 7)[None]
                heard = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
                heard.sample_rate, heard.pts, heard.time_base = 16000, start, Fraction(1, 16000)
                out.mux(sound.encode(heard))
            out.mux(sound.encode(None))
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(_picture(number), format="rgb24")
            frame.pts = number * 100 + (37 * number) % 60 if clip.uneven else number
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _picture(number: int) -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    seed = int.from_bytes(hashlib.sha256(number.to_bytes(4, "big")).digest()[:4], "big")
    grain = np.random.default_rng(seed).integers(0, 30, (48, 64))
    layers = [x * 4 + number * 9, y * 5 + number * 3, grain + 8 * number]
    return np.stack(layers, axis=-1).astype(np.uint8)
