"""What the handlers share: following a job, and showing what came of it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr

from vidllm.ask.calls import Call
from vidllm.ask.moments import pieces
from vidllm.errors import VidllmError
from vidllm.models.native.footage import warnings_in
from vidllm.progress import Listener, Stopped
from vidllm.timecode import Span

from . import views
from .drawing import clock, timeline
from .events import arrived
from .exporting import as_json
from .host import Host
from .jobs import Job
from .looking import Look
from .sessions import Row, Session
from .strip import strip

if TYPE_CHECKING:
    from vidllm.longvideo.index import VideoIndex
    from vidllm.models.answer import Answer
    from vidllm.tokens import TokenMap

Update = dict[Any, Any]
#: Task, question, compressors, share, frames, longest answer.
Asked = tuple[str, str, str, float, float, float]
NO_RECIPE = "–"
HIDDEN = gr.update(visible=False)
STAGES = ("decode", "encode", "compress", "prefill", "generate")


class Showing:
    """Base of the handlers.

    Args:
        host: the model and its visitors. parts: the components.
    """

    def __init__(self, host: Host, parts: SimpleNamespace) -> None:
        self.host, self.p = host, parts

    def session(self, request: gr.Request) -> Session:
        """Whose page it is."""
        return self.host.sessions.of(request.session_hash)

    def call(self, session: Session, asked: Asked) -> Generator[Update, None, Call | None]:
        """What a visitor asks for, as a call; None, and a line, where the menus are wrong."""
        task, question, spec, keep, frames, most = asked
        host, s = self.host, self.host.settings
        try:
            host.method(spec, keep)
            share = host.share(spec, keep)
        except VidllmError as error:
            yield {self.p.problem: self.problem(session, error)}
            return None
        return Call(
            session.path,
            task,
            question,
            s.model,
            spec,
            share,
            int(frames),
            max_new_tokens=int(most),
            device=s.device,
            dtype=s.dtype,
            attn=s.attn,
            seed=s.seed,
        )

    def run(
        self, request: gr.Request, asked: Asked, words: Any, first: Update
    ) -> Generator[Update, None, Answer | None]:
        """Carry out what is asked; the answer grows in `words`, if that is a component.

        Returns:
            The answer; None where a line says why there is none.
        """
        session = self.session(request)
        call = yield from self.call(session, asked)
        if call is None:
            return None

        def work(job: Job) -> Answer:
            clip = self.host.clip(session, int(call.frames or 1), job)
            with self.host.turn(job):
                return replace(call, anyway=True).run(session.llm, clip, job)

        p = self.p
        start: Update = {p.problem: "", p.account: "", p.compare: HIDDEN, **first}
        if words is not None:
            start[words] = None
        job = yield from self.begin(request, Job(work))
        if job is None:
            return None
        yield start
        yield from self.follow(session, job, STAGES, words)
        answer: Answer | None = yield from self.result(session, job)
        if answer is None:
            return None
        session.rows = (Row("answer", () if answer.failed else answer.spans),)
        yield self.told(session, call, answer)
        return answer

    def begin(self, request: gr.Request, job: Job) -> Generator[Update, None, Job | None]:
        """Start a job that wants the model; None, and a line, where too many wait for it.

        Nothing that the page shows is taken away by a refusal.
        """
        session = self.session(request)
        try:
            self.host.begin(session, job, arrived(request))
        except VidllmError as error:
            yield {self.p.problem: self.problem(session, error)}
            return None
        job.start()
        return job

    def follow(
        self, session: Session, job: Job, stages: Sequence[str] = (), words: Any = None
    ) -> Generator[Update, None, None]:
        """Show how a job goes on."""
        for heard in job.follow():
            update: Update = {self.p.status: views.progress(heard, stages)}
            if words is not None and heard.text:
                update[words] = self.words(heard.text, session)
            yield update

    def result(self, session: Session, job: Job) -> Generator[Update, None, Any]:
        """What came of a job; None, and a line on the page, where nothing did."""
        p = self.p
        try:
            return job.result()
        except Stopped:
            yield {p.status: views.stopped(job.heard.took, job.heard.now)}
        except VidllmError as error:
            yield {p.problem: self.problem(session, error), p.status: ""}
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            line = f"that went wrong ({type(error).__name__}); the server's log says where"
            yield {p.problem: views.problem(line), p.status: ""}
        return None

    def told(self, session: Session, call: Call, answer: Answer) -> Update:
        """All that is said about an answer beside its words."""
        p = self.p
        unknown = warnings_in(answer.notes)
        shown = replace(call, video=self.host.shown_path(session), anyway=bool(unknown))
        return {
            p.problem: views.problem("".join(unknown[:1])),
            p.status: views.finished(answer.receipt.seconds),
            p.account: views.account(answer),
            p.python: shown.python(),
            p.json: as_json(shown, session, answer),
            **self.drawn(session, answer.kept),
        }

    def drawn(self, session: Session, kept: TokenMap | None) -> Update:
        """The pictures over time of an answer that saw these tokens."""
        p, clip = self.p, session.clip
        session.kept = kept
        if clip is None:
            return {p.timeline: timeline(session.duration, session.rows)}
        note = ""
        if kept is not None:
            share = 100 * len(kept) / max(1, kept.total)
            note = f"The last answer saw {len(kept):,} of {kept.total:,} tokens ({share:.3g} %)."
        return {
            p.timeline: timeline(session.duration, session.rows, clip.seconds, kept),
            p.strip: strip(clip, kept, views.hint(note) if note else ""),
        }

    def seen(self, session: Session, look: Look) -> Update:
        """What a look at the video shows."""
        p, clip = self.p, look.clip
        session.kept = look.kept
        notes = views.hint(look.note) if look.note else ""
        return {
            p.problem: views.problem(look.problem),
            p.timeline: timeline(session.duration, session.rows, clip.seconds, look.kept),
            p.strip: strip(clip, look.kept, notes),
        }

    def words(self, text: str, session: Session) -> list[tuple[str, str | None]]:
        """An answer with its times marked."""
        cut = pieces(text, session.duration)
        if not cut:
            return [("(the model said nothing)", None)]
        return [(part, None if seconds is None else "time") for part, seconds in cut]

    def problem(self, session: Session, error: Exception) -> str:
        """What is wrong, with the name that the visitor's file has for them."""
        text = str(error)
        if session.path:
            text = text.replace(session.path, session.name)
        return views.problem(text)

    def indexed(self, session: Session, rate: float, job: Job) -> VideoIndex:
        """The index of a session's video; made where it is not there."""
        host = self.host
        with session.lock:
            if session.index is not None and session.index.facts["fps"] == rate:
                return session.index
            if not session.path:
                host.clip(session, 1)  # says what is missing
            place = session.place(host.settings.folder) / f"at-{rate:g}-fps.vidx"

            def progress(done: float, whole: float) -> None:
                job.progress(done, whole)
                host.turns.between(job)

            # Without hooks that ask at every layer: others use the model in between.
            with host.turns.turn(job):
                session.index = session.llm.index(
                    session.path,
                    place,
                    fps=rate,
                    limits=host.settings.limits,
                    progress=progress,
                    anyway=True,
                )
            session.duration = session.duration or session.index.duration
            return session.index


class Part(Listener):
    """A listener of one of two calls: what it hears is told to a job under a name."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name = job, name

    def stage(self, name: str) -> None:
        if self.job.heard.part != self.name:
            self.job.part(self.name)
        self.job.stage(name)

    def seconds(self, name: str, value: float) -> None:
        self.job.seconds(name, value)

    def text(self, so_far: str) -> None:
        self.job.text(so_far)

    def stopped(self) -> bool:
        return self.job.stopped()


def moments(told: Iterable[tuple[Span, str]]) -> list[tuple[str, str | None]]:
    """Moments and what is said of each, a line each, with their times marked."""
    lines: list[tuple[str, str | None]] = []
    for span, words in told:
        lines += [(clock(span.start), "time"), (" – ", None), (clock(span.end), "time")]
        lines.append((f"  {words}\n", None))
    return lines or [("no moment was found", None)]


def scored(answer: Answer) -> list[tuple[str, str | None]]:
    """The moments of an answer with their scores."""
    spans = () if answer.failed else answer.spans
    return moments((s, f"score {s.score:.2f}") for s in spans)
