"""What happens when something on the page is used; every update is a dictionary of components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from vidllm.ask.calls import Call
from vidllm.ask.comparing import Comparison, compare
from vidllm.ask.moments import captioned, curve
from vidllm.errors import VidllmError
from vidllm.models.answer import Answer
from vidllm.models.native.footage import warnings_in

from . import views
from .chat import captions, examples, hint, reply, scored
from .drawing import scores, timeline
from .events import arrived, careful
from .exporting import as_json
from .jobs import Heard, Job
from .looking import Look, look
from .opening import EXAMPLES
from .sessions import Row, Session, Turn
from .showing import HIDDEN, NO_RECIPE, STAGES, Part, Showing, Update
from .strip import sprite

_LOADING = ("decode", "encode")


class Handlers(Showing):
    """The page's answers to its visitors; one method a component and event."""

    # ---- the video

    def first(self, request: gr.Request) -> Any:
        """The sample that the page opens with, for the player; nothing where a video came since."""
        sample, session = self.host.first_sample(), self.session(request)
        if sample is None or not session.screen.take(arrived(request), [self.p.video]):
            return gr.skip()
        session.offered = True
        return str(sample)

    @careful
    def video(
        self,
        path: str | None,
        question: str,
        spec: str,
        keep: float,
        frames: float,
        request: gr.Request,
    ) -> Iterator[Update]:
        """Another video, or none."""
        p, session = self.p, self.session(request)
        sample = self.host.sample(path) if path else None
        if session.offered and sample is not None and sample == self.host.first_sample():
            session.offered = False
            if session.path:  # the visitor was quicker than the sample on its way to the browser
                yield {p.video: session.path}  # whose own event goes on from there
                return
        session.stop(5.0)
        session.forget()
        self.host.sessions.owns(session, path or "")
        # Where the page itself took an unreadable file away, the line that says why stays.
        said = gr.skip() if session.refused and not path else ""
        session.refused = False
        asked = self.host.questions(sample) if path else ()
        # A question of one's own stays; an example goes with the clip that it belongs to.
        own = not asked or bool(question.strip() and question not in EXAMPLES)
        yield {
            p.problem: said, p.timeline: "", p.sprite: "", p.status: "", p.account: "",
            p.answer: self.chat(session), p.compare: HIDDEN, p.found: "", p.captions: "",
            p.curve: "", p.peaks: "", p.index: "", p.long_answer: "", p.python: None,
            p.json: None, p.strip: hint("The frames of your video appear here."),
            p.examples: examples(asked), p.question: gr.skip() if own else asked[0],
            **self.method(spec, keep),
        }  # fmt: skip
        if not path:
            return
        session.path = path
        if self.host.opens_with(path, spec, keep, frames):
            yield from self.opening(session, request)
        else:
            question = question if own else asked[0]
            yield from self.resample(question, spec, keep, frames, request)

    def opening(self, session: Session, request: gr.Request) -> Iterator[Update]:
        """The first sample with its answer, which was made once for all visitors."""
        p, host = self.p, self.host
        job = session.begin(Job(host.opening), arrived(request))
        yield from self.follow(session, job, STAGES)
        made = yield from self.result(session, job)
        if made is None:
            return
        with session.lock:
            session.clip, session.asked = made.clip, len(made.clip)
            session.duration = made.clip.duration
            host.sessions.room(session)
        name = host.named(*host.first())
        account = f"{views.turn_account(name, made.answer.receipt)} · made once, for all visitors"
        session.turns = [Turn(made.call.question, made.answer.text, account)]
        session.rows = (Row("answer", made.answer.spans),)
        yield {
            **self.told(session, made.call, made.answer),
            p.answer: self.chat(session), p.sprite: sprite(made.clip),
        }  # fmt: skip

    @careful
    def resample(
        self, question: str, spec: str, keep: float, frames: float, request: gr.Request
    ) -> Iterator[Update]:
        """Read the video with so many frames."""
        p, session = self.p, self.session(request)
        if not session.path:
            return
        with session.lock:
            session.clip = None

        def work(job: Job) -> Look:
            return look(self.host, session, job, question, spec, keep, int(frames))

        job = session.begin(Job(work), arrived(request))
        yield from self.follow(session, job, _LOADING)
        seen = yield from self.result(session, job)
        if seen is not None:
            yield {**self.seen(session, seen), p.sprite: sprite(seen.clip), p.status: ""}
        elif session.clip is None and not job.stopped():
            session.refused = True
            yield {p.video: None}

    @careful
    def look(
        self, question: str, spec: str, keep: float, frames: float, request: gr.Request
    ) -> Update:
        """What another compressor or share leaves of the video, without the LLM."""
        session = self.host.sessions.get(request.session_hash)
        if session is None or not session.path:
            return {self.p.problem: "", **self.method(spec, keep)}
        session.looking = looking = Job(lambda _: None)
        try:
            seen = look(self.host, session, looking, question, spec, keep, int(frames))
        except VidllmError as error:
            return {self.p.problem: self.problem(session, error)}
        return {**self.seen(session, seen), **self.method(spec, keep)}

    def recipe(self, name: str) -> Update:
        """A named system sets compressor and share."""
        p, offer = self.p, self.host.offer("recipe", name)
        if offer is None:
            line = "" if name == NO_RECIPE else "there is no such recipe: choose one from the list"
            return {p.problem: views.problem(line), p.compressor: gr.skip(), p.keep: gr.skip()}
        keep = gr.skip() if offer.keep is None else offer.keep
        return {p.compressor: offer.spec, p.keep: keep}

    def by_hand(self, name: str, spec: str, keep: float) -> Update:
        """Another compressor or share than the recipe's: it is no longer that recipe."""
        offer = self.host.offer("recipe", name)
        if offer is None or (spec == offer.spec and offer.keep in (None, keep)):
            return {self.p.recipe: gr.skip()}
        return {self.p.recipe: NO_RECIPE}

    # ---- runs

    @careful
    def ask(
        self, question: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """Answer a question."""
        p, session = self.p, self.session(request)
        asked = ("ask", question, spec, keep, frames, most)

        def shown(heard: Heard | None = None) -> Update:
            return {p.answer: self.chat(session, question, heard.text if heard else "")}

        def without() -> Update:
            return {p.answer: self.chat(session)}

        answer = yield from self.run(request, asked, shown(), shown, without)
        if answer is not None:
            account = views.turn_account(self.host.named(spec, keep), answer.receipt)
            session.turns.append(Turn(question, answer.text, account))
            yield without()

    def clear(self, request: gr.Request) -> Update:
        """Forget the questions about the clip."""
        session = self.session(request)
        session.turns = []
        return {self.p.answer: self.chat(session)}

    @careful
    def find(
        self, query: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """When what is described happens."""
        asked = ("ground", query, spec, keep, frames, most)
        answer = yield from self.run(request, asked, {self.p.found: ""})
        if answer is not None:
            yield {self.p.found: scored(answer)}

    @careful
    def describe(
        self, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """What happens when."""
        session = self.session(request)
        asked = ("caption", "", spec, keep, frames, most)
        answer = yield from self.run(request, asked, {self.p.captions: ""})
        if answer is not None:
            yield {self.p.captions: captions(captioned(answer, session.duration))}

    @careful
    def show(
        self, query: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """Every moment that fits, as a curve."""
        p, session = self.p, self.session(request)
        asked = ("highlights", query, spec, keep, frames, most)
        answer = yield from self.run(request, asked, {p.curve: "", p.peaks: ""})
        if answer is not None:
            spans = () if answer.failed else answer.spans
            seconds = np.linspace(0, session.duration, 401)
            drawn = scores(session.duration, seconds, curve(spans, seconds))
            yield {p.curve: drawn, p.peaks: scored(answer)}

    @careful
    def both(
        self, question: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """The answer with every token beside that with fewer."""
        p, session = self.p, self.session(request)
        call = yield from self.call(session, ("ask", question, spec, keep, frames, most))
        if call is None:
            return
        name = self.host.named(spec, keep)

        def columns(full: str, less: str) -> Update:
            return {p.full: views.column("Every token", full), p.less: views.column(name, less)}

        def work(job: Job) -> Comparison:
            clip = self.host.clip(session, int(frames), job)
            with self.host.turn(job):
                return compare(
                    session.llm,
                    clip,
                    question,
                    compressor=call.method(),
                    max_new_tokens=call.max_new_tokens,
                    listeners=(Part(job, "full"), Part(job, name)),
                    anyway=True,
                )

        job = yield from self.begin(request, Job(work))
        if job is None:
            return
        yield {
            p.problem: "", p.account: "", **columns("…", "…"), p.verdict: "",
            p.compare: gr.update(visible=True), **self.unanswered(session),
        }  # fmt: skip
        said = {"full": "…", name: "…"}
        for heard in job.follow():
            if heard.text:
                said[heard.part] = reply(heard.text, session.duration)
            yield {p.status: views.progress(heard), **columns(said["full"], said[name])}
        made = yield from self.result(session, job)
        if made is None:
            return
        session.rows = (Row("full", made.full.spans), Row(name, made.less.spans))
        unknown = warnings_in(made.less.notes)
        shown = replace(call, video=self.host.shown_path(session), anyway=bool(unknown))
        yield {
            p.problem: views.problem("".join(unknown[:1])),
            **columns(
                reply(made.full.text, session.duration), reply(made.less.text, session.duration)
            ),
            p.verdict: views.comparison(made, name),
            p.status: views.finished(made.less.receipt.seconds),
            p.python: shown.python(compared=True),
            p.json: as_json(shown, session, comparison=made),
            **self.drawn(session, made.less.kept),
        }

    @careful
    def read(self, rate: float, request: gr.Request) -> Iterator[Update]:
        """Make the index of a long video."""
        p, session = self.p, self.session(request)
        job = Job(lambda job: self.host.index(session, rate, job, anyway=True))
        if (yield from self.begin(request, job)) is None:
            return
        yield {p.problem: "", p.index: ""}
        yield from self.follow(session, job)
        if (yield from self.result(session, job)) is not None:
            yield {p.index: views.indexed(session.index), p.status: ""}

    @careful
    def long_ask(self, question: str, rate: float, request: gr.Request) -> Iterator[Update]:
        """Ask the index."""
        p, session = self.p, self.session(request)

        def work(job: Job) -> Answer:
            index = self.host.index(session, rate, job, anyway=True)
            job.heard.share = None
            job.stage("scan")
            with self.host.turn(job):
                return index.ask(question)

        job = yield from self.begin(request, Job(work))
        if job is None:
            return
        yield {
            p.problem: "", p.long_answer: "", p.account: "", p.compare: HIDDEN,
            **self.unanswered(session),
        }  # fmt: skip
        yield from self.follow(session, job)
        answer = yield from self.result(session, job)
        if answer is None:
            return
        session.rows = (Row("answer", () if answer.failed else answer.spans),)
        s = self.host.settings
        call = Call(
            self.host.shown_path(session), "index", question, s.model, s.compressor, s.keep,
            fps=rate, seed=s.seed, **s.loading(),
        )  # fmt: skip
        yield {
            p.long_answer: f'<p class="vl-said">{reply(answer.text, session.duration)}</p>',
            p.index: views.indexed(session.index),
            **self.told(session, call, answer),
            # The strip and its map are of the sampled clip, which this answer has not seen.
            p.timeline: timeline(session.duration, session.rows),
            p.strip: hint("This answer read the index of the whole video: no sampled frames."),
        }

    # ---- the rest

    def stop(self, request: gr.Request) -> str:
        """End the work of this page."""
        session = self.host.sessions.get(request.session_hash)
        if session is None:
            return ""
        going = session.going
        now = going[0].heard.now if going else ""
        session.stop(5.0, arrived(request))
        return views.stopped(going[0].heard.took, now) if going else ""

    def end_work(self, request: gr.Request) -> None:
        """The Stop button: each event that is ended says so itself."""
        self.stop(request)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.host.sessions.end(request.session_hash)
