"""Turns before a question, a system prompt, drawn tokens, and answers that come in pieces."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_tiny import TAKES_TEXT, TAKES_VIDEOS, save_hub
from tiny import tiny_model

from vidllm import Answer, InputError, Listener, Receipt, Stopped, StopSignal, VideoClip, VideoLLM
from vidllm.ask.streaming import AnswerStream

QUESTION, HISTORY = "And then?", [("When does it start?", "At 2 s."), ("Who is it?", "{question}")]
MESSAGES = [
    {"role": "system", "content": "Be short."},
    *(
        {"role": role, "content": text}
        for turn in HISTORY
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ),
]


@pytest.fixture(scope="module")
def clip() -> VideoClip:
    frames = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8)
    return VideoClip.from_frames(frames, fps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub(tmp_path_factory.mktemp("hub") / "qwen", "qwen2_5_vl", TAKES_VIDEOS)


@pytest.fixture(scope="module")
def hub(folder: Path) -> VideoLLM:
    return VideoLLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def own() -> VideoLLM:
    return VideoLLM(*tiny_model())


def test_turns_stand_where_the_chat_template_puts_them(hub: VideoLLM, clip: VideoClip) -> None:
    told = hub.prompt_text(clip, QUESTION, system="Be short.", history=HISTORY)
    tokens = hub.ask(clip, QUESTION, max_new_tokens=1).receipt.tokens_full
    assert told == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        f"<|im_start|>user\n<img><video {tokens}></img>When does it start?<|im_end|>\n"
        "<|im_start|>assistant\nAt 2 s.<|im_end|>\n"
        "<|im_start|>user\nWho is it?<|im_end|>\n"
        "<|im_start|>assistant\n{question}<|im_end|>\n"
        "<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert hub.prompt_text(clip, QUESTION, history=MESSAGES) == told
    receipt = Receipt(6, 1, 1, 0.0, 0.0, {})
    answers = [(asked, Answer(said, (), receipt)) for asked, said in HISTORY]
    assert hub.prompt_text(clip, QUESTION, system="Be short.", history=answers) == told
    beside = hub.prompt_text(clip, QUESTION, history=HISTORY, times=True)
    assert "</img>The video lasts for 3.00 seconds" in beside  # the times stay with the video


def test_answers_are_those_of_a_fresh_model(folder: Path, hub: VideoLLM, clip: VideoClip) -> None:
    """What is kept of a clip for later questions is not taken for another system prompt."""
    ways: list[dict[str, Any]] = [
        {},
        {"system": "Be short."},
        {"history": HISTORY},
        {"history": MESSAGES, "compressor": "uniform", "keep": 0.5},
        {},
    ]
    for way in ways:
        made = hub.ask(clip, QUESTION, max_new_tokens=6, **way)
        fresh = VideoLLM.from_pretrained(folder).ask(clip, QUESTION, max_new_tokens=6, **way)
        assert made.text == fresh.text


def test_what_has_no_place_for_turns_refuses_them(
    own: VideoLLM, hub: VideoLLM, clip: VideoClip, tmp_path: Path
) -> None:
    for option in ({"system": "Be short."}, {"history": HISTORY}):
        with pytest.raises(InputError, match="trained on single questions without a system"):
            own.ask(clip, QUESTION, **option)
    fixed = VideoLLM.from_pretrained(save_hub(tmp_path / "smolvlm", "smolvlm"))
    with pytest.raises(InputError, match="has no place for a system prompt or earlier turns"):
        fixed.ask(clip, QUESTION, history=HISTORY)
    text = VideoLLM.from_pretrained(save_hub(tmp_path / "internvl", "internvl", TAKES_TEXT))
    assert "assistant\nAt 2 s.<|im_end|>" in text.prompt_text(clip, QUESTION, history=HISTORY)
    wrong: list[tuple[Any, str]] = [
        ("When?", "history is a list of"),
        ([("When?",)], "history is a list of"),
        ([("When?", 3)], "a turn of the history is text, not 3"),
        (MESSAGES[:2], "roles system, user: give user and assistant by turns"),
        ([("<|im_end|>", "no")], "a control token"),
    ]
    for history, told in wrong:
        with pytest.raises(InputError, match=told):
            hub.ask(clip, QUESTION, history=history)
    with pytest.raises(InputError, match="begins with a system prompt"):
        hub.ask(clip, QUESTION, history=MESSAGES, system="Be long.")


@pytest.mark.parametrize("which", ["own", "hub"])
def test_tokens_are_drawn_from_the_seed(
    which: str, request: pytest.FixtureRequest, clip: VideoClip
) -> None:
    llm: VideoLLM = request.getfixturevalue(which)
    state = torch.get_rng_state()

    def said(**options: Any) -> str:
        return llm.ask(clip, QUESTION, max_new_tokens=12, **options).raw

    hot = said(temperature=5.0, seed=1)
    assert hot == said(temperature=5.0, seed=1) != said(temperature=5.0, seed=2)
    assert said(temperature=1e-4, seed=1) == said() == said(temperature=5.0, top_p=1e-6, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    for option, told in (
        ({"top_p": 0.5}, "give temperature=1.0"),
        ({"temperature": -1}, "temperature must be from 0 on"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0"),
    ):
        with pytest.raises(InputError, match=told):
            said(**option)


@pytest.mark.parametrize("which", ["own", "hub"])
def test_an_answer_comes_in_pieces(
    which: str, request: pytest.FixtureRequest, clip: VideoClip
) -> None:
    llm: VideoLLM = request.getfixturevalue(which)
    whole = llm.ask(clip, QUESTION, max_new_tokens=12)
    stream = llm.stream(clip, QUESTION, max_new_tokens=12)
    pieces = list(stream)
    assert len(pieces) > 1 and stream.answer.text == whole.text
    assert "".join(pieces) == whole.text and stream.answer.spans == whole.spans
    asked = llm.ask(clip, QUESTION, max_new_tokens=12, stream=True)
    assert isinstance(asked, AnswerStream)
    assert list(asked) == pieces and asked.answer.spans == whole.spans
    assert llm.ask(clip, QUESTION, max_new_tokens=12, stream=False).text == whole.text


def test_a_stream_that_is_asked_for_waits_for_nobody(own: VideoLLM, clip: VideoClip) -> None:
    """While another thread works on the model it is made, and read afterwards."""
    made: list[AnswerStream] = []

    def make() -> None:
        made.append(own.ask(clip, QUESTION, max_new_tokens=3, stream=True))

    class Making(Listener):
        def stage(self, name: str) -> None:
            if name == "generate":
                thread = threading.Thread(target=make)
                thread.start()
                thread.join()  # a stream that waits for the model ends neither this nor that

    whole = own.ask(clip, QUESTION, max_new_tokens=3, listener=Making())
    assert made[0].answer.text == whole.text


def test_a_stream_ends_with_its_loop_and_hands_errors_on(own: VideoLLM, clip: VideoClip) -> None:
    with own.stream(clip, QUESTION, max_new_tokens=100) as stream:
        next(stream)
    thread = stream._thread
    assert thread is not None
    thread.join()  # the work ends; else this test does not
    with pytest.raises(Stopped):
        _ = stream.answer
    with pytest.raises(InputError, match="the question is empty"):
        next(own.stream(clip, " "))
    with pytest.raises(InputError, match="did you mean max_new_tokens"):
        own.stream(clip, QUESTION, max_new_token=3)
    with pytest.raises(InputError, match="a stream answers one question"):
        own.stream(clip, [QUESTION])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a stream answers one question"):
        own.ask(clip, [QUESTION], stream=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="did you mean max_new_tokens"):
        own.ask(clip, QUESTION, stream=True, max_new_token=3)  # type: ignore[call-overload]
    signal = StopSignal()
    signal.stop()
    with pytest.raises(Stopped):
        list(own.stream(clip, QUESTION, listener=signal))
