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
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import INDEX_FPS, check, within
from vidllm.errors.disk import UnwrittenError
from vidllm.models.engine import Engine, alone
from vidllm.models.families.engine import HubEngine
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.footage import FRAMES, unknown_notes
from vidllm.timecode.clock import clock

from .encoders import FrameEncoder, encoder_of, frame_tokens, preparing, whole_groups
from .finishing import PRECISIONS, NoFramesError, finish
from .looking import NO_SIGNALS, check_method
from .marks import method_facts, method_words, model_mark, source_mark
from .parts import Parts, folder_of, pack_thumbs
from .reading import Block, Frames, GoneError
from .store import FORMAT
from .tower import encode_block

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

    def checked(self) -> Plan:
        """The plan itself. Raises InputError for what is wrong with it alone."""
        within(INDEX_FPS, self.fps, "fps of an index")
        check("near", self.near)
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}")
        if self.tokens_per_minute is not None:
            check("tokens_per_minute", self.tokens_per_minute)
        return self

    def allowed(self, engine: NativeEngine | HubEngine, open_at: Callable[[float], Frames]) -> Plan:
        """The plan with the rate that its tokens allow.

        Args:
            open_at: opens the video for a rate.

        Raises:
            InputError: a frame alone has more, or the video cannot be read.
        """
        most, plan = self.tokens_per_minute, self
        if most is None:
            return self
        while True:  # some families scale the frames of a short clip otherwise
            if isinstance(engine, NativeEngine):
                cells = float(engine.model.grid_side**2)
            else:
                with closing(open_at(plan.fps)) as frames:
                    cells = frame_tokens(engine, frames)
            if most < cells:
                told = f"{cells:.0f} tokens: tokens_per_minute {most}"
                raise InputError(f"a frame has {told} is below that")
            rate = min(plan.fps, most / (60 * cells))
            if rate > 0.999 * plan.fps:
                return replace(plan, fps=rate)
            plan = replace(plan, fps=rate)


