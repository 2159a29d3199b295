"""What is kept of a visitor while the page is open: the video, its encoding, the last answer."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .jobs import Job, Turns
from .screen import Screen

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.longvideo.index import VideoIndex
    from vidllm.timecode import Span
    from vidllm.tokens import TokenMap
    from vidllm.video import VideoClip


class Row(NamedTuple):
    """Spans that the timeline shows under one name."""

    name: str
    spans: Sequence[Span]


class Turn(NamedTuple):
    """A question about the clip and its answer; account: how it was made, in a line."""

    question: str
    text: str
    account: str = ""


@dataclass
class Session:
    """One visitor's page.

    Attributes:
        llm: the shared weights with a memory of this visitor's clip.
        path: of the video, "" for none; refused: the last file could not be read.
        offered: the sample of the opening went to the browser, which has not told of it yet.
        clip: its sampled frames, and asked: how many were. duration: of the video.
        kept: what a method leaves of the clip. rows: spans of the last answer.
        turns: the questions about the clip and their answers.
        jobs: the work of the page. looking: the last look at the tokens.
        index: of the long video, in folder, which is the session's own.
        files: that were uploaded. lock: held by who reads or changes the clip.
        calls: whose turn it is among calls of a program. screen: who may write where.
        used: when the session was last seen. ended: when the last Stop came, by the gate's count.
    """

    llm: VideoLLM
    path: str = ""
    clip: VideoClip | None = None
    asked: int = 0
    duration: float = 0.0
    kept: TokenMap | None = None
    rows: Sequence[Row] = ()
    turns: list[Turn] = field(default_factory=list)
    refused: bool = False
    offered: bool = False
    jobs: list[Job] = field(default_factory=list)
    looking: Job | None = None
    index: VideoIndex | None = None
    folder: Path | None = None
    files: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)
    calls: Turns = field(default_factory=Turns)
    screen: Screen = field(default_factory=Screen)
    used: float = field(default_factory=time.monotonic)
    ended: int = 0
    _taking: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, job: Job, came: int = 0) -> Job:
        """Take up a job, so that `stop` finds it; one that came before the last Stop is stopped.

        Args:
            came: when its event came, by the gate's count; 0 where it came through no gate.
        """
        with self._taking:
            self.jobs = [*self.going, job]
            if 0 < came < self.ended:
                job.stop()
        return job

    @property
    def going(self) -> list[Job]:
        """Work that has not ended, the first one first."""
        return [job for job in self.jobs if not job.over]

    def stop(self, seconds: float, came: int = 0) -> None:
        """End all work, waiting for so long, and what came before this Stop and has not begun."""
        with self._taking:
            self.ended = max(self.ended, came)
        for job in (*self.going, self.looking):
            if job is not None:
                job.stop()
        for job in self.going:
            job.end(seconds)

    @property
    def name(self) -> str:
        """The video's name."""
        return Path(self.path).name

    @property
    def bytes(self) -> int:
        """Memory of the clip's frames."""
        clip = self.clip
        return 0 if clip is None else int(clip.frames.nbytes)

    def forget(self) -> None:
        """Let go of all that belongs to the video."""
        with self.lock:
            self.clip = self.kept = self.index = None
            self.path, self.asked, self.duration, self.rows = "", 0, 0.0, ()
            self.turns = []
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder = None

    def place(self, above: Path | None) -> Path:
        """A folder of the session's own, made when it is first needed."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="vidllm-", dir=above))
        return self.folder


class Sessions:
    """The visitors, by the page's own session hash.

    Args:
        make: a model for one more visitor. most_bytes: of all clips together.
        mine: whether a file is one that a visitor uploaded, to be deleted with the session.
        most: sessions; beyond, the longest unused one is ended, as those that are opened by no
            browser never say that they are closed.
    """

    def __init__(
        self,
        make: Callable[[], VideoLLM],
        most_bytes: int,
        mine: Callable[[str], bool],
        most: int = 256,
    ) -> None:
        self.make, self.most_bytes, self.mine, self.most = make, most_bytes, mine, most
        self._all: dict[str, Session] = {}
        self._present: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def of(self, key: str | None) -> Session:
        """The session of a page; a new one where there is none."""
        with self._lock:
            session = self._all.get(str(key)) or Session(self.make())
            self._all[str(key)] = session
            session.used = time.monotonic()
            # Who has a page open goes last, so that nobody's calls push visitors out.
            oldest = min(self._all, key=lambda k: (k in self._present, self._all[k].used))
            full = len(self._all) > self.most
        if full:
            self.end(oldest)
        return session

    def get(self, key: str | None) -> Session | None:
        """The session of a page, if it has one."""
        session = self._all.get(str(key))
        if session is not None:
            session.used = time.monotonic()
        return session

    def owns(self, session: Session, path: str, *, more: bool = False) -> None:
        """A file is the session's; those that it had before and nobody else uses are deleted.

        Args:
            more: keep those until the session ends: calls that wait may still need them.
        """
        with self._lock:
            before = session.files
            session.files = {path} if path and self.mine(path) else set()
            if more:
                session.files |= before
            self._delete(before - session.files)

    def room(self, session: Session) -> None:
        """Let go of clips, the longest unused first, until all fit."""
        with self._lock:
            others = sorted((s for s in self._all.values() if s is not session), key=_used)
        held = session.bytes + sum(s.bytes for s in others)
        for other in others:
            if held <= self.most_bytes:
                break
            # Whoever is at work with a clip has it in hand; only the session's own is let go.
            held -= other.bytes
            other.clip = None

    def end(self, key: str | None) -> None:
        """A page was closed: stop its work, and delete what belongs to it."""
        with self._lock:
            session = self._all.pop(str(key), None)
        if session is None:
            return
        session.screen.close()
        session.stop(5.0)
        session.forget()
        with self._lock:
            files, session.files = session.files, set()
            self._delete(files)

    @contextmanager
    def present(self, key: str) -> Iterator[None]:
        """A browser has the page open, as long as this lasts."""
        with self._lock:
            self._present[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._present[key] -= 1
                self._present += Counter()  # without those at 0
            self.get(key)  # seen just now

    def end_idle(self, seconds: float) -> None:
        """End the sessions that have no page open and were not used for so long."""
        past = time.monotonic() - seconds
        with self._lock:
            idle = [key for key, one in self._all.items()
                    if key not in self._present and one.used < past and not one.going]  # fmt: skip
        for key in idle:
            self.end(key)

    @property
    def files(self) -> set[str]:
        """Of all sessions."""
        with self._lock:
            return {file for session in self._all.values() for file in session.files}

    def close(self) -> None:
        """End all."""
        for key in list(self._all):
            self.end(key)

    def _delete(self, files: set[str]) -> None:
        """Delete what no session uses: who uploads the same file has the same copy."""
        used = {file for session in self._all.values() for file in session.files}
        for file in files - used:
            Path(file).unlink(missing_ok=True)
            parent = Path(file).parent
            with suppress(OSError):  # others' files are there, or it is gone
                parent.rmdir()


def _used(session: Session) -> float:
    return session.used
