"""The web page: a video, a question, the answer with its times, and what it cost.

`vidllm demo` and `app.py` show the same page. Every time in the answer has a button that moves
the player there. A wrong input is a message on the page, never a stack trace.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Annotated, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import typer

from .compressors import names
from .errors import InputError, VidllmError
from .options import Debug, say
from .pipeline import Answer, VideoLLM
from .shipped import sample_videos

app = typer.Typer(add_completion=False)

QUESTIONS = ("when does the red star spin?", "what happens first?", "describe the video")
#: Buttons for the spans of an answer; what goes beyond is in the text.
MOST_SPANS = 6
AS_TRAINED = "as trained"


@lru_cache(maxsize=2)
def _model(name: str | None, compressor: str, keep: float) -> VideoLLM:
    if compressor == AS_TRAINED:
        return VideoLLM.from_pretrained(name)
    keep_or_none = None if compressor == "none" else keep
    return VideoLLM.from_pretrained(name, compressors=compressor, keep=keep_or_none)


def answer(
    video: str | None, question: str, compressor: str, keep: float, frames: float, name: str | None
) -> Answer:
    """What the page computes; raises `VidllmError` as the command line does."""
    if not video:
        raise InputError("there is no video: upload one or take a sample")
    return _model(name, compressor, float(keep)).ask(video, question, frames=int(frames))


def build(name: str | None = None) -> gr.Blocks:
    """The page for one model (None: the shipped one)."""
    samples = [str(path) for path in sample_videos()]
    with gr.Blocks(title="vidllm") as page:
        gr.Markdown("# vidllm\nAsk a video a question, get an answer with times.")
        spans: gr.State = gr.State([])
        with gr.Row():
            with gr.Column(scale=3):
                video = gr.Video(label="Video", height=360, elem_id="video")
                if samples:
                    gr.Examples([[s] for s in samples], inputs=[video], label="Samples")
            with gr.Column(scale=2):
                question = gr.Textbox(
                    label="Question", value=QUESTIONS[0], lines=1, elem_id="question"
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                said = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
                jumps = [
                    gr.Button(visible=False, size="sm", elem_id=f"span-{i}")
                    for i in range(MOST_SPANS)
                ]
                receipt = gr.Textbox(label="Receipt", interactive=False, elem_id="receipt")
                notes = gr.Markdown(elem_id="notes")
                with gr.Accordion("Fewer tokens", open=False):
                    compressor = gr.Dropdown(
                        [AS_TRAINED, *names()], value=AS_TRAINED, label="Compressor"
                    )
                    keep = gr.Slider(0.05, 1.0, value=0.25, step=0.05, label="Share kept")
                    frames = gr.Slider(8, 256, value=64, step=8, label="Frames")
                gr.Examples([[q] for q in QUESTIONS], inputs=[question], label="Questions")

        def run(path: str | None, text: str, method: str, share: float, count: float) -> list[Any]:
            try:
                result = answer(path, text, method, share, count, name)
            except VidllmError as error:
                raise gr.Error(str(error), print_exception=False) from error
            times = [(s.start, s.end) for s in result.spans][:MOST_SPANS]
            buttons = [
                gr.Button(f"▶ {times[i][0]:.1f} s – {times[i][1]:.1f} s", visible=True)
                if i < len(times)
                else gr.Button(visible=False)
                for i in range(MOST_SPANS)
            ]
            remarks = "\n".join(f"- {note}" for note in result.notes)
            return [result.text, str(result.receipt), remarks, times, *buttons]

        outputs = [said, receipt, notes, spans, *jumps]
        inputs = [video, question, compressor, keep, frames]
        for start in (ask.click, question.submit):
            start(run, inputs, outputs, concurrency_limit=1)
        for i, button in enumerate(jumps):
            button.click(lambda times, i=i: gr.Video(playback_position=times[i][0]), spans, video)
    return page


def launch(
    name: str | None = None, host: str = "127.0.0.1", port: int | None = None, share: bool = False
) -> None:
    """Serve the page until it is stopped."""
    paths = [str(path.parent) for path in sample_videos()[:1]]
    build(name).queue().launch(
        server_name=host, server_port=port, share=share, allowed_paths=paths, quiet=True
    )


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Shipped name, folder or hub name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Also open a public link.")] = False,
    debug: Debug = False,
) -> None:
    """Open the web page: a video, a question, the answer with its times."""
    if model is not None:
        from .shipped import find_model

        find_model(model)
    say(f"serving on http://{host}:{port} (Ctrl-C stops)")
    launch(model, host, port, share)
