"""The named endpoints, for programs: a video and a question in, an answer as JSON out.

They go through the same queue, turns and limits as the page (see docs/demo.md). Their names, types
and explanations are what Gradio's clients show, so annotations are evaluated here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api
from gradio.utils import get_upload_folder

from vidllm.ask.calls import Call
from vidllm.ask.comparing import compare
from vidllm.errors import InputError, VidllmError
from vidllm.errors.plain import plain

from .arguments import checked, short
from .events import arrived
from .host import Host
from .jobs import Job
from .opening import ANSWER_LIMIT
from .sessions import Session

#: What `gradio_client.handle_file` makes of a file.
File = gr.FileData
#: An answer for JSON.
Made = dict[str, Any]


class Endpoints:
    """What programs may call.

    Args:
        host: the model and its visitors; a client is a visitor whose calls run one after the other.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    def offer(self) -> None:
        """Name the endpoints, inside a `gr.Blocks`."""
        for call in (self.ask, self.ground, self.caption, self.highlights, self.compare,
                     self.index):  # fmt: skip
            api(call, api_name=call.__name__, concurrency_limit=None, concurrency_id="model")

    def ask(
        self,
        video: File,
        question: str,
        request: gr.Request,
        compressor: str | None = None,
        keep: float | None = None,
        frames: int | None = None,
        max_new_tokens: int = ANSWER_LIMIT,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """Answer a question about a video; compressor, keep and frames are the page's if absent."""
        menus = (compressor, keep, frames, max_new_tokens)
        return self._answer(request, video, anyway, "ask", question, *menus)

    def ground(
        self,
        video: File,
        query: str,
        request: gr.Request,
        compressor: str | None = None,
        keep: float | None = None,
        frames: int | None = None,
        max_new_tokens: int = ANSWER_LIMIT,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """When what is described happens: spans in seconds."""
        menus = (compressor, keep, frames, max_new_tokens)
        return self._answer(request, video, anyway, "ground", query, *menus)

    def caption(
        self,
        video: File,
        request: gr.Request,
        compressor: str | None = None,
        keep: float | None = None,
        frames: int | None = None,
        max_new_tokens: int = ANSWER_LIMIT,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """What happens when: sentences with their spans."""
        menus = (compressor, keep, frames, max_new_tokens)
        return self._answer(request, video, anyway, "caption", "", *menus)

    def highlights(
        self,
        video: File,
        query: str,
        request: gr.Request,
        compressor: str | None = None,
        keep: float | None = None,
        frames: int | None = None,
        max_new_tokens: int = ANSWER_LIMIT,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """Every moment that fits a description, with scores."""
        menus = (compressor, keep, frames, max_new_tokens)
        return self._answer(request, video, anyway, "highlights", query, *menus)

    def compare(
        self,
        video: File,
        question: str,
        request: gr.Request,
        compressor: str | None = None,
        keep: float | None = None,
        frames: int | None = None,
        max_new_tokens: int = ANSWER_LIMIT,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """The answer with every token beside that with fewer, and whether they agree."""

        def work(session: Session, job: Job) -> Made:
            call = self._call(session, "ask", question, compressor, keep, frames, max_new_tokens)
            clip = self.host.clip(session, int(call.frames or 1), job)
            with self.host.turn(job):
                return compare(
                    session.llm,
                    clip,
                    question,
                    compressor=call.method(),
                    max_new_tokens=call.max_new_tokens,
                    listeners=(job, job),
                    anyway=anyway,
                ).as_dict()

        return self._run(request, video, anyway, work)

    def index(
        self,
        video: File,
        question: str,
        request: gr.Request,
        fps: float = 1.0,
        anyway: bool = False,
    ) -> dict[str, Any]:
        """Read a long video once, at so many frames a second, and ask the whole of it."""

        def work(session: Session, job: Job) -> Made:
            asked, rate = checked(["question", "rate"], [question, fps], self.host.settings)
            index = self.host.index(session, float(rate), job, anyway=anyway)
            with self.host.turn(job):
                return index.ask(asked).as_dict()

        return self._run(request, video, anyway, work)

    def _answer(
        self,
        request: gr.Request,
        video: Any,
        anyway: bool,
        task: str,
        question: str,
        *menus: Any,
    ) -> Made:
        def work(session: Session, job: Job) -> Made:
            call = replace(self._call(session, task, question, *menus), anyway=anyway)
            clip = self.host.clip(session, int(call.frames or 1), job)
            with self.host.turn(job):
                return call.run(session.llm, clip, job).as_dict()

        return self._run(request, video, anyway, work)

    def _call(
        self,
        session: Session,
        task: str,
        question: str,
        compressor: str | None,
        keep: float | None,
        frames: int | None,
        most: int,
    ) -> Call:
        """The call of checked arguments. Raises `InputError` for the first that is wrong."""
        spec, share = self.host.first()
        spec = spec if compressor is None else compressor
        share = share if keep is None else keep
        frames = self.host.frames() if frames is None else frames
        names = ["question", "spec", "keep", "frames", "most"]
        values = checked(names, [question, spec, share, frames, most], self.host.settings)
        return self.host.call(session.path, task, *values)

    def _run(
        self,
        request: gr.Request,
        video: Any,
        anyway: object,
        work: Callable[[Session, Job], Made],
    ) -> Made:
        """Take up the work of a call, and wait for what comes of it."""
        session = self.host.sessions.of(request.session_hash)
        try:
            if not isinstance(anyway, bool):  # "false" would open the gate for unknown footage
                raise InputError(f"anyway must be true or false, got {short(anyway)}")
            path = uploaded(video)
            self.host.sessions.owns(session, path, more=True)
            job = self.host.begin(session, Job(lambda job: self._work(session, path, work, job)),
                                  arrived(request))  # fmt: skip
            job.start()
            return plain(job.result())
        except VidllmError as error:
            told = str(error)
            if session.path:
                told = told.replace(session.path, session.name)
            raise gr.Error(told, print_exception=False) from None

    def _work(
        self, session: Session, path: str, work: Callable[[Session, Job], Made], job: Job
    ) -> Made:
        # One call of a client at a time has its session, and so the clip that another call left.
        with session.calls.turn(job):
            if session.path != path:
                session.forget()
                session.path = path
            return work(session, job)


def uploaded(video: Any) -> str:
    """The path of a file that was uploaded to this page.

    Raises:
        InputError: something else, such as a file that lies elsewhere on this machine.
    """
    path = video.get("path") if isinstance(video, dict) else getattr(video, "path", None)
    folder = Path(get_upload_folder()).resolve()
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder):
        raise InputError(
            "the video must be a file that was uploaded to this page: with gradio_client, "
            "video=handle_file(path)"
        )
    return path
