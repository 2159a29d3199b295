"""What the handlers share: following a job, and showing what came of it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr

from vidllm.ask.calls import Call
from vidllm.errors import VidllmError
from vidllm.models.native.footage import warnings_in
from vidllm.progress import Listener, Stopped

from . import views
from .chat import chat, hint
from .drawing import timeline
from .events import arrived
from .exporting import as_json
from .host import Host
from .jobs import Heard, Job
from .looking import Look
from .sessions import Row, Session
from .strip import strip

if TYPE_CHECKING:
    from vidllm.models.answer import Answer
    from vidllm.tokens import TokenMap

Update = dict[Any, Any]
#: Task, question, compressors, share, frames, longest answer.
Asked = tuple[str, str, str, float, float, float]
#: Shows the answer of a job so far.
Grow = Callable[[Heard], Update]
NO_RECIPE = "–"
HIDDEN = gr.update(visible=False)
STAGES = ("decode", "encode", "compress", "prefill", "generate")
_UNANSWERED = "Which tokens this run keeps is shown here with its answer."


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
        try:
            return self.host.call(session.path, *asked)
        except VidllmError as error:
            yield {self.p.problem: self.problem(session, error)}
            return None

    def run(
        self,
        request: gr.Request,
        asked: Asked,
        first: Update,
        grow: Grow | None = None,
        without: Callable[[], Update] = dict,
    ) -> Generator[Update, None, Answer | None]:
        """Carry out what is asked.

        Args:
            first: shown when the run begins. grow: what shows the answer so far.
            without: what is shown where none came.

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
        job = yield from self.begin(request, Job(work))
        if job is None:
            return None
        yield {p.problem: "", p.account: "", p.compare: HIDDEN, **first, **self.unanswered(session)}
        yield from self.follow(session, job, STAGES, grow)
        answer: Answer | None = yield from self.result(session, job, without)
        if answer is None:
            return None
        session.rows = (Row("answer", () if answer.failed else answer.spans),)
        yield self.told(session, call, answer)
        return answer

    def unanswered(self, session: Session) -> Update:
        """The pictures over time while an answer is made: nothing of an earlier one stays."""
        p, clip = self.p, session.clip
        session.rows = ()
        if clip is None:
            return {p.timeline: timeline(session.duration), p.strip: hint(_UNANSWERED)}
        return {
            p.timeline: timeline(session.duration, (), clip.seconds),
            p.strip: strip(clip, None, hint(_UNANSWERED)),
        }

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
        self,
        session: Session,
        job: Job,
        stages: Sequence[str] = (),
        grow: Grow | None = None,
    ) -> Generator[Update, None, None]:
        """Show how a job goes on."""
        for heard in job.follow():
            more = grow(heard) if grow is not None and heard.text else {}
            yield {self.p.status: views.progress(heard, stages), **more}

    def result(
        self, session: Session, job: Job, without: Callable[[], Update] = dict
    ) -> Generator[Update, None, Any]:
        """What came of a job; None, and a line on the page, where nothing did.

        Args:
            without: what else is shown then.
        """
        p = self.p
        try:
            return job.result()
        except Stopped:
            yield {p.status: views.stopped(job.heard.took, job.heard.now), **without()}
        except VidllmError as error:
            yield {p.problem: self.problem(session, error), p.status: "", **without()}
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            line = f"that went wrong ({type(error).__name__}); the server's log says where"
            yield {p.problem: views.problem(line), p.status: "", **without()}
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
            p.strip: strip(clip, kept, hint(note) if note else ""),
        }

    def seen(self, session: Session, look: Look) -> Update:
        """What a look at the video shows."""
        p, clip = self.p, look.clip
        session.kept = look.kept
        notes = hint(look.note) if look.note else ""
        return {
            p.problem: views.problem(look.problem),
            p.timeline: timeline(session.duration, session.rows, clip.seconds, look.kept),
            p.strip: strip(clip, look.kept, notes),
        }

    def chat(self, session: Session, asked: str = "", growing: str = "") -> str:
        """The questions about the clip, and one that is being answered."""
        return chat(session.turns, session.duration, asked, growing)

    def method(self, spec: str, keep: float) -> Update:
        """What Ask asks with, and Compare compares."""
        try:
            return {self.p.method: views.method(self.host.named(spec, keep))}
        except VidllmError:
            return {}  # its line stands where problems do

    def problem(self, session: Session, error: Exception) -> str:
        """What is wrong, with the name that the visitor's file has for them."""
        text = str(error)
        if session.path:
            text = text.replace(session.path, session.name)
        return views.problem(text)


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
