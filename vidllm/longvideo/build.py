"""Making an index: read, encode, keep block by block; then cut the windows and write the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vidllm import __version__
from vidllm.compressors import Compressor
from vidllm.compressors import build as build_method
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import INDEX_FPS, check, within
from vidllm.errors.disk import UnwrittenError
from vidllm.models.engine import Engine, alone
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.footage import FRAMES, UnknownFootage, warning

from .finishing import PRECISIONS, NoFramesError, finish
from .marks import method_facts, method_words, model_mark, source_mark
from .parts import Parts, folder_of, pack_thumbs
from .reading import BLOCK, Block, Frames, GoneError
from .store import FORMAT
from .tower import Carried, encode_block
from .windows import clock

if TYPE_CHECKING:
    from vidllm.video import Limits

#: Called with (seconds of video done, seconds of video).
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Plan:
    """How a video is indexed.

    Args:
        fps: frames a second. near: see `tower.encode_block`. precision: of stored numbers.
        tokens_per_minute: of frames before compression; fewer frames are taken to stay within.
        tower: what merges tokens inside the vision tower, as `vidllm.compressors.build` reads it.
    """

    fps: float = 1.0
    near: float = 1.0
    precision: str = "float16"
    tokens_per_minute: int | None = None
    tower: str | None = None

    def checked(self, cells: int) -> Plan:
        """The plan with the rate that its tokens allow. Raises InputError for what is wrong."""
        within(INDEX_FPS, self.fps, "fps of an index")
        check("near", self.near)
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}")
        most = self.tokens_per_minute
        if most is None:
            return self
        check("tokens_per_minute", most)
        if most < cells:
            raise InputError(f"a frame has {cells} tokens: tokens_per_minute {most} is below that")
        return replace(self, fps=min(self.fps, most / (60 * cells)))


def build(
    engine: NativeEngine,
    video: Path,
    path: Path,
    plan: Plan,
    *,
    reader: str = "pyav",
    limits: Limits | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    anyway: bool = False,
) -> dict[str, Any]:
    """Index a video into `path`; a run that was ended before goes on where it ended.

    Args:
        fresh: begin anew instead. plan: `Plan.checked`. Others as `index_video`.

    Returns:
        What was done: seconds, real-time factor, frames, frames encoded, seconds by stage.

    Raises:
        UnknownFootage: see `index_video`.
        InputError: a video, model or option that is wrong.
        WorkError: the disk is full, the video is gone midway, …; what was done is kept.
    """
    began = time.perf_counter()
    frames = Frames(video, plan.fps, engine.model.vision.image_size, reader=reader, chunk=chunk,
                    limits=limits)  # fmt: skip
    parts: Parts | None = None
    spent = {"read": 0.0, "encode": 0.0, "windows": 0.0}
    tower = None if plan.tower is None else build_method(plan.tower)
    failure: _Halt | None = None
    try:
        unknown = _unknown(engine, frames, anyway)
        facts = _facts(engine, video, plan, frames, reader, unknown)
        parts = Parts(folder_of(path), _settings(facts), fresh=fresh)
        first = number = len(parts)
        try:
            for block in _read(frames, first, spent):
                _keep(engine, parts, number, block, plan, tower, spent)
                number += 1
                if progress is not None:
                    progress(frames.end_of(number - 1), frames.duration)
        except _Halt as halt:
            failure = halt
        frames.close()
        until = frames.end_of(number - 1) if number else 0.0
        at = time.perf_counter()
        facts |= {"until": until, "complete": failure is None}
        done = _finished(engine, parts, path, facts, number, failure)
        spent["windows"] = time.perf_counter() - at
        parts.remove()
    finally:
        frames.close()
        if parts is not None:
            parts.close()
    wall = time.perf_counter() - began
    covered = frames.duration - (frames.end_of(first - 1) if first else 0.0)
    return {
        **done,
        "duration": frames.duration,
        "wall": wall,
        "speed": covered / wall,
        "resumed": frames.duration - covered,
        "spent": spent,
        "bytes": path.stat().st_size,
        "notes": list(frames.notes),
    }


class _Halt(WorkError):
    """Why no more could be indexed, and what to do about it."""

    def __init__(self, error: Exception, remedy: str) -> None:
        super().__init__(str(error))
        self.remedy = remedy


def _read(frames: Frames, first: int, spent: dict[str, float]) -> Iterator[Block]:
    """The blocks from `first` on. Raises _Halt where the file is gone."""
    with closing(frames.blocks(first)) as coming:
        while True:
            at = time.perf_counter()
            try:
                block = next(coming, None)
            except GoneError as error:
                raise _Halt(error, "run it again when the video is back") from error
            except WorkError as error:
                raise _Halt(error, "run it again when it can be read") from error
            except MemoryError as error:
                raise _Halt(
                    WorkError("there is not enough memory to read on"), "run it again with more"
                ) from error
            spent["read"] += time.perf_counter() - at
            if block is None:
                return
            yield block


def _keep(
    engine: NativeEngine,
    parts: Parts,
    number: int,
    block: Block,
    plan: Plan,
    tower: Compressor | None,
    spent: dict[str, float],
) -> None:
    """Encode a block and keep it. Raises _Halt where it cannot be written."""
    at = time.perf_counter()
    with alone(engine.model):
        seen = encode_block(engine.model, block.pixels, plan.near, tower)
    spent["encode"] += time.perf_counter() - at
    kept = {
        "tokens": seen.tokens.to("cpu", PRECISIONS[plan.precision]).contiguous(),
        "row": seen.row,
        "seconds": torch.from_numpy(block.seconds.copy()),
        "lost": torch.tensor(block.lost, dtype=torch.float64),
        "error": torch.tensor(seen.error),
        **pack_thumbs(block.thumbs),
    }
    try:
        parts.add(number, kept)
    except UnwrittenError as error:
        raise _Halt(error, f"{error.remedy} and run it again") from error


def _finished(
    engine: NativeEngine,
    parts: Parts,
    path: Path,
    facts: dict[str, Any],
    number: int,
    failure: _Halt | None,
) -> dict[str, Any]:
    """Write the file of what is there.

    Raises:
        WorkError: after a failure always; else where the file cannot be written, or the video
            is not the one that was begun with any more.
    """
    name, folder, whole = facts["source"]["name"], parts.folder, clock(facts["duration"])
    if failure is not None and number == 0:
        raise WorkError(f"{failure}; {failure.remedy}") from failure
    video = Path(facts["source"]["path"])
    if failure is None and source_mark(video)["sha256"] != facts["source"]["sha256"]:
        raise WorkError(f"{name} changed while it was read: delete {folder} and index it again")
    reached = "" if failure is None else f"{failure} after {clock(facts['until'])} of {whole}: "
    try:
        done = finish(engine, parts, path, facts, number)
    except NoFramesError as error:
        parts.remove()
        if failure is not None:
            raise WorkError(f"{failure}; {failure.remedy}") from failure
        raise InputError(f"{error}{''.join(f'; {note}' for note in facts['notes'])}") from error
    except WorkError as error:
        why = reached or f"{error}: "
        remedy = error.remedy if isinstance(error, UnwrittenError) else "see to that"
        if failure is not None and failure.remedy.endswith(" and run it again"):
            remedy = failure.remedy.removesuffix(" and run it again")
        raise WorkError(
            f"{why}what was indexed waits in {folder}; {remedy} and run it again"
        ) from error
    if failure is not None:
        raise WorkError(f"{reached}{path} holds what was indexed; {failure.remedy}") from failure
    return done


#: Said where another model is given for an index.
NOT_NATIVE = (
    "an index needs one of vidllm's own models with relative time tokens, such as the "
    "shipped one: leave out --model"
)


class HasEngine(Protocol):
    """What has an engine: a `VideoLLM`."""

    @property
    def engine(self) -> Engine: ...


def native_engine(llm: HasEngine | Engine) -> NativeEngine:
    """The engine of a model of this project.

    Raises:
        InputError: it is one of another family.
    """
    engine = llm if isinstance(llm, Engine) else llm.engine
    if not isinstance(engine, NativeEngine):
        raise InputError(NOT_NATIVE)
    return engine


def indexing_engine(llm: HasEngine | Engine) -> NativeEngine:
    """The engine of a model that can, with its compressors, make an index.

    Raises:
        InputError: it cannot, with the reason.
    """
    engine = native_engine(llm)
    if engine.config.time_code != "relative":
        raise InputError(NOT_NATIVE)
    if engine.config.stamps:
        raise InputError("an index is not made for models that are told times as text")
    if isinstance(engine.model.vision, VisionEncoder):
        raise InputError(
            "this model's vision tower sees whole clips: an index needs one that sees single "
            "frames, as the shipped model has"
        )
    method = engine.compressor
    if method.query_aware or method.inside_decoder():
        raise InputError(
            f"{method.name} needs the question or the decoder: index with a compressor of the "
            "stage tokens that reads neither, such as temporal-pool"
        )
    if method.needs or "vision" in method.stage.split(","):
        raise InputError(
            f"{method.name} works with the vision tower, whose signals an index does not hold: "
            "index with a compressor of the stage tokens, such as temporal-pool"
        )
    return engine


def _unknown(engine: NativeEngine, frames: Frames, anyway: bool) -> tuple[str, ...]:
    """The note on footage that the model does not know, before any of it is indexed.

    Raises:
        UnknownFootage: it does not know it, and `anyway` is false.
    """
    known = engine.footage
    if known is None or known.knows(engine.model.vision, frames.peek(FRAMES)):
        return ()
    if not anyway:
        raise UnknownFootage
    return (warning(),)


def _facts(
    engine: NativeEngine,
    video: Path,
    plan: Plan,
    frames: Frames,
    reader: str,
    unknown: tuple[str, ...],
) -> dict[str, Any]:
    method = method_facts(engine.compressor)
    return {
        "vidllm": __version__,
        "model": model_mark(engine),
        "recipe": method_words(method),
        "compressor": method,
        "dtype": str(engine.model.video_norm.weight.dtype).removeprefix("torch."),
        "source": source_mark(video),
        "fps": plan.fps,
        "near": plan.near,
        "tower": plan.tower,
        "precision": plan.precision,
        "reader": reader,
        "duration": frames.duration,
        "notes": [*unknown, *frames.notes, *engine.compressor.notes()],
        "grid": [engine.model.grid_side, engine.model.grid_side],
        "carried": Carried.of(engine.model) is not None,
    }


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    """What the blocks depend on; compressors come later."""
    names = ("model", "dtype", "fps", "near", "tower", "precision", "reader")
    source = facts["source"]["sha256"]
    return {"format": FORMAT, "block": BLOCK, "source": source, **{k: facts[k] for k in names}}
