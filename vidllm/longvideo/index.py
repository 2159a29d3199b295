"""`VideoIndex`: a long video that was read once, asked as often as one likes.

Nothing that a question chooses changes the index: the next question starts clean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import InputError
from vidllm.errors.disk import unwritten
from vidllm.errors.keywords import known_keywords
from vidllm.errors.paths import is_file, output_file
from vidllm.models.answer import Answer
from vidllm.timecode import Span
from vidllm.timecode.clock import clock

from .marks import model_mark, source_mark
from .store import IndexFile

_TOLD = 5  # stretches without frames that are told

if TYPE_CHECKING:
    from torch import Tensor

    from vidllm.models.engine import Engine
    from vidllm.models.families.engine import HubEngine
    from vidllm.models.native.engine import NativeEngine

    from .answering import Reader
    from .build import HasEngine
    from .looking import LookReader


class VideoIndex:
    """An index file, with or without the model that answers from it.

    Attributes:
        facts: what the file says of itself: source, duration, fps, model, recipe, levels, lost,
            complete, until, …, for a model of the hub also family and clip; see docs/long-video.md.
        made: how it was made, where it just was: "wall", "speed", "frames", "encoded", …

    Make one with `VideoLLM.index` or `load`.
    """

    def __init__(self, file: IndexFile, llm: HasEngine | Engine | None = None) -> None:
        self._file = file
        self._engine: NativeEngine | HubEngine | None = None
        self.facts = file.facts
        self._reader: Reader | LookReader | None = None
        self.made: dict[str, Any] | None = None  # how it was made, right after it was
        if llm is not None:
            from .build import any_engine

            engine = any_engine(llm)
            self._check_model(engine, "this one")
            self._engine = engine

    def _check_model(self, engine: NativeEngine | HubEngine, which: str) -> None:
        if model_mark(engine) != self.facts["model"]:
            family = f" ({self.facts['family']})" if "family" in self.facts else ""
            raise InputError(
                f"{self.path.name} was made by another model{family} than {which}: give the one "
                "that it was made with, or index the video again"
            )
        from .encoders import damage_of  # which needs a model's modules

        wrong = damage_of(engine, self.facts, self.duration, self._file["tokens"].shape[2])
        if wrong:
            raise InputError(
                f"{self.path} is damaged: {wrong} is not what its model makes: index the video "
                "again"
            )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        llm: HasEngine | Engine | None = None,
        *,
        check: bool = True,
        check_source: bool = True,
    ) -> VideoIndex:
        """Open an index. Without a model it can be looked at; the first question loads one.

        Args:
            path: of the file. llm: the model that made it; None for the shipped one when asked.
            check: compare checksums. check_source: where the video is still at its place, see
                that it is the one that was indexed.

        Raises:
            InputError: no index, a damaged one, a wrong model, or a video that has changed.
        """
        found = cls(IndexFile(path, check=check), llm)
        if check_source:
            found.check_source()
        return found

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._file.path

    @property
    def duration(self) -> float:
        """Seconds that are indexed."""
        return float(self.facts["until"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, one line each."""
        notes = [*self.facts["notes"]]
        if not self.facts["complete"]:
            whole = clock(self.facts["duration"])
            notes.append(f"only the first {clock(self.duration)} of {whole} are indexed")
        lost = self.facts["lost"]
        for start, end in lost[:_TOLD]:
            where = f"at {clock(start)}"
            if clock(start) != clock(end):
                where = f"between {clock(start)} and {clock(end)}"
            notes.append(f"nothing could be read {where}")
        if len(lost) > _TOLD:
            notes.append(f"nothing could be read in {len(lost) - _TOLD} more places")
        return tuple(notes)

    def check_source(self) -> None:
        """See that the video, if it is still there, is the one that was indexed.

        Raises:
            InputError: it has changed.
        """
        source = self.facts["source"]
        place = Path(source["path"])
        if is_file(place) and source_mark(place)["sha256"] != source["sha256"]:
            raise InputError(
                f"{place.name} has changed since {self.path.name} was made: index it again"
            )

    def frames(self) -> tuple[np.ndarray, Tensor]:
        """All frames: (T,) seconds, and which row of the stored tokens each one has."""
        return self._file["seconds"].numpy(), self._file["row"]

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file by name, mapped: see `names`."""
        return self._file[name]

    def names(self) -> list[str]:
        """Names of the file's tensors."""
        return self._file.names()

    def thumbnails(self) -> list[tuple[float, bytes]]:
        """(seconds, JPEG) of small pictures, in time order."""
        ends = self._file["thumb_ends"].tolist()
        data = self._file["thumbs"].numpy()
        starts = [0, *ends[:-1]]
        times = self._file["thumb_seconds"].tolist()
        return [(t, data[a:b].tobytes()) for t, a, b in zip(times, starts, ends, strict=True)]

    @property
    def engine(self) -> NativeEngine | HubEngine:
        """The model that answers; the shipped one is loaded when nobody gave another.

        Raises:
            InputError: the index is of another model.
        """
        if self._engine is None:
            from vidllm.models.native.engine import NativeEngine

            engine = NativeEngine.load()
            self._check_model(engine, "the shipped one")
            self._engine = engine
        return self._engine

    @property
    def reader(self) -> Reader | LookReader:
        """What answers from this index."""
        if self._reader is None:
            from .readers import reader_of

            self._reader = reader_of(self, self.engine)
        return self._reader

    @known_keywords()
    def ask(self, question: str) -> Answer:
        """Answer a question about the whole video.

        A question for a time is answered as `ground` does. For others every window says what it
        would answer; the windows that are surest are looked at again together.

        Raises:
            InputError: an empty question.
        """
        return self.reader.ask(question)

    @known_keywords()
    def ground(self, query: str) -> list[Span]:
        """When what `query` describes happens: spans in seconds, the best first; none if unknown.

        The score of a span is its share of the votes (see docs/long-video.md).
        """
        return list(self.ground_answer(query).spans)

    @known_keywords()
    def ground_answer(self, query: str) -> Answer:
        """As `ground`, with text, what was looked at (`notes`), and a receipt."""
        return self.reader.ground(self.engine.words("ground", query))

    @known_keywords()
    def caption(self, start: float | None = None, end: float | None = None) -> Answer:
        """What happens between two seconds (None: of the whole video), with times.

        Raises:
            InputError: a range outside what is indexed.
        """
        return self.reader.caption(start, end)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copy the file to another place. Raises WorkError where it cannot be written."""
        place = output_file(path, "the index", beside=".new")
        part = place.with_name(place.name + ".new")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not (place.exists() and place.samefile(self.path)):
                shutil.copyfile(self.path, part)
                part.replace(place)
        except OSError as error:
            raise unwritten(place, error) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return place

    def __repr__(self) -> str:
        levels: Sequence[dict[str, Any]] = self.facts["levels"]
        windows = " + ".join(f"{x['windows']} windows of {x['seconds']:g} s" for x in levels)
        windows = windows or f"clips of {self.facts['clip']['frames']} frames"
        return (
            f"VideoIndex({self.facts['source']['name']!r}, {clock(self.duration)}, "
            f"{self.facts['fps']:g} fps, {windows})"
        )
