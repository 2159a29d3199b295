"""From the blocks of frames to the file of an index: temporal encoders, windows, compression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.models.engine import alone
from vidllm.models.native.engine import NativeEngine
from vidllm.tokens import VideoTokens

from .encoders import FrameEncoder, NativeEncoder, frames_in
from .parts import Parts
from .store import write_file
from .tower import Carried
from .windows import Level, levels_for, on_screen

if TYPE_CHECKING:
    from vidllm.compressors import Compressor

PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
_CARRIED = 10**5  # blocks behind streaming temporal encoders have these numbers


class NoFramesError(InputError):
    """Nothing of a video could be read."""


def finish(
    encoder: FrameEncoder, parts: Parts, path: Path, facts: dict[str, Any], count: int
) -> dict[str, Any]:
    """Write the index of the first `count` blocks.

    Raises:
        NoFramesError: they hold no frame. WorkError: the file cannot be written.
    """
    seconds: list[np.ndarray] = []
    lost: list[float] = []
    rows, offsets, error = [], [0], 0.0
    sizes = [0, 0]
    for number in range(count):
        block = parts.load(number)
        seconds.append(block["seconds"].numpy().copy())  # else the whole block stays mapped
        lost += block["lost"].tolist()
        rows.append(block["row"] + offsets[-1])
        offsets.append(offsets[-1] + len(block["tokens"]))
        sizes = [sizes[0] + len(block["thumb_seconds"]), sizes[1] + len(block["thumbs"])]
        error = max(error, float(block["error"]))
    times = np.concatenate(seconds)
    if not len(times):
        raise NoFramesError(f"none of the frames of {facts['source']['name']} could be read")
    engine = encoder.engine
    cells, dim = encoder.cells, encoder.width
    native = engine if isinstance(engine, NativeEngine) else None  # which has windows
    carried = None if native is None else Carried.of(native.model)
    kind = PRECISIONS[facts["precision"]]
    stored = len(times) if carried else offsets[-1]
    facts = {**facts, "lost": _stretches(lost, facts["fps"]), "near_error": error}
    shapes: dict[str, Any] = {
        "seconds": (torch.float64, (len(times),)),
        "row": (torch.int32, (len(times),)),
        "thumb_seconds": (torch.float64, (sizes[0],)),
        "thumb_ends": (torch.int64, (sizes[0],)),
        "thumbs": (torch.uint8, (sizes[1],)),
        "tokens": (kind, (stored, cells, dim)),
    }
    row = torch.arange(len(times), dtype=torch.int32) if carried else torch.cat(rows)
    until = float(facts["until"])
    levels = [] if native is None else levels_for(facts["fps"], native.usual_frames, until)
    source = _Blocks(parts, np.cumsum([0, *map(len, seconds)]) if carried else np.asarray(offsets),
                     row, first=_CARRIED if carried else 0)  # fmt: skip
    told = []
    for at, level in enumerate(levels):
        windows, length = len(level.starts(until)), level.length(until)
        size = _size(cast(NativeEngine, native), level, length)
        told.append({"seconds": level.seconds, "length": length, "frames": level.frames,
                     "windows": windows, "tokens": size})  # fmt: skip
        shapes[f"start.{at}"] = (torch.float64, (windows,))
        shapes[f"features.{at}"] = (kind, (windows, size, dim))
        shapes[f"position.{at}"] = (torch.int32, (windows, size))
        shapes[f"span.{at}"] = (torch.float32, (windows, size, 2))
    facts["levels"] = told

    def pieces() -> Iterator[tuple[str, Tensor]]:
        yield "seconds", torch.from_numpy(times)
        yield "row", row
        end = 0
        for name in ("thumb_seconds", "thumb_ends", "thumbs"):
            for number in range(count):
                part = parts.load(number)[name]
                yield name, part + end if name == "thumb_ends" else part
                end += int(part[-1]) if name == "thumb_ends" and len(part) else 0
        for number in range(count):
            block = parts.load(number)
            tokens = block["tokens"]
            if carried is not None:
                frames = tokens[block["row"].long()]
                frames = frames.to(engine.model.device, encoder.dtype)
                with alone(engine.worked_on):
                    tokens = carried(frames, block["seconds"].float()).to("cpu", kind)
                parts.add(_CARRIED + number, {"tokens": tokens.contiguous()})
            yield "tokens", tokens
        for at, level in enumerate(levels):
            yield from _level(cast(NativeEngine, native), source, times, facts, at, level, kind)

    write_file(path, shapes, facts, pieces())
    frames = frames_in(times, encoder.step)
    encoded = min(frames, offsets[-1] * encoder.step)
    return {"frames": frames, "encoded": encoded, "lost": len(lost), "near_error": error}


def _level(
    engine: NativeEngine,
    source: _Blocks,
    times: np.ndarray,
    facts: dict[str, Any],
    at: int,
    level: Level,
    kind: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a level, window after window."""
    until, told = float(facts["until"]), facts["levels"][at]
    starts, length = level.starts(until), level.length(until)
    yield f"start.{at}", torch.from_numpy(starts)
    positions, spans = [], []
    parts = (np.arange(level.frames) + 0.5) * (length / level.frames)
    for start in starts:
        chosen, seconds = on_screen(times, start + parts, 1 / facts["fps"], facts["lost"])
        relative = np.clip(seconds - start, 0.0, length)
        with alone(engine.model):
            tokens = compressed(engine, engine.compressor, source.tokens(chosen), relative, length,
                                mix=not facts["carried"])  # fmt: skip
        if len(tokens) != told["tokens"]:
            raise InputError(
                f"{engine.compressor.name} leaves another number of tokens of every clip: index "
                "with a method that keeps a fixed share, such as temporal-pool"
            )
        positions.append(tokens.position.to(torch.int32))
        spans.append(tokens.span.float())
        yield f"features.{at}", tokens.features.to("cpu", kind)[None]
    yield f"position.{at}", torch.stack(positions)
    yield f"span.{at}", torch.stack(spans)


