"""Small inputs that state enormous things: each is to be refused at once, in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vidllm.models.shipped import default_model
from vidllm.video import Limits, VideoClip, load_video

from .media_cases import Clip, insane, write_clip
from .outcomes import CHANGED, INSANE, NOTED, RAW, REFUSED, WHOLE, Case

Work = Callable[[], tuple[str, str]]
_SIDE = 8192  # pixels of the GIF
#: Stated limits of cases that have some of their own.
_LIMITS = {
    "gif: 6 frames of 8192 pixels a side": 5 * 2**28,  # just enough for them
    "gif: 6 frames of 8192 pixels a side, too many": 2**29,
}


class BombTarget:
    """See `outcomes.Target`; case n is the n-th of `BOMBS`."""

    memory: ClassVar[int] = 2**29
    seconds: ClassVar[float] = 20.0
    cases: ClassVar[int | None]

    def __init__(self, folder: Path) -> None:
        from vidllm.ask.video_llm import VideoLLM

        self._llm = VideoLLM.from_pretrained(device="cpu")
        self._clip = folder / "clip.mp4"
        if not self._clip.exists():
            write_clip(self._clip, Clip("mp4", options={"bf": "2", "preset": "ultrafast"}))
        self._index = folder / "clip.vidx"
        self._llm.index(self._clip, self._index, anyway=True)

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """See `outcomes.Target.case`."""
        name, make = list(BOMBS.items())[number]
        return Case(name, make(self, place), _LIMITS.get(name))

    # Media

    def samples(self, place: Path, *, box: bytes, at: int, count: int) -> Work:
        """An mp4 whose sample table states so many."""
        data = bytearray(self._clip.read_bytes())
        start = data.find(box) + at
        data[start : start + 4] = struct.pack(">I", count)
        return _reads(_written(place / "clip.mp4", bytes(data)))

    def sparse(self, place: Path, *, hours: float, command: str) -> Work:
        """A file of hours whose frames are 40 µs apart."""
        path = place / "clip.mkv"
        _write_fast(path)
        data = bytearray(path.read_bytes())
        start = data.find(b"\x44\x89\x88") + 3
        data[start : start + 8] = struct.pack(">d", hours * 3_600_000)
        path.write_bytes(data)
        return _reads(path) if command == "read" else self._indexes(path, place / "clip.vidx")

    def gif(self, place: Path, *, limit: int) -> Work:
        """A few kilobytes of plain colour, six frames of 8192 pixels a side."""
        from PIL import Image

        path = place / "wide.gif"
        pictures = [Image.new("P", (_SIDE, _SIDE), 3 + n) for n in range(6)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
        return _reads(path, Limits(max_bytes=limit))

    def _indexes(self, video: Path, out: Path) -> Work:
        def work() -> tuple[str, str]:
            index = self._llm.index(video, out, anyway=True)
            if index.duration > 60:
                return CHANGED, f"an index of {index.duration:g} s"
            return NOTED if index.notes else WHOLE, "; ".join(index.notes)

        return work

    # Files

    def model(self, place: Path, *, name: str, change: Callable[[bytes], bytes]) -> Work:
        """The shipped model, away from its manifest, with one file changed."""
        home = place / "model"
        home.mkdir()
        for file in default_model().iterdir():
            if file.name != name:
                (home / file.name).symlink_to(file)
        _written(home / name, change((default_model() / name).read_bytes()))

        def work() -> tuple[str, str]:
            from vidllm.ask.video_llm import VideoLLM

            VideoLLM.from_pretrained(home, device="cpu")
            return CHANGED, "loaded"

        return work

    def hours(self, place: Path) -> Work:
        """An index with right checksums over hours that its video does not have."""
        from vidllm.longvideo.index import VideoIndex
        from vidllm.longvideo.store import IndexFile, write_file

        held = IndexFile(self._index)
        tensors = {name: held[name].clone() for name in held.names()}
        facts = json.loads(json.dumps(held.facts))
        facts["duration"] = facts["until"] = 9e8
        for number, level in enumerate(facts["levels"]):
            level["windows"] = 2**30
            level["length"] = level["seconds"]
            one = tensors[f"start.{number}"]
            tensors[f"start.{number}"] = one[:1].repeat(4)
        path = place / "clip.vidx"
        shapes = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
        write_file(path, shapes, facts, list(tensors.items()))
        return lambda: (CHANGED, repr(VideoIndex.load(path, self._llm)))

    def index_length(self, place: Path) -> Work:
        """An index whose header states that it is longer than any file."""
        from vidllm.longvideo.index import VideoIndex

        data = self._index.read_bytes()
        path = _written(place / "clip.vidx", struct.pack("<Q", 2**62) + data[8:])
        return lambda: (CHANGED, repr(VideoIndex.load(path, self._llm)))

    def run_folder(self, place: Path) -> Work:
        """A run.json of lists inside lists."""
        from vidllm.eval.report.load import load_run

        _written(place / "run.json", _nested(100_000))
        return lambda: (CHANGED, repr(load_run(place)))

    # Words

    def question(self, _: Path, *, text: str) -> Work:
        """A question that no model has positions for."""

        def work() -> tuple[str, str]:
            pictures = np.zeros((2, 48, 64, 3), np.uint8)
            clip = VideoClip(pictures, np.arange(2.0), 1.0, 2.0, np.arange(2), "made")
            return CHANGED, self._llm.ask(clip, text, max_new_tokens=2, anyway=True).text

        return work

    def command(self, place: Path, *, words: Sequence[str]) -> Work:
        """A command line; VIDEO is the clip, DIR the case's folder, FIFO a pipe in it."""
        os.mkfifo(place / "fifo")
        names = {"VIDEO": str(self._clip), "FIFO": str(place / "fifo")}
        line = [names.get(word, word).replace("DIR", str(place)) for word in words]
        return lambda: _command(line)


