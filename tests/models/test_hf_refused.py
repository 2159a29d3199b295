"""What a hub model cannot be asked for under compression: refused before its tower runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_tiny import FAMILIES, IMAGE, VIDEO, Image, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from vidllm import InputError
from vidllm.ask.compression import Compression, compress
from vidllm.models.families.family import adapter_for

ONE = [[3, Video(4), 6]]
TWO = [[3, Video(4), 6], [5, Image(), 2, Video(4), 4]]


@contextmanager
def idle(model: Any) -> Iterator[list[int]]:
    """Calls of the vision tower and of the decoder in this block."""
    adapter, calls = adapter_for(model, tokenizer()), list[int]()
    handles = [
        part.register_forward_pre_hook(lambda *_: calls.append(1))
        for part in (adapter.tower, adapter.decoder)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def refusing(model: Any, words: str) -> Iterator[Compression]:
    with compress(model, "random", keep=0.5, processor=tokenizer()) as c, idle(model) as calls:
        with pytest.raises(InputError, match=words) as caught:
            yield c
        assert calls == []
        assert "\n" not in str(caught.value)


def inserted(inputs: dict[str, Any], change: int) -> dict[str, Any]:
    """The prompt with so many more picture tokens, or fewer, where its first video is."""
    ids, made = inputs["input_ids"], dict(inputs)
    at = int(torch.nonzero((ids[0] == VIDEO) | (ids[0] == IMAGE))[0])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            value: Tensor = inputs[name]
            head, tail = value[:, : at + 1], value[:, at + 1 :]
            more = value[:, at : at + 1].expand(-1, max(0, change))
            made[name] = torch.cat([head, more, tail[:, max(0, -change) :]], dim=1)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_ways_to_generate_are_refused_at_once(family: str) -> None:
    """More of them in `test_hf_generate.py`."""
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    own = GenerationConfig(assistant_early_exit=2, max_new_tokens=2)
    asked: list[tuple[dict[str, Any], str]] = [
        ({"cache_implementation": "sliding_window"}, "leave out cache_implementation='sliding"),
        ({"generation_config": own}, "assistant_early_exit guesses from inside"),
        ({"prefill_chunk_size": 8}, "leave it out"),
    ]
    for more, words in asked:
        with refusing(model, f"^random on .*{words}"):
            model.generate(**{"max_new_tokens": 2, **inputs, **more})
    with refusing(model, "input_ids, not inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 4, 32), max_new_tokens=2)
    with compress(model, "random", keep=0.5, processor=tokenizer()):
        model.generate(**inputs, past_key_values=DynamicCache(), max_new_tokens=2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [-1, 1, 4, -4])
def test_too_many_or_too_few_video_tokens_are_refused_at_once(family: str, change: int) -> None:
    model = hf_model(family)
    inputs = inserted(hf_inputs(family, ONE), change)
    with refusing(model, "video tokens do not fit its videos"):
        model.generate(**inputs, max_new_tokens=2)
    with refusing(model, "video tokens do not fit its videos"):
        model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_the_tokens_and_no_pixels_are_refused(family: str) -> None:
    model = hf_model(family)
    inputs = hf_inputs(family, ONE)
    twice = {**inputs, "input_ids": inputs["input_ids"].repeat(1, 2)}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            twice[name] = inputs[name].repeat(1, 2)
    with refusing(model, "do not fit its videos"):
        model(**twice)
    bare = {n: v for n, v in inputs.items() if n in ("input_ids", "attention_mask")}
    with refusing(model, "not encoded here|do not fit its videos"):
        model(**bare)
    two = hf_inputs(family, TWO)
    lost = inserted(two, -1)
    with refusing(model, "do not fit its videos"):
        model.generate(**lost, max_new_tokens=2)


def test_text_inside_a_frame_is_refused() -> None:
    for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "video_llama_3"):
        model, inputs = hf_model(family), hf_inputs(family, ONE)
        at = int(torch.nonzero(inputs["input_ids"][0] == VIDEO)[1])
        for name, value in inputs.items():
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                fill = torch.full_like(value[:, :1], {"input_ids": 50}.get(name, 1))
                fill = fill * 0 if name == "mm_token_type_ids" else fill
                inputs[name] = torch.cat([value[:, :at], fill, value[:, at:]], dim=1)
        with refusing(model, "do not fit its videos"):
            model(**inputs)


def test_generate_is_the_models_own_again() -> None:
    model, inputs = hf_model("llava_onevision"), hf_inputs("llava_onevision", ONE)
    plain = type(model).generate
    with compress(model, "aim", keep=0.5):
        assert model.generate.__wrapped__.__func__ is plain and model.generate.__doc__
        out = model.generate(inputs["input_ids"], **{**inputs, "input_ids": None}, max_length=40)
    assert model.generate.__func__ is plain and "generate" not in vars(model)
    with pytest.raises(InputError), compress(model, "aim", keep=0.5):
        model.generate(**inputs, prefill_chunk_size=8)
    assert "generate" not in vars(model)
    calls = []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(model, *args, **kwargs)

    model.generate = own
    try:
        with compress(model, "aim", keep=0.5):
            again = model.generate(**inputs, max_length=40)
            with pytest.raises(InputError, match="prefill_chunk_size"):
                model.generate(**inputs, prefill_chunk_size=8)
        assert model.generate is own and calls == [1] and torch.equal(out, again)
    finally:
        del model.generate


@pytest.mark.parametrize("family", FAMILIES)
def test_seconds_may_be_told(family: str) -> None:
    """What the caller knows goes to the compressors; the prompt stays as it is."""
    model, inputs = hf_model(family), hf_inputs(family, TWO)
    adapter = adapter_for(model, tokenizer())
    read = adapter.clips(inputs["input_ids"], inputs, None)
    adapter.tell_seconds(([10.0, 11.0, 12.5, 20.0], 21.0), ([0.5, 1.0, 1.5, 2.0], 3.0))
    told = adapter.clips(inputs["input_ids"], inputs, None)
    assert [float(clip.tokens.span[-1, 1]) for clip in told] == [21.0, 3.0]
    assert float(told[0].tokens.span[4, 0]) == 10.5
    for one, two in zip(read, told, strict=True):
        assert torch.equal(one.where, two.where) and torch.equal(one.slots, two.slots)
    adapter.tell_seconds()
    again = adapter.clips(inputs["input_ids"], inputs, None)
    assert torch.equal(again[0].tokens.span, read[0].tokens.span)
    with compress(model, "evs", keep=0.5, processor=tokenizer()) as c:
        c.tell_seconds(([0.0, 1.0], 2.0))
        with pytest.raises(InputError, match=r"video 1 of the prompt has 4 frames"):
            model(**inputs)
