"""`VideoLibrary`: a folder of indexes, searched all at once.

The indexes are files `NAME.vidx` in the folder; `library.sqlite` beside them holds what is known
of each. Several processes may use a folder at the same time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vidllm.errors import InputError, VidllmError
from vidllm.errors.paths import input_file, look
from vidllm.timecode import Span

from .catalogue import Catalogue, Entry
from .marks import is_index, model_mark, source_mark

if TYPE_CHECKING:
    from vidllm.models.engine import Engine
    from vidllm.models.families.engine import HubEngine
    from vidllm.models.native.engine import NativeEngine

    from .answering import Reader
    from .build import HasEngine
    from .index import VideoIndex
    from .looking import LookReader
    from .many import Many
    from .many_looks import ManyLooks

__all__ = ["Entry", "Hit", "Hits", "VideoLibrary"]

# `VideoLibrary.list` hides the type of its name.
Entries: TypeAlias = list[Entry]
Lines: TypeAlias = list[str]


@dataclass(frozen=True)
class Hit:
    """A moment that a query fits.

    Attributes:
        name: of the entry. video, index: its files.
        span: seconds of the video; its score is comparable between videos (see
            docs/long-video.md).
        thumbnail: seconds of the small picture nearest to the middle of the span, or None.
    """

    name: str
    video: str
    index: str
    span: Span
    thumbnail: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the span as [start, end], its score beside."""
        span = [round(self.span.start, 3), round(self.span.end, 3)]
        told = {"name": self.name, "video": self.video, "index": self.index, "span": span}
        return {**told, "score": round(self.span.score, 4), "thumbnail": self.thumbnail}


class Hits(list[Hit]):
    """Hits, the best first; `notes` say what could not be searched, one line each."""

    notes: tuple[str, ...] = ()


