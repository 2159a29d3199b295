"""What all visitors share: the model, whose turn it is, and what may be asked of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradio.utils import get_upload_folder

from vidllm.ask.calls import Call
from vidllm.ask.serving import Offer, offers, refusal
from vidllm.ask.sharing import twin
from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.longvideo.build import indexing_engine
from vidllm.models.loading import choose_compressor
from vidllm.models.native.config import NativeConfig
from vidllm.models.shipped import sample_videos
from vidllm.progress import StopSignal, attentive

from .jobs import Job, Turns
from .opening import (
    ANSWER_LIMIT,
    QUESTIONS,
    Opening,
    course_of,
    is_shipped,
    questions,
    shipped_name,
)
from .sessions import Session, Sessions
from .settings import Settings
from .terms import EVERY

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.longvideo.index import VideoIndex
    from vidllm.video import VideoClip

#: Methods that the page begins with where the model has none of its own, the first that is served.
FIRST = ("aim", "evs", "uniform")


class Host:
    """The model and its visitors.

    Args:
        llm: the model. settings: of the page.
    """

    def __init__(self, llm: VideoLLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings
        self.turns = Turns()
        self._runs: list[Job] = []
        self._beginning = threading.Lock()
        self.sessions = Sessions(
            lambda: twin(llm), int(settings.max_memory_mb * 1e6), self._uploaded
        )
        self.offers: list[Offer] = offers(llm)
        self.no_index = _refusal(llm)
        self.shipped = is_shipped(settings.named())
        self._ships, self._course = bool(shipped_name(settings.named())), course_of(llm)
        self._opening: Opening | None = None
        self._opens = threading.Lock()

    @property
    def served(self) -> list[Offer]:
        """What the model can do."""
        return [offer for offer in self.offers if offer.served]

    @property
    def refused(self) -> list[Offer]:
        """What it cannot."""
        return [offer for offer in self.offers if not offer.served]

    def offer(self, kind: str, name: str) -> Offer | None:
        """A recipe or compressor by name."""
        return next((o for o in self.offers if (o.kind, o.name) == (kind, name)), None)

    def begun(self) -> Offer | None:
        """The recipe that the page begins with."""
        name = self.settings.recipe
        offer = None if name is None else self.offer("recipe", name)
        return offer if offer is not None and offer.served else None

    def first(self) -> tuple[str, float]:
        """The compressor and the share that the page begins with."""
        method: Compressor = self.llm.compressor
        if (begun := self.begun()) is not None and self.settings.compressor is None:
            keep = self.settings.keep if begun.keep is None else self.settings.keep or begun.keep
            return begun.spec, 1.0 if keep is None else keep
        if method.name != "none":
            spec = self.settings.compressor or method.name
            return spec, float(method.keep)
        if self.settings.compressor or self.settings.keep == 1:
            return "none", 1.0
        known = {o.name for o in self.served if o.kind == "compressor"}
        return next((name for name in FIRST if name in known), "none"), 0.25

    def frames(self) -> int:
        """Frames that the page begins with."""
        usual = self.settings.frames or self.llm.usual_frames
        return min(usual, self.settings.max_frames)

    def begin(self, session: Session, job: Job, came: int = 0) -> Job:
        """Take up a job of a session that wants the model; came: as `Session.begin`.

        Raises:
            InputError: as many wait for it as may.
        """
        with self._beginning:
            self._runs = [run for run in self._runs if not run.over]
            if len(self._runs) > self.settings.waiting:
                raise InputError(
                    f"the model is busy and {self.settings.waiting} wait for it already: "
                    "try again in a moment"
                )
            self._runs.append(session.begin(job, came))
        return job

    @contextmanager
    def turn(self, signal: StopSignal) -> Iterator[None]:
        """Hold the model; its layers ask whether the work shall end."""
        with self.turns.turn(signal), attentive(signal, self.llm.model):
            yield

    def clip(self, session: Session, frames: int, job: Job | None = None) -> VideoClip:
        """The sampled video of a session; read where it is not there.

        Raises:
            InputError: no video, or one that cannot be read.
        """
        with session.lock:
            if not session.path:
                raise InputError("there is no video yet: upload one, or take a sample")
            if session.clip is None or session.asked != frames:
                if job is not None:
                    job.stage("decode")
                clip = session.llm.sample(
                    session.path, frames=frames, limits=self.settings.limits, listener=job
                )
                if job is not None:
                    job.seconds("decode", clip.read_seconds)
                session.clip, session.asked = clip, frames
                session.duration, session.kept = clip.duration, None
                self.sessions.room(session)
            return session.clip

    def sample(self, path: str) -> Path | None:
        """The sample that a file is, or is a copy of."""
        file = Path(path)
        return next((s for s in sample_videos() if s.name == file.name and _same(s, file)), None)

    def questions(self, sample: Path | None) -> tuple[str, ...]:
        """Those that the page suggests for a sample, or for a visitor's own clip."""
        return questions(None if sample is None else sample.stem, self._ships, self._course)

    def opens_with(self, path: str, spec: str, keep: float, frames: float) -> bool:
        """Whether a clip under these settings is the one whose answer the page opens with.

        Only the shipped model has one: another may take minutes, and its visitors bring clips.
        """
        file, first = self.sample(path), self.first_sample()
        same = (spec, float(keep), int(frames)) == (*self.first(), self.frames())
        return self.shipped and same and file is not None and file == first

    def first_sample(self) -> Path | None:
        """The sample that the page opens with."""
        found = {sample.stem: sample for sample in sample_videos()}
        return next((found[name] for name in QUESTIONS if name in found), None)

    def opening(self, signal: StopSignal) -> Opening:
        """The first sample and the answer to its first question; made once for all visitors.

        Raises:
            InputError: there is no sample. Stopped: the signal was given.
        """
        with self._opens:
            if self._opening is None:
                sample = self.first_sample()
                if sample is None:
                    raise InputError("there is no sample video: install vidllm again")
                frames = self.frames()
                clip = self.llm.sample(sample, frames=frames, limits=self.settings.limits)
                question = QUESTIONS[sample.stem][0]
                call = self.call(str(sample), "ask", question, *self.first(), frames, ANSWER_LIMIT)
                with self.turn(signal):
                    answer = replace(call, anyway=True).run(twin(self.llm), clip, signal)
                self._opening = Opening(clip, call, answer)
            return self._opening

    def call(
        self,
        path: str,
        task: str,
        question: str,
        spec: str,
        keep: float,
        frames: float,
        most: float,
    ) -> Call:
        """What is asked, as a call that can be run, shown and kept.

        Raises:
            InputError: a compressor or share that is wrong, or that the model cannot serve.
        """
        s = self.settings
        self.method(spec, keep)
        return Call(
            path,
            task,
            question,
            s.model,
            spec,
            self.share(spec, keep),
            int(frames),
            max_new_tokens=int(most),
            seed=s.seed,
            **s.loading(),
        )

    def named(self, spec: str, keep: float) -> str:
        """A method and its share, as a person reads them.

        Raises:
            InputError: a name, option or share that is wrong.
        """
        share = self.share(spec, keep)
        if spec == "none":
            return EVERY
        return spec if share is None else f"{spec}, keep {share:g}"

    def index(self, session: Session, rate: float, job: Job, *, anyway: bool) -> VideoIndex:
        """The index of a session's video; made where it is not there.

        Args:
            rate: frames a second. anyway: as `VideoLLM.index`.

        Raises:
            InputError: no video, one that cannot be read, or footage that the model does not know.
        """
        with session.lock:
            if session.index is not None and session.index.facts["fps"] == rate:
                return session.index
            if not session.path:
                self.clip(session, 1)  # says what is missing
            place = session.place(self.settings.folder) / f"at-{rate:g}-fps.vidx"

            def progress(done: float, whole: float) -> None:
                job.progress(done, whole)
                self.turns.between(job)

            # Without hooks that ask at every layer: others use the model in between.
            with self.turns.turn(job):
                session.index = session.llm.index(
                    session.path,
                    place,
                    fps=rate,
                    limits=self.settings.limits,
                    progress=progress,
                    anyway=anyway,
                )
            session.duration = session.duration or session.index.duration
            return session.index

    def method(self, spec: str, keep: float) -> Compressor:
        """The compressors of the menus.

        Raises:
            InputError: a name, option or share that is wrong.
        """
        made = choose_compressor(NativeConfig(), spec, self.share(spec, keep))
        if reason := refusal(self.llm, made):
            raise InputError(reason)
        return made

    def share(self, spec: str, keep: float) -> float | None:
        """The share of the slider, or None where the compressors say their own."""
        return float(keep) if build(spec).lacks_share() else None

    def close(self) -> None:
        """End all sessions."""
        self.sessions.close()

    def shown_path(self, session: Session) -> str:
        """How a program names the video: a sample by its place, an upload by its name."""
        sample = self.sample(session.path)
        if sample is None:
            return session.name
        near = os.path.relpath(sample)
        return str(sample) if near.startswith("..") else near

    def _uploaded(self, path: str) -> bool:
        """Whether a file lies where visitors' files do, and is no copy of a sample."""
        file = Path(path).resolve()
        inside = file.is_relative_to(Path(get_upload_folder()).resolve())
        return inside and self.sample(path) is None


def _same(one: Path, two: Path) -> bool:
    try:
        return one.stat().st_size == two.stat().st_size and one.read_bytes() == two.read_bytes()
    except OSError:
        return False


def _refusal(llm: VideoLLM) -> str:
    try:
        indexing_engine(llm)
    except InputError as error:
        return str(error)
    return ""