def _size(engine: NativeEngine, level: Level, length: float) -> int:
    """Tokens of a window behind the compressors."""
    side, count = engine.model.grid_side, level.frames
    blank = torch.zeros(count, side, side, NativeEncoder(engine).width)
    seconds = (torch.arange(count) + 0.5) * (length / count)
    return len(engine.compressor.before_decoder(VideoTokens.from_grid(blank, seconds, length))[0])


@torch.inference_mode()
def compressed(
    engine: NativeEngine,
    method: Compressor,
    tokens: Tensor,
    seconds: np.ndarray,
    length: float,
    *,
    mix: bool,
) -> VideoTokens:
    """Frames (T, N, D) at (T,) seconds of a range of `length` seconds, as the decoder sees them.

    Args:
        method: what compresses them. mix: run the temporal encoders first.
    """
    model = engine.model
    x = tokens.to(model.device, model.video_norm.weight.dtype)
    times = torch.from_numpy(seconds)
    if mix:
        x = model.mix(x[None], times[None].float().to(x.device))[0]
    side = model.grid_side
    whole = VideoTokens.from_grid(x.unflatten(1, (side, side)), times, length)
    return method.before_decoder(whole)[0]


class _Blocks:
    """The tokens of frames that wait in parts; the block used last stays open."""

    def __init__(self, parts: Parts, offsets: np.ndarray, row: Tensor, first: int) -> None:
        self.parts, self.offsets, self.row, self.first = parts, offsets, row, first
        self._open: dict[int, Tensor] = {}

    def tokens(self, frames: np.ndarray) -> Tensor:
        """(F, N, D) of frames by number."""
        rows = self.row[torch.from_numpy(frames)].numpy()
        blocks = np.searchsorted(self.offsets, rows, side="right") - 1
        found = [
            self._block(int(b))[int(r - self.offsets[b])] for b, r in zip(blocks, rows, strict=True)
        ]
        return torch.stack(found).float()

    def _block(self, number: int) -> Tensor:
        if number not in self._open:
            while len(self._open) > 4:
                self._open.pop(next(iter(self._open)))
            self._open[number] = self.parts.load(self.first + number)["tokens"]
        return self._open[number]


def _stretches(lost: list[float], fps: float) -> list[list[float]]:
    """Moments that are missing, as [start, end] seconds."""
    found: list[list[float]] = []
    for moment in sorted(lost):
        if found and moment - found[-1][1] <= 1.5 / fps:
            found[-1][1] = moment
        else:
            found.append([moment, moment])
    return [[round(a, 3), round(b, 3)] for a, b in found]
