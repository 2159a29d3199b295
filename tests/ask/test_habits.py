"""The API of habit: one name for one thing, and the near name where a keyword is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, write_video

import vidllm
from vidllm import InputError, VideoClip, VideoLLM

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
