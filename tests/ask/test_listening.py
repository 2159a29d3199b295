"""Hearing how a call goes on and stopping it; what it cost; how sure its times are."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import letters, save_hub
from test_asking import FAMILIES, QUESTION, TOKENIZER, calls_of, hooks, plain, spec_of
from tiny import generation, hub_model, tiny_model, write_video

from vidllm import Span, VideoLLM, WorkError, load_video
from vidllm.compressors import build
from vidllm.longvideo.build import native_engine
from vidllm.models.cost.flops import counted
from vidllm.models.cost.spending import Spending
from vidllm.models.families.engine import HubEngine
from vidllm.models.hooks.decoding import Trace, generate_from
from vidllm.models.question import prompt_ids
from vidllm.progress import Listener, Stopped, StopSignal
from vidllm.timecode import AbsoluteTime, TextTime
from vidllm.timecode.scoring import scored_spans, whole_times
from vidllm.video import VideoClip

TIMES = [0.0, 0.1, 0.5, 0.6, 1.2, 2.0]
STAGES = ["encode", "compress", "prefill", "generate"]


class Recorder(Listener):
    """Writes down what it hears; stops when the stage `at` begins, or behind so many texts."""

    def __init__(self, at: str = "", texts: int = 1000) -> None:
        self.at, self.texts, self.done = at, texts, False
        self.stages: list[str] = []
        self.spent: dict[str, float] = {}
        self.said: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)
        self.done |= name == self.at

    def seconds(self, name: str, value: float) -> None:
        self.spent[name] = value

    def text(self, so_far: str) -> None:
        self.said.append(so_far)
        self.done |= len(self.said) >= self.texts

    def stopped(self) -> bool:
        return self.done


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", TIMES, size=(64, 48))


@pytest.fixture(scope="module")
def clip(video: Path) -> VideoClip:
    return load_video(video, frames=6)


@pytest.fixture(scope="module", params=["native", *FAMILIES])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    if request.param == "native":
        return VideoLLM(hub_model("clip", "qwen3", downsample=2), TOKENIZER, keep=1.0)
    made = save_hub(tmp_path_factory.mktemp("hub") / request.param, request.param)
    return VideoLLM.from_pretrained(made)


def layers_of(llm: VideoLLM) -> Any:
    if isinstance(llm.engine, HubEngine):
        return llm.engine.adapter.tower, llm.engine.adapter.decoder
    return llm.model.vision, llm.model.language_model


@pytest.mark.parametrize("name", [None, "aim", "fastv"])
def test_a_listener_hears_all_and_changes_nothing(
    name: str | None, llm: VideoLLM, video: Path
) -> None:
    heard = Recorder()
    options: dict[str, Any] = {"compressor": spec_of(name), "max_new_tokens": 6, "frames": 6}
    answer = llm.ask(video, QUESTION, listener=heard, **options)
    assert plain(answer) == plain(llm.ask(video, QUESTION, **options))
    assert heard.stages == ["decode", *STAGES]
    assert heard.spent == answer.receipt.seconds
    assert heard.said[-1] == answer.text and len(heard.said) >= 6
    assert all("<t" not in said for said in heard.said) and hooks(llm.model) == 0
    two = Recorder()
    llm.ask(video, [QUESTION, "what?"], listener=two, max_new_tokens=2, frames=6)
    assert two.stages[:5] == ["decode", *STAGES]


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("name", [None, "fastv", "dycoke-cache"])
def test_a_stop_ends_the_work_at_the_next_layer(
    at: str, name: str | None, llm: VideoLLM, clip: VideoClip
) -> None:
    fresh, (tower, decoder) = replace(clip), layers_of(llm)
    options: dict[str, Any] = {"compressor": spec_of(name), "max_new_tokens": 4}
    heard = Recorder(at)
    behind: list[str] = []
    watched = [m for m in (*tower.modules(), *decoder.modules()) if hasattr(m, "q_proj")]
    marks = [
        m.register_forward_hook(lambda *_: behind.append("a layer") if heard.done else None)
        for m in watched
    ]
    try:
        with pytest.raises(Stopped, match=r"^stopped$") as caught:
            llm.ask(fresh, QUESTION, listener=heard, **options)
    finally:
        for mark in marks:
            mark.remove()
    assert isinstance(caught.value, WorkError) and not behind
    assert heard.stages[-1] == at and heard.said == []
    assert hooks(llm.model) == 0
    again = llm.ask(fresh, QUESTION, **options)  # nothing is left of the call that ended
    assert plain(again) == plain(llm.ask(replace(clip), QUESTION, **options))


def test_a_stop_while_the_answer_grows(llm: VideoLLM, clip: VideoClip) -> None:
    heard = Recorder(texts=2)
    with calls_of(layers_of(llm)[1]) as steps, pytest.raises(Stopped):
        llm.ask(clip, QUESTION, listener=heard, max_new_tokens=30)
    assert len(heard.said) == 2 and len(steps) <= 4
    signal = StopSignal()

    class Pressed(StopSignal):
        def text(self, so_far: str) -> None:
            press = threading.Thread(target=signal.stop)
            press.start()
            press.join()

    with pytest.raises(Stopped):
        llm.ask(clip, QUESTION, listener=Pressed(signal.event), max_new_tokens=30)
    with calls_of(layers_of(llm)[0]) as seen, pytest.raises(Stopped):
        llm.ask(replace(clip), QUESTION, listener=signal)
    assert not seen and hooks(llm.model) == 0


def test_what_a_listener_raises_ends_the_call(llm: VideoLLM, clip: VideoClip) -> None:
    class Broken(Listener):
        def text(self, so_far: str) -> None:
            raise KeyError("gone")

    with pytest.raises(KeyError):
        llm.ask(clip, QUESTION, listener=Broken(), max_new_tokens=3)
    assert hooks(llm.model) == 0 and llm.ask(clip, QUESTION, max_new_tokens=3).raw is not None


@pytest.mark.parametrize("name", [None, "uniform", "tome", "fastv", "dycoke-cache"])
def test_flops_are_what_torch_counts(name: str | None, llm: VideoLLM, clip: VideoClip) -> None:
    """All but what choosing takes, which these tiny models feel."""
    llm.model.requires_grad_(False)  # torch's counter cannot follow gradients here
    method = build("none") if name is None else build(name, keep=0.5)
    answers = []

    def ask() -> None:
        answers.append(llm.ask(replace(clip), QUESTION, compressor=method, max_new_tokens=6))

    count = counted(ask)
    receipt = answers[0].receipt
    assert receipt.flops is not None
    assert list(receipt.flops) == ["vision", "temporal", "prefill", "decode"]
    told = sum(receipt.flops.values())
    assert told == count if name in (None, "uniform") else 0.9 * count < told <= count
    again = llm.ask(clip, QUESTION, compressor=method, max_new_tokens=6).receipt
    assert again.flops == receipt.flops  # also where the clip was not encoded again
    assert again.as_dict()["flops"] == receipt.flops and "\n" not in str(receipt)


def test_memory_is_measured_where_it_is_asked_for(llm: VideoLLM, clip: VideoClip) -> None:
    usual = llm.ask(clip, QUESTION, max_new_tokens=2)
    assert usual.receipt.peak_mb is None  # on a CPU
    llm.measures_memory = True
    try:
        measured = llm.ask(replace(clip), QUESTION, max_new_tokens=2)
    finally:
        llm.measures_memory = False
    assert measured.receipt.peak_mb is not None
    assert measured.receipt.peak_mb > clip.frames.nbytes / 1e6  # pixels alone are more
    assert replace(measured.receipt, peak_mb=None, seconds={}) == plain(usual).receipt
    assert measured.receipt.as_dict()["peak_mb"] == round(measured.receipt.peak_mb, 3)


def test_models_of_unknown_shape_tell_no_flops(clip: VideoClip) -> None:
    model, tokenizer = tiny_model()
    llm = VideoLLM(model, tokenizer)
    assert llm.ask(clip, QUESTION, max_new_tokens=1).receipt.flops is not None
    other = type(model.config).from_dict(model.config.to_dict())
    other.text = {**other.text, "model_type": "gpt2"}
    llm.spending = Spending(other, llm.engine.decoder_config)
    assert llm.ask(clip, QUESTION, max_new_tokens=1).receipt.flops is None


@torch.inference_mode()
def test_scores_of_tokens_are_those_of_one_pass_over_the_answer(clip: VideoClip) -> None:
    model = hub_model("clip", "qwen3", downsample=2)
    llm = VideoLLM(model, TOKENIZER, keep=1.0)
    tokens, duration = native_engine(llm).tokens(clip)
    head, tail = prompt_ids(TOKENIZER, QUESTION)
    trace, rows = Trace(), [tail, tail[2:]]
    prefix = model.prefill(head, tokens, duration)
    said = generate_from(model.language_model, prefix, rows, max_new_tokens=5, eos=-1, trace=trace)
    video = model.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
    for row, new, scores in zip(rows, said, trace.scores, strict=True):
        text = model.embed_tokens(torch.tensor([*row, *new]))
        whole = torch.cat([model.embed_tokens(torch.tensor(head)), video, text])[None]
        shares = model.language_model(inputs_embeds=whole).logits[0].log_softmax(-1)
        wanted = [float(shares[len(new) * -1 - 1 + k, token]) for k, token in enumerate(new)]
        assert scores == pytest.approx(wanted, abs=1e-4) and max(scores) <= 0


def test_a_span_is_as_sure_as_the_tokens_that_spell_it(clip: VideoClip) -> None:
    model, tokenizer = tiny_model()
    llm = VideoLLM(model, tokenizer)
    first = llm.config.time_token_start
    word = tokenizer.convert_tokens_to_ids("from")
    ids = [word, first, word, first + 99, first + 3, first + 7]
    scores = [-9.0, -0.5, -9.0, -1.5, -0.2, -0.4]
    answer = llm.engine.decode(generation(ids, scores), "when?", clip)
    assert [s.score for s in answer.spans] == pytest.approx([math.exp(-1.0), math.exp(-0.3)])
    unscored = llm.engine.decode(generation(ids), "when?", clip)
    assert [s.score for s in unscored.spans] == [1.0, 1.0]


def test_times_in_words_are_scored_by_their_digits() -> None:
    text = " It is from 1.5 to 12 s"
    ids = letters()(text, add_special_tokens=False)["input_ids"]
    code, scores = TextTime(), [-7.0] * len(text)
    for place in (text.index("1.5"), text.index(".5"), text.index("5"), *(19, 20)):
        scores[place] = -0.5
    assert text[19:21] == "12"
    found = code.find(text.strip(), 20.0)
    spans = scored_spans(found, ids, scores, lambda some: str(letters().decode(some)), code)
    assert spans == [Span(1.5, 12.0, pytest.approx(math.exp(-0.5)))]
    assert scored_spans(found, ids, [], str, code) == [Span(1.5, 12.0)]
    raw = AbsoluteTime().encode(12.5, 99.0)
    assert whole_times(f"from {raw}") == "from"  # its next token may be a decimal
    assert whole_times(f"from {raw} to") == f"from {raw} to"
    assert whole_times("from <t3>") == "from <t3>" and whole_times("caf\ufffd") == "caf"


class Patient(Listener):
    """Stops when it is asked for the n-th time."""

    def __init__(self, times: int) -> None:
        self.left = times

    def stopped(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_reading_a_file_stops_at_a_packet(video: Path) -> None:
    patient = Patient(4)
    with pytest.raises(Stopped):
        load_video(video, frames=6, listener=patient)
    assert patient.left == 0  # it was not asked again
    assert len(load_video(video, frames=6, listener=Patient(1000))) == 6