def _reads(path: Path, limits: Limits | None = None) -> Work:
    """A clip of the file: refused, or one that can be."""

    def work() -> tuple[str, str]:
        clip = load_video(path, frames=6, limits=limits)
        if problem := insane(clip, {"frames": 6}, limits or Limits()):
            return INSANE, problem
        return NOTED if clip.notes else WHOLE, "; ".join(clip.notes) or repr(clip)

    return work


def _command(line: list[str]) -> tuple[str, str]:
    from vidllm.cli.main import main

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(line)
    said = errors.getvalue().strip().splitlines()
    if code in (1, 2) and len(said) == 1 and "Traceback" not in said[0]:
        return REFUSED, said[0]
    if code == 0:
        return CHANGED, "done, with exit code 0"
    return RAW, f"exit code {code}: {' / '.join(said[-3:])}"


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


def _write_fast(path: Path) -> None:
    """Twenty frames, 40 µs apart, in a file that says how long it is."""
    from fractions import Fraction

    import av

    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=25_000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            picture = np.full((48, 64, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25_000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _config(**fields: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        config = json.loads(data)
        config["text"].update(fields)
        return json.dumps(config).encode()

    return change


def _digits(data: bytes) -> bytes:
    return data.replace(b'"time_tokens": 100', b'"time_tokens": ' + b"9" * 5000)


def _offsets(data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for name, one in header.items():
        if name != "__metadata__":
            one["data_offsets"] = [0, 2**40]
            one["shape"] = [2**20, 2**18]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _deep_spec() -> str:
    spec = "uniform:keep=0.5"
    for _ in range(300):
        spec = f"stamped({spec})"
    return spec


def _bombs() -> Iterator[tuple[str, Callable[[BombTarget, Path], Work]]]:
    for box, at in ((b"stts", 12), (b"ctts", 12), (b"stsz", 12), (b"stts", 8), (b"ctts", 8)):
        for power in (27, 31):
            name = f"mp4: {box.decode()} of 2^{power} {'entries' if at == 8 else 'samples'}"
            count = 2**power - (power == 31)
            yield name, partial(BombTarget.samples, box=box, at=at, count=count)
    for hours in (2000 / 3600, 20_000 / 3600, 23.0):
        for command in ("read", "index"):
            name = f"mkv: frames 40 µs apart in {hours:.1f} h, {command}"
            yield name, partial(BombTarget.sparse, hours=hours, command=command)
    for name, limit in _LIMITS.items():
        yield name, partial(BombTarget.gif, limit=limit)
    configs: dict[str, Callable[[bytes], bytes]] = {
        "10^12 layers": _config(num_hidden_layers=10**12),
        "10^9 heads": _config(num_attention_heads=10**9),
        "a width of 10^9": _config(hidden_size=10**9),
        "a vocabulary of 10^12": _config(vocab_size=10**12),
        "a number of 5,000 digits": _digits,
    }
    for what, change in configs.items():
        yield f"config: {what}", partial(BombTarget.model, name="config.json", change=change)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        nested = partial(BombTarget.model, name=file, change=lambda _: _nested(100_000))
        yield f"{file} nested 100,000 deep", nested
    weights = partial(BombTarget.model, name="model.safetensors")
    yield "weights: offsets of 2^40", partial(weights, change=_offsets)
    header = struct.pack("<Q", 2**63)
    yield "weights: a header of 2^63 bytes", partial(weights, change=lambda data: header + data[8:])
    yield "index: hours that do not exist", BombTarget.hours
    yield "index: a header of 2^62 bytes", BombTarget.index_length
    yield "run.json nested 100,000 deep", BombTarget.run_folder
    for size in (30_000, 100_000, 1_000_000):
        text = "when " * (size // 5)
        yield f"a question of {size} signs", partial(BombTarget.question, text=text)
    ask = ("ask", "VIDEO", "what happens?", "--device", "cpu")
    lines: dict[str, tuple[str, ...]] = {
        "a spec 300 deep": (*ask, "--compressor", _deep_spec()),
        "a spec 3,000 long": (*ask, "--compressor", ",".join(["uniform:keep=0.5"] * 3000)),
        "frames of 5,000 digits": (*ask, "--frames", "9" * 5000),
        "10^12 frames": (*ask, "--frames", str(10**12)),
        "fps of 1e308": (*ask, "--fps", "1e308"),
        "10^15 new tokens": (*ask, "--max-new-tokens", str(10**15)),
        "a pipe as video": ("ask", "FIFO", "what happens?", "--device", "cpu"),
        "a pipe as output": ("index", "VIDEO", "--anyway", "--out", "FIFO", "--device", "cpu"),
        "a pipe as index": ("report", "FIFO"),
        "output below a device": ("index", "VIDEO", "--anyway", "--out", "/dev/null/x"),
        "a name of 5,000 signs": ("ask", "x" * 5000, "what happens?"),
        "a model name of 5,000 signs": (*ask, "--model", "x" * 5000),
    }
    for name, words in lines.items():
        yield f"command: {name}", partial(BombTarget.command, words=words)


#: Name to what makes it.
BOMBS: dict[str, Callable[[BombTarget, Path], Work]] = dict(_bombs())
BombTarget.cases = len(BOMBS)
