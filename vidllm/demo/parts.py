"""The components of the page, by the names that the handlers use."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr

from vidllm.compressors import STAGES, describe
from vidllm.models.shipped import sample_videos

from .arguments import LONGEST_ANSWER, RATE, SHARE
from .chat import chat, hint
from .host import Host
from .opening import ANSWER_LIMIT, model_card
from .showing import NO_RECIPE
from .views import method, refusals


def layout(host: Host) -> SimpleNamespace:
    """Make the components, inside a `gr.Blocks`."""
    p = SimpleNamespace()
    gr.HTML(
        "<h1>vidllm</h1><p>Ask a video, click a time in the answer, see which video tokens were "
        f"kept.</p>{model_card(host.llm, host.settings)}",
        elem_id="about",
    )
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
        gr.HTML("<h2>Every token against fewer</h2>")
        with gr.Row():
            p.full = gr.HTML(elem_id="full", elem_classes="vl-answer", min_width=280)
            p.less = gr.HTML(elem_id="less", elem_classes="vl-answer", min_width=280)
        p.verdict = gr.HTML(elem_id="verdict")
    _tokens(p, host)
    with gr.Accordion("Take the answer with you: Python and JSON", open=False), gr.Row():
        with gr.Column(min_width=320):
            p.python = gr.Code(
                language="python",
                label="Python",
                interactive=False,
                wrap_lines=True,
                elem_id="python",
            )
        with gr.Column(min_width=320):
            p.json = gr.Code(language="json", label="JSON", interactive=False, wrap_lines=True,
                             max_lines=16, elem_id="json")  # fmt: skip
    p.sprite = gr.HTML(elem_id="sprite")
    return p


def _player(p: SimpleNamespace) -> None:
    p.problem = gr.HTML(elem_id="problem")
    p.video = gr.Video(
        label="Video", height=340, interactive=False, buttons=[], elem_id="video",
    )  # fmt: skip
    p.timeline = gr.HTML(elem_id="timeline")
    p.upload = gr.UploadButton("Upload or drop a video", file_types=["video"], elem_id="upload")
    samples = [str(path) for path in sample_videos()]
    if samples:
        names = [path.rsplit("/", 1)[-1] for path in samples]
        gr.Examples([[s] for s in samples], [p.video], label="Samples", example_labels=names)


def _tabs(p: SimpleNamespace, host: Host) -> None:
    longest, first = host.settings.max_question, host.questions(host.first_sample())[0]
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab("Ask"):
            p.answer = gr.HTML(chat((), 0.0), elem_id="answer", elem_classes="vl-answer")
            p.question = gr.Textbox(
                label="Question", value=first, lines=1, max_length=longest, elem_id="question",
                info="Each question is answered by itself, from the video alone.",
            )  # fmt: skip
            p.examples = gr.HTML(elem_id="examples")
            with gr.Row():
                p.ask = gr.Button("Ask", variant="primary", min_width=100, elem_id="ask")
                p.both = gr.Button("Compare", min_width=100, elem_id="both")
                p.clear = gr.Button("Clear", min_width=80, elem_id="clear")
            p.method = gr.HTML(method(host.named(*host.first())), elem_id="method")
        with gr.Tab("Find"):
            p.query = gr.Textbox(
                label="What to find", placeholder="the red star spins", max_length=longest,
                info="The model says when it happens.", elem_id="query",
            )  # fmt: skip
            p.find = gr.Button("Find", variant="primary", elem_id="find")
            p.found = gr.HTML(elem_id="found", elem_classes="vl-answer")
        with gr.Tab("Captions"):
            gr.HTML(hint("What happens when, a line each; click a time to go there."))
            p.describe = gr.Button("Describe the video", variant="primary", elem_id="describe")
            p.captions = gr.HTML(elem_id="captions", elem_classes="vl-answer")
        with gr.Tab("Highlights"):
            p.theme = gr.Textbox(
                label="Moments of what", placeholder="something blinks", max_length=longest,
                info="Every moment that fits, as a curve over time.", elem_id="theme",
            )  # fmt: skip
            p.show = gr.Button("Show", variant="primary", elem_id="show")
            p.curve = gr.HTML(elem_id="curve")
            p.peaks = gr.HTML(elem_id="peaks", elem_classes="vl-answer")
        with gr.Tab("Long video"):
            _long(p, host)


def _long(p: SimpleNamespace, host: Host) -> None:
    able = not host.no_index
    gr.HTML(
        hint(
            "Read the video once into an index, at a fixed rate and in constant memory; then ask "
            "as often as you like, also an hour of it."
            if able
            else f"Not with this model: {host.no_index}"
        )
    )
    with gr.Row():
        p.rate = gr.Slider(
            *RATE, value=1.0, step=0.1, label="Frames a second", interactive=able, min_width=140,
            buttons=[],
        )  # fmt: skip
        p.read = gr.Button("Read the video", interactive=able, min_width=140, elem_id="read")
    p.index = gr.HTML(elem_id="index")
    p.long_question = gr.Textbox(
        label="Question", elem_id="long-question", interactive=able,
        placeholder="when does the red star spin?", max_length=host.settings.max_question,
    )  # fmt: skip
    p.long_ask = gr.Button(
        "Ask the whole video", variant="primary", interactive=able, elem_id="long-ask"
    )
    p.long_answer = gr.HTML(elem_id="long-answer", elem_classes="vl-answer")


def _tokens(p: SimpleNamespace, host: Host) -> None:
    spec, keep = host.first()
    recipes = [(f"{o.name}: {o.summary}", o.name) for o in host.served if o.kind == "recipe"]
    begun = host.begun()
    gr.HTML("<h2>Which tokens are kept</h2>")
    p.strip = gr.HTML(hint("The frames of your video appear here."), elem_id="strip")
    with gr.Accordion("Settings: compressor, share kept, frames", open=False, elem_id="settings"):
        # A name that was typed also counts where the box is left right behind it: with values
        # of its own the menu keeps what was typed, without it would fall back to the old one.
        p.compressor = gr.Dropdown(
            compressors(host), value=spec, label="Compressor", allow_custom_value=True,
            filterable=True,
            info="What reduces the video tokens, by the stage where it acts: inside the vision "
            "tower, on its tokens, between the LLM's layers (prefill), in the KV cache. Or type a "
            "chain: temporal-pool,fastv",
            elem_id="compressor",
        )  # fmt: skip
        p.recipe = gr.Dropdown(
            [("none", NO_RECIPE), *recipes], label="Recipe",
            value=NO_RECIPE if begun is None else begun.name,
            allow_custom_value=True, info="A named system: it sets compressor and share.",
            elem_id="recipe",
        )  # fmt: skip
        with gr.Row():
            p.keep = gr.Slider(
                *SHARE, value=keep, step=0.01, label="Share kept", min_width=200, buttons=[],
                info="of the video tokens; 1 keeps all", elem_id="keep",
            )  # fmt: skip
            p.frames = gr.Slider(
                1, host.settings.max_frames, value=host.frames(), step=1, label="Frames",
                min_width=200, buttons=[], info="sampled evenly from the video", elem_id="frames",
            )  # fmt: skip
            p.most = gr.Slider(
                *LONGEST_ANSWER, value=ANSWER_LIMIT, step=8, label="Answer limit", min_width=200,
                info="tokens of the answer at most", buttons=[], elem_id="most",
            )  # fmt: skip
    if host.refused:
        with gr.Accordion(
            f"{len(host.refused)} methods that this model cannot serve, and why", open=False
        ):
            gr.HTML(refusals(host.refused), elem_id="refused")


def compressors(host: Host) -> list[tuple[str, str]]:
    """The compressors that the model serves, by stage, a line each, with their names.

    Those with weights of their own come last in a stage.
    """
    served = {o.name for o in host.served if o.kind == "compressor"}
    known = [entry for entry in describe() if entry["name"] in served]
    known.sort(key=lambda e: (e["name"] != "none", STAGES.index(e["stage"]), e["trained"]))
    return [
        (
            ("" if entry["name"] == "none" else f"{entry['stage']} · ")
            + f"{entry['name']}: {entry['summary'].split(';')[0]}",
            entry["name"],
        )
        for entry in known
    ]
