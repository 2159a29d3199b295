"""What each family of hub models tells: its videos, their seconds, its tower's signals."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_tiny import FAMILIES, Image, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor

from vidllm.ask.compression import compress
from vidllm.models.families.family import adapter_for
from vidllm.models.families.packed import windows_of
from vidllm.models.hooks.vision_tower import watch

ONE = [[3, Video(4), 6]]


def test_seconds_are_those_of_the_inputs() -> None:
    spans = {}
    for family in FAMILIES:
        model = hf_model(family)
        adapter = adapter_for(model, tokenizer())
        inputs = hf_inputs(family, [[3, Video(4), 6]])
        clip = adapter.clips(inputs["input_ids"], inputs, None)[0]
        assert clip.tokens.grid == (4, 2, 2)
        assert bool((inputs["input_ids"][0, clip.where] >= 101).all())
        middles = clip.tokens.span.mean(1)
        spans[family] = [round(float(middles[clip.tokens.frame == f][0]), 2) for f in (1, 2)]
    assert spans["qwen2_5_vl"] == [1.0, 2.0]  # second_per_grid_ts
    assert spans["qwen3_vl"] == [2.5, 4.5]  # <2.5 seconds>
    assert spans["smolvlm"] == [2.0, 4.0]  # Frame from 00:02:
    assert spans["video_llama_3"] == [2.0, 4.0]  # Time 2.0s:
    assert spans["internvl"] == spans["llava_onevision"] == [1.0, 2.0]  # not told: frames


@pytest.mark.parametrize("family", FAMILIES)
def test_the_towers_attention_is_that_of_eager(family: str) -> None:
    """The signals against the maps that the tower itself gives."""
    model = hf_model(family)
    adapter = adapter_for(model, tokenizer())
    inputs = hf_inputs(family, ONE)
    caught: list[Tensor] = []
    was = model.model.config._attn_implementation
    model.set_attn_implementation("eager")
    with watch(adapter.tower, adapter.attention) as sights:
        handle = adapter.attention.register_forward_hook(lambda _m, _a, out: caught.append(out))
        model(**inputs)
        handle.remove()
        signals = adapter.signals(sights[-1])
    model.set_attn_implementation(was)
    clip = adapter.clips(inputs["input_ids"], inputs, None)[0]
    attention = signals["cls-attention"][clip.slots]
    assert attention.shape == (len(clip.where),) and bool((attention > 0).all())
    assert signals["vision-keys"].shape[0] == len(signals["cls-attention"])
    if isinstance(caught[0], tuple) and isinstance(caught[0][1], Tensor):
        maps = caught[0][1]  # (F, H, N, N)
        cls = maps.shape[-1] % 2
        want = maps[:, :, 0, 1:].mean(1) if cls else maps.mean((1, 2))
        side = int(want.shape[1] ** 0.5)
        want = want.unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten()
        torch.testing.assert_close(signals["cls-attention"], want, atol=1e-6, rtol=1e-5)


def test_windows_of_qwen2_5_come_back_in_order() -> None:
    """A tower whose patches all differ: keys of a token are those of its own patches."""
    model = hf_model("qwen2_5_vl")
    adapter = adapter_for(model)
    inputs = hf_inputs("qwen2_5_vl", [[3, Video(2, 4), 6]])
    with watch(adapter.tower, adapter.attention) as sights:
        model(**inputs)
    order, _ = windows_of(adapter.tower, sights[-1].inputs["grid_thw"])
    assert not torch.equal(order, torch.arange(len(order)))
    hidden = sights[-1].hidden.unflatten(0, (-1, 4)).mean(1)
    keys = adapter.signals(sights[-1])["vision-keys"]
    half = adapter.attention.qkv(hidden)[:, 32:64].unflatten(1, (2, 16)).mean(1)
    assert torch.allclose(keys[order], half, atol=1e-5)


def test_numbered_images_are_told_from_frames() -> None:
    for family in ("internvl", "smolvlm"):
        adapter = adapter_for(hf_model(family), tokenizer())
        prompt = [2, Image(), 1, Image(), "T:", Video(3), 2, Image(), 30, Video(2), Video(2), 3]
        inputs = hf_inputs(family, [prompt])
        clips = adapter.clips(inputs["input_ids"], inputs, None)
        assert [clip.tokens.grid[0] for clip in clips] == [3, 2, 2]
        assert [int(clip.slots[0]) // 4 for clip in clips] == [2, 6, 8]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "spec", ["aim", "visionzip", "framefusion", "mustdrop-filter,mustdrop-cache"]
)
def test_half_precision(family: str, spec: str) -> None:
    model = copy.deepcopy(hf_model(family)).to(torch.bfloat16)
    inputs = hf_inputs(family, [[3, Video(4), 6], [5, Image(), 2, Video(4), 4]])
    with compress(model, spec, keep=0.5, processor=tokenizer()) as c:
        out = model.generate(
            **inputs, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
        )
    assert all(bool(torch.isfinite(step).all()) for step in out.logits)
    assert c.receipt.tokens_kept == c.receipt.tokens_full // 2
