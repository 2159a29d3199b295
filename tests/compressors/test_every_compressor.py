"""Every registered compressor in a whole model: a real file, exact counts, several questions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from specs import SPECS
from test_compressors import QUERY, clip
from tiny import hub_model, tiny_model, write_video

from vidllm import InputError, VideoLLM
from vidllm.compressors import find, get, names
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode

TIMES = [0.0, 0.1, 0.5, 0.6, 1.2, 2.0]
QUESTIONS = ["when does the red star spin?", "what happens first?"]
#: Tower with attention, decoder with query and key norms; 4 tokens a frame.
MODEL = hub_model("siglip", "qwen3", downsample=2)
TOKENIZER = build_tokenizer(get_timecode("relative"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", TIMES)


@pytest.mark.parametrize("spec", SPECS)
def test_a_compressor_answers_in_a_whole_model(spec: str, video: Path) -> None:
    llm = VideoLLM(MODEL, TOKENIZER, compressor=spec, keep=0.25)
    both = llm.ask(video, QUESTIONS, max_new_tokens=4)
    for question, answer in zip(QUESTIONS, both, strict=True):
        receipt = answer.receipt
        assert (receipt.tokens_full, receipt.tokens_kept) == (24, 6)
        assert 0 < receipt.kv_kept_mb < receipt.kv_full_mb
        assert llm.ask(video, question, max_new_tokens=4).raw == answer.raw
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in MODEL.modules())
    assert hooks == 0


@pytest.mark.parametrize("spec", [s for s in SPECS if "inner" not in s])
def test_keeping_everything_is_the_plain_model(spec: str, video: Path) -> None:
    plain = VideoLLM(MODEL, TOKENIZER, keep=1.0).ask(video, QUESTIONS[0], max_new_tokens=6)
    llm = VideoLLM(MODEL, TOKENIZER, compressor=spec, keep=1.0)
    assert llm.ask(video, QUESTIONS[0], max_new_tokens=6).raw == plain.raw


@pytest.mark.parametrize("name", [n for n in names() if "cls-attention" in find(n).needs])
def test_a_tower_without_attention_is_refused_by_name(name: str) -> None:
    model, tokenizer = tiny_model()
    with pytest.raises(InputError, match=f"{name} needs cls-attention"):
        VideoLLM(model, tokenizer, compressor=name, keep=0.5)


def test_a_cache_method_alone_says_what_it_follows() -> None:
    with pytest.raises(InputError, match="mustdrop-filter,mustdrop-cache"):
        VideoLLM(MODEL, TOKENIZER, compressor="mustdrop-cache", keep=0.5)


@pytest.mark.parametrize("name", [n for n in names() if n != "none"])
def test_clips_of_unequal_length_in_a_row_are_what_they_are_alone(name: str) -> None:
    clips = [clip((5, 2, 3), seed=1), clip((3, 4, 4), seed=2)]
    method = get(name, keep=0.4)
    for tokens, after in zip(clips, [method(t, query=QUERY) for t in clips], strict=True):
        alone = get(name, keep=0.4)(tokens, query=QUERY)
        assert torch.equal(after.features, alone.features)
        assert torch.equal(after.source, alone.source)