def build(
    engine: NativeEngine | HubEngine,
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
        fresh: begin anew instead. plan: `Plan.allowed`. Others as `index_video`.

    Returns:
        What was done: seconds, real-time factor, frames, frames encoded, seconds by stage.

    Raises:
        UnknownFootage: see `index_video`.
        InputError: a video, model or option that is wrong.
        WorkError: the disk is full, the video is gone midway, …; what was done is kept.
    """
    began = time.perf_counter()
    frames = Frames(video, plan.fps, preparing(engine), reader=reader, chunk=chunk, limits=limits)
    parts: Parts | None = None
    spent = {"read": 0.0, "encode": 0.0, "windows": 0.0}
    failure: _Halt | None = None
    try:
        unknown = _unknown(engine, frames, anyway)
        with alone(engine.worked_on):
            encoder = encoder_of(engine, frames, plan.tower)
        facts = _facts(encoder, video, plan, frames, reader, unknown)
        parts = Parts(folder_of(path), _settings(facts, frames.block), fresh=fresh)
        first = number = len(parts)
        try:
            for block in _read(frames, first, spent):
                _keep(encoder, parts, number, block, plan, spent)
                number += 1
                if progress is not None:
                    progress(frames.end_of(number - 1), frames.duration)
        except _Halt as halt:
            failure = halt
        except InputError:
            if not len(parts):  # nothing of it is worth to go on from
                parts.remove()
            raise
        frames.close()
        until = frames.end_of(number - 1) if number else 0.0
        at = time.perf_counter()
        facts |= {"until": until, "complete": failure is None}
        done = _finished(encoder, parts, path, facts, number, failure)
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
    encoder: FrameEncoder,
    parts: Parts,
    number: int,
    block: Block,
    plan: Plan,
    spent: dict[str, float],
) -> None:
    """Encode a block and keep it.

    Raises:
        _Halt: it cannot be written. InputError: its numbers do not fit into those of the file.
    """
    at = time.perf_counter()
    pixels, seconds = whole_groups(block.pixels, block.seconds, encoder.step)
    with alone(encoder.engine.worked_on):
        seen = encode_block(encoder, pixels, plan.near)
    spent["encode"] += time.perf_counter() - at
    tokens = seen.tokens.to("cpu", PRECISIONS[plan.precision])
    if not bool(torch.isfinite(tokens).all()):
        raise InputError(
            f"the model's features do not fit into {plan.precision}: index with --precision "
            "float32 (precision='float32')"
        )
    kept = {
        "tokens": tokens.contiguous(),
        "row": seen.row,
        "seconds": torch.from_numpy(seconds.copy()),
        "lost": torch.tensor(block.lost, dtype=torch.float64),
        "error": torch.tensor(seen.error),
        **pack_thumbs(block.thumbs),
    }
    try:
        parts.add(number, kept)
    except UnwrittenError as error:
        raise _Halt(error, f"{error.remedy} and run it again") from error


def _finished(
    encoder: FrameEncoder,
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
        done = finish(encoder, parts, path, facts, number)
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


#: Said where another model is given for an index, with the option that gave it.
NOT_NATIVE = (
    "an index needs a video-LLM of the hub, or one of vidllm's own models with relative time "
    "tokens, such as the shipped one: leave out {}"
)


def _not_native(engine: Engine) -> InputError:
    given = f"--recipe {engine.by_recipe}" if engine.by_recipe else "--model"
    return InputError(NOT_NATIVE.format(given))


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
        raise _not_native(engine)
    return engine


def any_engine(llm: HasEngine | Engine) -> NativeEngine | HubEngine:
    """The engine of a model of a kind that indexes are made and asked with.

    Raises:
        InputError: it is a system without an LLM.
    """
    engine = llm if isinstance(llm, Engine) else llm.engine
    return engine if isinstance(engine, HubEngine) else native_engine(engine)


def indexing_engine(llm: HasEngine | Engine) -> NativeEngine | HubEngine:
    """The engine of a model that can, with its compressors, make an index.

    Raises:
        InputError: it cannot, with the reason.
    """
    engine = any_engine(llm)
    if isinstance(engine, HubEngine):
        check_method(engine, engine.compressor)
        return engine
    if engine.config.time_code != "relative":
        raise _not_native(engine)
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
        raise InputError(NO_SIGNALS.format(method.name))
    return engine


def _unknown(engine: Engine, frames: Frames, anyway: bool) -> tuple[str, ...]:
    """The note on footage that the model does not know, before any of it is indexed.

    Raises:
        UnknownFootage: it does not know it, and `anyway` is false.
    """
    known = engine.footage
    if known is None or known.knows(engine.model.vision, frames.peek(FRAMES)):
        return ()
    return unknown_notes(anyway)


def _facts(
    encoder: FrameEncoder,
    video: Path,
    plan: Plan,
    frames: Frames,
    reader: str,
    unknown: tuple[str, ...],
) -> dict[str, Any]:
    engine = encoder.engine
    method = method_facts(engine.compressor)
    hub = {} if encoder.clip is None else {"clip": encoder.clip, "family": engine.family}
    return {
        "vidllm": __version__,
        "model": model_mark(engine),
        "recipe": method_words(method),
        "compressor": method,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "source": source_mark(video),
        "fps": plan.fps,
        "near": plan.near,
        "tower": plan.tower,
        "precision": plan.precision,
        "reader": reader,
        "duration": frames.duration,
        "notes": [*unknown, *frames.notes, *engine.compressor.notes()],
        "grid": list(encoder.grid),
        "carried": encoder.carried,
        **hub,
    }


def _settings(facts: dict[str, Any], block: int) -> dict[str, Any]:
    """What the blocks depend on; compressors come later."""
    names = ("model", "dtype", "fps", "near", "tower", "precision", "reader")
    source, told = facts["source"]["sha256"], {k: facts[k] for k in names}
    if "clip" in facts:
        told["clip"] = facts["clip"]
    return {"format": FORMAT, "block": block, "source": source, **told}
