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
from vidllm.timecode import read_time

from . import views
from .drawing import scores, timeline
from .events import arrived, careful
from .exporting import as_json
from .jobs import Job
from .looking import Look, look
from .sessions import Row
from .showing import HIDDEN, NO_RECIPE, Part, Showing, Update, moments, scored
from .strip import sprite

_LOADING = ("decode", "encode")


class Handlers(Showing):
    """The page's answers to its visitors; one method a component and event."""

    # ---- the video

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
        session.stop(5.0)
        session.forget()
        self.host.sessions.owns(session, path or "")
        # Where the page itself took an unreadable file away, the line that says why stays.
        said = gr.skip() if session.refused and not path else ""
        session.refused = False
        yield {
            p.problem: said, p.timeline: "", p.sprite: "", p.status: "", p.answer: None,
            p.account: "", p.compare: HIDDEN, p.found: None, p.captions: None,
            p.curve: "", p.peaks: None, p.index: "", p.long_answer: None, p.python: None,
            p.json: None, p.strip: views.hint("The frames of your video appear here."),
        }  # fmt: skip
        if path:
            session.path = path
            yield from self.resample(question, spec, keep, frames, request)

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
            return {self.p.problem: ""}
        session.looking = looking = Job(lambda _: None)
        try:
            seen = look(self.host, session, looking, question, spec, keep, int(frames))
        except VidllmError as error:
            return {self.p.problem: self.problem(session, error)}
        return self.seen(session, seen)

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
        answer = yield from self.run(request, asked, p.answer, {})
        if answer is not None:
            yield {p.answer: self.words(answer.text, session)}

    @careful
    def find(
        self, query: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """When what is described happens."""
        asked = ("ground", query, spec, keep, frames, most)
        answer = yield from self.run(request, asked, None, {self.p.found: None})
        if answer is not None:
            yield {self.p.found: scored(answer)}

    @careful
    def describe(
        self, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """What happens when."""
        session = self.session(request)
        asked = ("caption", "", spec, keep, frames, most)
        answer = yield from self.run(request, asked, None, {self.p.captions: None})
        if answer is not None:
            yield {self.p.captions: moments(captioned(answer, session.duration))}

    @careful
    def show(
        self, query: str, spec: str, keep: float, frames: float, most: float, request: gr.Request
    ) -> Iterator[Update]:
        """Every moment that fits, as a curve."""
        p, session = self.p, self.session(request)
        asked = ("highlights", query, spec, keep, frames, most)
        answer = yield from self.run(request, asked, None, {p.curve: "", p.peaks: None})
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
        name = f"{spec}, keep {keep:g}" if call.keep is not None else spec

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
            p.problem: "", p.account: "", p.full: None, p.verdict: "",
            p.less: gr.update(value=None, label=name), p.compare: gr.update(visible=True),
        }  # fmt: skip
        for heard in job.follow():
            column = p.full if heard.part == "full" else p.less
            text = {column: self.words(heard.text, session)} if heard.text else {}
            yield {p.status: views.progress(heard), **text}
        made = yield from self.result(session, job)
        if made is None:
            return
        session.rows = (Row("full", made.full.spans), Row(name, made.less.spans))
        unknown = warnings_in(made.less.notes)
        shown = replace(call, video=self.host.shown_path(session), anyway=bool(unknown))
        yield {
            p.problem: views.problem("".join(unknown[:1])),
            p.full: self.words(made.full.text, session),
            p.less: self.words(made.less.text, session),
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
        job = yield from self.begin(request, Job(lambda job: self.indexed(session, rate, job)))
        if job is None:
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
            index = self.indexed(session, rate, job)
            job.heard.share = None
            job.stage("scan")
            with self.host.turn(job):
                return index.ask(question)

        job = yield from self.begin(request, Job(work))
        if job is None:
            return
        yield {p.problem: "", p.long_answer: None, p.account: "", p.compare: HIDDEN}
        yield from self.follow(session, job)
        answer = yield from self.result(session, job)
        if answer is None:
            return
        session.rows = (Row("answer", () if answer.failed else answer.spans),)
        s = self.host.settings
        call = Call(
            self.host.shown_path(session), "index", question, s.model, s.compressor, s.keep,
            fps=rate, device=s.device, dtype=s.dtype, attn=s.attn, seed=s.seed,
        )  # fmt: skip
        yield {
            p.long_answer: self.words(answer.text, session),
            p.index: views.indexed(session.index),
            **self.told(session, call, answer),
            # The strip and its map are of the sampled clip, which this answer has not seen.
            p.timeline: timeline(session.duration, session.rows),
            p.strip: gr.skip(),
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

    def seek_text(self, event: gr.SelectData) -> Any:
        """A click on a piece of an answer: to the time that it names."""
        text, kind = event.value
        seconds = read_time(text) if kind else None
        return gr.skip() if seconds is None else gr.update(playback_position=seconds)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.host.sessions.end(request.session_hash)