class VideoLibrary:
    """Indexes of many videos in one folder.

    Args:
        folder: of the library; made with the first `add`.
        llm: the model of all its indexes; None for the shipped one, loaded when it is needed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], llm: HasEngine | Engine | None = None
    ) -> None:
        look(folder, "the library")
        self.folder = Path(folder).resolve()
        self._llm = llm
        self._catalogue = Catalogue(self.folder)
        self._readers: dict[tuple[str, int, int], Reader | LookReader] = {}
        self._many: tuple[list[tuple[str, int, int]], Many | ManyLooks] | None = None

    @property
    def engine(self) -> NativeEngine | HubEngine:
        """The model that indexes and answers.

        Raises:
            InputError: it is a system without an LLM.
        """
        from vidllm.models.native.engine import NativeEngine

        from .build import any_engine

        if self._llm is None:
            self._llm = NativeEngine.load()
        return any_engine(self._llm)

    def add(self, file: str | os.PathLike[str], **options: Any) -> Entry:
        """Index a video into the library, or take an index that is there.

        A video that was added before keeps its name; one that was not finished goes on.

        Args:
            file: a video, or an index, which is copied unless it stands in the folder.
            options: of `index_video`, for a video: fps, tokens_per_minute, near, precision,
                progress, force, …

        Raises:
            InputError: no video and no index, or one of another model.
            WorkError: as `index_video`; what was indexed until then is in the library.
        """
        given = input_file(file, "video file")
        if not is_index(given):
            return self._index(given, options)
        if options:
            raise InputError(
                f"{given.name} is an index already: {', '.join(options)} are for a video"
            )
        return self._take(given)

    def list(self) -> Entries:
        """What is in the library, by name; see `Entry.problem` for what cannot be searched.

        Raises:
            InputError: the folder is no library.
        """
        return self._catalogue.entries()

    def remove(self, name: str) -> Entry:
        """Take an entry and its index out of the library; the video stays where it is.

        Raises:
            InputError: no such entry.
        """
        entry = self._catalogue.remove(name)
        with contextlib.suppress(OSError):
            Path(entry.index).unlink(missing_ok=True)
        shutil.rmtree(f"{entry.index}.part", ignore_errors=True)
        return entry

    def open(self, name: str) -> VideoIndex:
        """The index of an entry, to be asked.

        Raises:
            InputError: no such entry, or its index is missing, damaged or another file.
        """
        from .index import VideoIndex

        entry = self._catalogue.entry(name)
        if entry.problem is not None:
            raise InputError(entry.problem)
        return VideoIndex.load(entry.index, self._llm)

    def ground(self, query: str, limit: int = 10) -> Hits:
        """The moments of all videos that a query fits, the best first.

        What cannot be searched is left out and named in the `notes` of the result.

        Raises:
            InputError: no library, an empty one, an empty query, or a limit below 1.
        """
        from .readers import many_of

        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        entries = self.list()
        if not entries:
            raise InputError(f"{self.folder} is an empty library: add a video")
        self.engine.words("ground", query)  # refuses what is no query, before anything is opened
        there, readers, notes = self._usable(entries)
        keys = [_key(entry) for entry in there]
        if self._many is None or self._many[0] != keys:
            self._many = keys, many_of(readers, self.engine)
        hits = Hits()
        for number, span in self._many[1].ground(query, limit):
            hits.append(_hit(there[number], readers[number], span))
        hits.notes = tuple(notes)
        return hits

    def thumbnail(self, hit: Hit) -> bytes | None:
        """The small picture of a hit as JPEG."""
        return dict(self.open(hit.name).thumbnails()).get(hit.thumbnail or 0.0)

    def _usable(self, entries: Entries) -> tuple[Entries, Sequence[Reader | LookReader], Lines]:
        """What can be searched, and why the rest cannot."""
        from vidllm.models.native.footage import warnings_in

        model = model_mark(self.engine)
        there: Entries = []
        readers = []
        notes: Lines = []
        others: Lines = []  # made by another model
        warned: dict[str, Lines] = {}  # names by what is said of them
        for entry in entries:
            problem = entry.problem
            if problem is None and entry.model != model:
                others.append(entry.name)
                continue
            try:
                if problem is None:
                    readers.append(self._reader(entry))
                    there.append(entry)
                    for line in warnings_in(readers[-1].index.notes):
                        warned.setdefault(line, []).append(entry.name)
            except VidllmError as error:
                problem = str(error)
            notes += [] if problem is None else [problem]
            if problem is None and not entry.complete:
                notes.append(f"{entry.name} is indexed in part: add {entry.video} again to go on")
        self._readers = {_key(entry): r for entry, r in zip(there, readers, strict=True)}
        told = [f"{_named(names)}: {line}" for line, names in warned.items()]
        if others:
            one = len(others) == 1
            was, it = ("was", "it") if one else ("were", "them")
            told.append(
                f"{_named(others)} {was} made by another model: remove {it} and add {it} again"
            )
        return there, readers, [*told, *notes]

    def _reader(self, entry: Entry) -> Reader | LookReader:
        key = _key(entry)
        if key not in self._readers:
            from .index import VideoIndex
            from .readers import reader_of

            index = VideoIndex.load(entry.index, check=False, check_source=False)
            return reader_of(index, self.engine)
        return self._readers[key]

    def _index(self, video: Path, options: dict[str, Any]) -> Entry:
        from . import index_video
        from .build import indexing_engine
        from .index import VideoIndex

        mark = source_mark(video)
        indexing_engine(self.engine)
        self._catalogue.make()
        name = self._catalogue.claim(video.stem, mark, model_mark(self.engine))
        place = self._catalogue.place(name)
        try:
            index = index_video(self.engine, video, place, **options)
        except VidllmError:
            if place.exists():  # what was read until then
                self._catalogue.record(name, VideoIndex.load(place, check_source=False).facts)
            elif not place.with_name(f"{place.name}.part").exists():
                self._catalogue.remove(name)
            raise
        return self._catalogue.record(name, index.facts)

    def _take(self, file: Path) -> Entry:
        from .index import VideoIndex

        index = VideoIndex.load(file, self._llm)
        source = index.facts["source"]
        here = file.resolve().parent == self.folder
        self._catalogue.make()
        stem = file.stem if here else Path(source["name"]).stem
        name = self._catalogue.claim(stem, source, index.facts["model"], file)
        index.save(self._catalogue.place(name))
        return self._catalogue.record(name, index.facts)


def _named(names: Sequence[str]) -> str:
    """Names in a sentence, the first of many."""
    most = 3
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _key(entry: Entry) -> tuple[str, int, int]:
    """Another one when the file is another one."""
    return entry.name, entry.bytes, entry.changed


def _hit(entry: Entry, reader: Reader | LookReader, span: Span) -> Hit:
    times = reader.index.tensor("thumb_seconds").tolist()
    middle = (span.start + span.end) / 2
    nearest = min(times, key=lambda time: abs(float(time) - middle)) if times else None
    return Hit(entry.name, entry.video, entry.index, span, nearest)
