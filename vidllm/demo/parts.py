"""The components of the page, by the names that the handlers use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from vidllm.models.shipped import sample_videos

from .arguments import LONGEST_ANSWER, RATE, SHARE
from .host import Host
from .showing import NO_RECIPE
from .views import hint, refusals

QUESTIONS = (
    "when does the red star spin?",
    "what happens first?",
    "when does the red plane blink?",
)


def layout(host: Host) -> SimpleNamespace:
    """Make the components, inside a `gr.Blocks`."""
    p = SimpleNamespace()
    gr.Markdown("# vidllm\nAsk a video, click a time in the answer, see which tokens were kept.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            _player(p)
        with gr.Column(scale=2, min_width=320):
            _tabs(p, host)
            with gr.Row(elem_classes="vl-work"):
                p.status = gr.HTML(elem_id="status")
                p.stop = gr.Button("Stop", size="sm", scale=0, min_width=80, elem_id="stop")
            p.account = gr.HTML(elem_id="account")
    with gr.Column(visible=False, elem_id="compare") as p.compare:
        gr.Markdown("### Full against compressed")
        with gr.Row():
            p.full = _answer("Every token", "full", 280)
            p.less = _answer("Compressed", "less", 280)
        p.verdict = gr.HTML(elem_id="verdict")
    _tokens(p, host)
    with gr.Accordion("Take the answer with you", open=False), gr.Row():
        with gr.Column(min_width=320):
            p.python = gr.Code(
                language="python", label="Python", interactive=False, elem_id="python"
            )
        with gr.Column(min_width=320):
            p.json = gr.Code(language="json", label="JSON", interactive=False, elem_id="json",
                             max_lines=16)  # fmt: skip
    p.sprite = gr.HTML(elem_id="sprite")
    return p


def _player(p: SimpleNamespace) -> None:
    p.problem = gr.HTML(elem_id="problem")
    p.video = gr.Video(label="Video", sources=["upload"], height=340, elem_id="video")
    p.timeline = gr.HTML(elem_id="timeline")
    samples = [str(path) for path in sample_videos()]
    if samples:
        names = [path.rsplit("/", 1)[-1] for path in samples]
        gr.Examples([[s] for s in samples], [p.video], label="Samples", example_labels=names)


def _tabs(p: SimpleNamespace, host: Host) -> None:
    longest = host.settings.max_question
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab("Ask"):
            p.question = gr.Textbox(
                label="Question", value=QUESTIONS[0], lines=1, max_length=longest,
                elem_id="question",
            )  # fmt: skip
            with gr.Row():
                p.ask = gr.Button("Ask", variant="primary", min_width=120, elem_id="ask")
                p.both = gr.Button("Compare", min_width=140, elem_id="both")
            p.answer = _answer("Answer", "answer")
            if host.settings.model is None:
                gr.Examples([[q] for q in QUESTIONS], [p.question], label="For example")
        with gr.Tab("Find"):
            p.query = gr.Textbox(
                label="What to find", placeholder="the red star spins", max_length=longest,
                elem_id="query",
            )  # fmt: skip
            p.find = gr.Button("Find", variant="primary", elem_id="find")
            p.found = _answer("Moments: click a time to go there", "found")
        with gr.Tab("Captions"):
            p.describe = gr.Button("Describe the video", variant="primary", elem_id="describe")
            p.captions = _answer("Events: click a time to go there", "captions")
        with gr.Tab("Highlights"):
            p.theme = gr.Textbox(
                label="Moments of what", placeholder="something blinks", max_length=longest,
                elem_id="theme",
            )  # fmt: skip
            p.show = gr.Button("Show", variant="primary", elem_id="show")
            p.curve = gr.HTML(elem_id="curve")
            p.peaks = _answer("Highlights: click a time to go there", "peaks")
        with gr.Tab("Long video"):
            _long(p, host)


def _long(p: SimpleNamespace, host: Host) -> None:
    able = not host.no_index
    gr.HTML(
        hint(
            "Read the video once, at a fixed rate and in constant memory; then ask as often as "
            "you like, also an hour of it."
            if able
            else f"Not with this model: {host.no_index}"
        )
    )
    with gr.Row():
        p.rate = gr.Slider(
            *RATE, value=1.0, step=0.1, label="Frames a second", interactive=able, min_width=140
        )
        p.read = gr.Button("Read the video", interactive=able, min_width=140, elem_id="read")
    p.index = gr.HTML(elem_id="index")
    p.long_question = gr.Textbox(
        label="Question", elem_id="long-question", interactive=able,
        placeholder="when does the red star spin?", max_length=host.settings.max_question,
    )  # fmt: skip
    p.long_ask = gr.Button(
        "Ask the whole video", variant="primary", interactive=able, elem_id="long-ask"
    )
    p.long_answer = _answer("Answer", "long-answer")


def _tokens(p: SimpleNamespace, host: Host) -> None:
    spec, keep = host.first()
    names = [o.name for o in host.served if o.kind == "compressor"]
    recipes = [o.name for o in host.served if o.kind == "recipe"]
    gr.Markdown("### Which tokens are kept")
    with gr.Row():
        # A name that was typed also counts where the box is left right behind it: with values
        # of its own the menu keeps what was typed, without it would fall back to the old one.
        p.recipe = gr.Dropdown(
            [NO_RECIPE, *recipes], value=NO_RECIPE, label="Recipe", min_width=140,
            allow_custom_value=True, elem_id="recipe",
        )  # fmt: skip
        p.compressor = gr.Dropdown(
            names, value=spec, label="Compressor", min_width=180, allow_custom_value=True,
            filterable=True,
            info="or a chain: temporal-pool,fastv", elem_id="compressor",
        )  # fmt: skip
        p.keep = gr.Slider(
            *SHARE, value=keep, step=0.01, label="Share kept", min_width=200,
            buttons=[],
            elem_id="keep",
        )  # fmt: skip
        p.frames = gr.Slider(
            1, host.settings.max_frames, value=host.frames(), step=1, label="Frames",
            min_width=180, buttons=[], elem_id="frames",
        )  # fmt: skip
        p.most = gr.Slider(
            *LONGEST_ANSWER, value=128, step=8, label="Answer limit", min_width=200,
            info="in tokens", buttons=[], elem_id="most",
        )  # fmt: skip
    p.strip = gr.HTML(hint("The frames of your video appear here."), elem_id="strip")
    if host.refused:
        with gr.Accordion(
            f"{len(host.refused)} methods that this model cannot serve, and why", open=False
        ):
            gr.HTML(refusals(host.refused), elem_id="refused")


def _answer(label: str, name: str, width: int = 160) -> Any:
    """Text whose times can be clicked."""
    return gr.HighlightedText(
        label=label,
        color_map={"time": "blue"},
        show_legend=False,
        combine_adjacent=False,
        interactive=False,
        min_width=width,
        elem_id=name,
        elem_classes="vl-answer",
    )
