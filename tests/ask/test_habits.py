"""The API of habit: one name for one thing, and the near name where a keyword is wrong."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, write_video

import vidllm
from vidllm import Answer, InputError, Receipt, Span, VideoClip, VideoLLM

QUESTION = "when does the red circle move left?"


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return VideoLLM(*tiny_model(), frames=8)


@pytest.fixture(scope="module")
def clip() -> VideoClip:
    frames = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), dtype=np.uint8)
    return VideoClip(frames, np.arange(8.0), 1.0, 8.0, np.arange(8), "made.mp4")


CALLS: dict[str, Any] = {
    "ask": lambda llm, clip, **k: llm.ask(clip, QUESTION, max_new_tokens=2, **k),
    "ground": lambda llm, clip, **k: llm.ground(clip, QUESTION, max_new_tokens=2, **k),
    "ground_answer": lambda llm, clip, **k: llm.ground_answer(clip, QUESTION, **k),
    "highlights": lambda llm, clip, **k: llm.highlights(clip, QUESTION, max_new_tokens=2, **k),
    "caption": lambda llm, clip, **k: llm.caption(clip, max_new_tokens=2, **k),
    "compare": lambda llm, clip, **k: llm.compare(clip, QUESTION, max_new_tokens=2, **k),
    "preview": lambda llm, clip, **k: llm.preview(clip, QUESTION, **k),
    "prompt_text": lambda llm, clip, **k: llm.prompt_text(clip, QUESTION, **k),
    "sample": lambda llm, clip, **k: llm.sample(clip, **k),
}


@pytest.mark.parametrize("name", CALLS)
def test_compressor_and_keep_are_the_words_of_every_call(
    name: str, llm: VideoLLM, clip: VideoClip
) -> None:
    CALLS[name](llm, clip, compressor="uniform", keep=0.5)
    with pytest.raises(InputError, match=rf"^{name}\(\) has no keyword 'compresor': did you mean "):
        CALLS[name](llm, clip, compresor="uniform")
    with pytest.raises(TypeError, match="did you mean compressor"):  # as Python's own error
        CALLS[name](llm, clip, compresor="uniform")


def test_a_call_with_a_method_uses_it(llm: VideoLLM, clip: VideoClip) -> None:
    answer = llm.ask(clip, QUESTION, compressor="aim-prune", keep=0.25, max_new_tokens=2)
    assert answer.receipt.method == "aim-prune"
    assert answer.receipt.tokens_kept == answer.receipt.tokens_full // 4
    both = llm.compare(clip, QUESTION, compressor="uniform", keep=0.25, max_new_tokens=2)
    assert both.full.receipt.method == "none" and both.less.receipt.method == "uniform"


def test_loading_and_compressing_take_the_same_words(llm: VideoLLM) -> None:
    made = VideoLLM(llm.model, llm.tokenizer, compressor="uniform", keep=0.5)
    assert made.compressor.keep == 0.5
    with pytest.warns(DeprecationWarning, match="compressors= is compressor= now"):
        assert VideoLLM(llm.model, llm.tokenizer, compressors="uniform", keep=0.5).compressor == (
            made.compressor
        )
    with pytest.raises(InputError, match=r"^VideoLLM\(\) has no keyword 'keeep': did you mean ke"):
        VideoLLM(llm.model, llm.tokenizer, keeep=0.5)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"^from_pretrained\(\) has no keyword 'devise': did you"):
        VideoLLM.from_pretrained(devise="cpu")  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"^compress\(\) has no keyword 'ratio': it takes model, "):
        vidllm.compress(llm.model, "aim", ratio=0.5)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="give compressor alone"):
        VideoLLM.from_pretrained(compressor="aim", compressors="aim", keep=0.5)


def test_an_index_is_asked_with_the_method_of_its_call(llm: VideoLLM, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", [i / 4 for i in range(40)])
    index = llm.index(video, compressor="uniform", keep=0.5)
    assert index.engine.compressor.keep == 0.5 and llm.compressor.name == "none"
    with pytest.raises(
        InputError, match=r"^index\(\) has no keyword 'tokens_per_min': did you mean "
    ):
        llm.index(video, tokens_per_min=100)
    with pytest.raises(InputError, match=r"^ask\(\) has no keyword 'keep': it takes question$"):
        index.ask(QUESTION, keep=0.5)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"^load_video\(\) has no keyword 'frame'"):
        vidllm.load_video(video, frame=8)  # type: ignore[call-arg]


def test_frames_in_memory_are_asked_as_they_are(llm: VideoLLM, clip: VideoClip) -> None:
    known = llm.ask(clip, QUESTION, max_new_tokens=4)
    for frames in (clip.frames, list(clip.frames)):
        assert llm.ask(frames, QUESTION, seconds=range(8), max_new_tokens=4).text == known.text
    assert llm.ground(clip.frames, QUESTION, fps=1) == llm.ground(clip, QUESTION)
    for call, options, told in (
        (llm.ask, {}, "say when the frames are"),
        (llm.ask, {"fps": 1, "frames": 4}, "frames is of a file"),
        (llm.caption, {"fps": 1, "start": 1.0}, "start is of a file"),
    ):
        question = () if call == llm.caption else (QUESTION,)
        with pytest.raises(InputError, match=told):
            call(clip.frames, *question, **options)  # type: ignore[operator]
    with pytest.raises(InputError, match="a file or a clip has its own"):
        llm.ask(clip, QUESTION, seconds=[0.0] * 8)


def test_an_answer_reads_as_people_write() -> None:
    receipt = Receipt(8, 128, 32, 1.0, 0.25, {"decode": 0.1}, method="aim", model="stage")
    spans = (Span(3987.2, 4011.9, 0.5),)
    answer = Answer("It moves <left> from 3987.2 s to 4011.9 s.", spans, receipt, notes=("a & b",))
    assert str(answer) == "It moves <left> from 1:06:27 to 1:06:52."  # every time once
    assert str(replace(answer, text="It moves.")) == "It moves.\n1:06:27 – 1:06:52"
    assert repr(answer).startswith("Answer('It moves <left> from 1:06:27")
    assert "(25 %) by aim" in repr(answer) and "model stage" in str(receipt)
    page = answer._repr_html_()
    assert "&lt;left&gt;" in page and "<li>1:06:27 – 1:06:52" in page and "note: a &amp; b" in page
    told = json.loads(answer.to_json())
    assert told == json.loads(json.dumps(answer.to_dict())) and told["spans"] == [[3987.2, 4011.9]]
    assert told["receipt"]["model"] == "stage" and told["receipt"]["method"] == "aim"
    short = Answer("from 3.0 s to 4.0 s", (Span(3.0, 4.0),), receipt)
    assert str(short) == "from 3.0 s to 4.0 s"


def test_the_logger_tells_as_much_as_one_wants(
    llm: VideoLLM, clip: VideoClip, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("vidllm")
    before = logger.level, logger.propagate, list(logger.handlers)
    try:
        vidllm.set_verbosity("info")
        answer = llm.ask(clip, QUESTION, max_new_tokens=2)
        assert capsys.readouterr().err.splitlines() == [f"vidllm: answered: {answer.receipt}"]
        vidllm.set_verbosity("warning")
        llm.ask(clip, QUESTION, max_new_tokens=2)
        assert capsys.readouterr().err == ""
        with pytest.raises(InputError, match=r"no verbosity 'inf': did you mean info\?"):
            vidllm.set_verbosity("inf")
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1], before[2]
