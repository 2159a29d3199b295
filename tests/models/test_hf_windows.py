"""Decoders whose layers see differently (Gemma 4, EXAONE 4.5, Molmo 2), and families' own facts.

The matrix holds compressed answers against the full model, whose own masks have its windows by true
positions and its blocks of pictures. Here stand further forms of a family, what is refused, and
what each family tells of its videos.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_reference import Run, reference, shortened
from hf_tiny import OTHERS, Image, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor

from vidllm import InputError
from vidllm.ask.compression import compress
from vidllm.compressors import build
from vidllm.models.families.family import adapter_for
from vidllm.models.hooks.layers import step_mask, views_of
from vidllm.models.hooks.prefill import Prefix
from vidllm.models.hooks.vision_tower import watch

TWO = [[3, Video(4), 6], [5, Image(), 2, Video(4, 3), 4, Video(4), 3]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", ["aim", "fastv:layer=3", "framefusion"])
def test_layers_that_share_keys_lose_what_left_behind_their_store(
    attention: str, spec: str
) -> None:
    """Layers 4 and 5 read the keys of layer 2, which `fastv` cuts behind; the last token alone
    goes through them."""
    model = hf_model("gemma4+shared")
    views = views_of(model.config.text_config, 6)
    assert (views.stores, views.own) == ([0, 1, 2, 3, 2, 2], 4)
    model.set_attn_implementation(attention)
    inputs = hf_inputs("gemma4+shared", TWO)
    run = Run(model, inputs, spec, keep=0.4)
    want = reference(model, inputs, run, merged=build(spec).name == "framefusion")
    plain = model(**inputs).logits
    with compress(model, spec, keep=1.0):
        assert torch.equal(model(**inputs).logits, plain)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(run.logits, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(want.argmax(-1), run.out[:, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("spec", ["aim", "framefusion"])
def test_minicpm_on_a_decoder_with_states(spec: str) -> None:
    """Against the model on the shortened sequence, at the canvas positions of the full one."""
    model = hf_model("minicpmv4_7+hybrid")
    inputs = hf_inputs("minicpmv4_7+hybrid", TWO)
    run = Run(model, inputs, spec, keep=0.4)
    want = shortened(model, inputs, run, merged=spec == "framefusion")
    torch.testing.assert_close(run.logits, want, atol=1e-5, rtol=1e-5)


def test_windows_count_true_positions_at_decode_steps() -> None:
    """Of 40 places with 30 to 36 gone, a window of 12 reaches from place 41 back to 30."""
    places = torch.tensor([[*range(30), 37, 38, 39, 40, 41]])
    alive = torch.ones_like(places, dtype=torch.bool)
    seen = step_mask(places, alive, 2, 12, "sdpa", torch.zeros(1, 2, 8))
    held = places[0, 35 - 2 - 11 :]  # of the old the cache keeps window less one
    assert [held[row].tolist() for row in seen[0, 0]] == [
        [29, 37, 38, 39, 40],
        [37, 38, 39, 40, 41],
    ]


def _opened(family: str, spec: str) -> None:
    with compress(hf_model(family), spec, keep=0.5, processor=tokenizer()):
        pass


@pytest.mark.parametrize(
    ("family", "spec", "words"),
    [
        ("gemma4", "mustdrop-filter,mustdrop-cache", "mustdrop-cache on Gemma 4: .* windows"),
        ("exaone4_5", "dycoke-cache", "dycoke-cache on EXAONE 4.5: .* windows"),
        ("gemma4+shared", "aim-prune", "before layer 4, but from layer 4 on the decoder reads"),
        ("perception_lm", "visionzip", "which PerceptionLM does not give"),
    ],
)
def test_what_a_family_cannot_do_is_refused_at_once(family: str, spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _opened(family, spec)
    assert "\n" not in str(caught.value)


def test_windows_need_masks_and_whole_caches() -> None:
    model = hf_model("gemma4")
    text = model.config.text_config
    text._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="counts the windows of this decoder by what is left"):
        _opened("gemma4", "aim")
    text._attn_implementation = "sdpa"
    with (
        compress(model, "aim", keep=0.5) as c,
        pytest.raises(InputError, match="reused where every layer holds all"),
        c.reuse(Prefix()),
    ):
        pass


def test_frames_in_slices_are_refused() -> None:
    model, inputs = hf_model("minicpmv4_6"), hf_inputs("minicpmv4_6", [[3, Video(2), 6]])
    inputs["target_sizes_videos"][1] = torch.tensor([4, 16])  # as many tokens, another shape
    with (
        compress(model, "aim", keep=0.5),
        pytest.raises(InputError, match=r"cut into slices are not served: .* max_slice_nums=1"),
    ):
        model(**inputs)


def test_seconds_are_those_of_the_prompt() -> None:
    stamped = ("glm4v", "glm4v_moe", "glm46v", "gemma4", "molmo2")
    for family in OTHERS:
        if family.startswith("cosmos3"):
            continue  # Qwen3-VL's
        adapter = adapter_for(hf_model(family), tokenizer())
        inputs = hf_inputs(family, [[3, Video(4), 6]])
        [clip] = adapter.clips(inputs["input_ids"], inputs, None)
        middles = clip.tokens.span.mean(1)
        found = [round(float(middles[clip.tokens.frame == f][0]), 2) for f in (1, 2)]
        assert found == ([2.0, 4.0] if family.partition("+")[0] in stamped else [1.0, 2.0]), family


@pytest.mark.parametrize("family", ["gemma4", "molmo2", "llava_next_video"])
def test_the_towers_attention_is_that_of_eager(family: str) -> None:
    """The signals against the maps that the tower itself gives."""
    model = hf_model(family)
    adapter = adapter_for(model, tokenizer())
    inputs = hf_inputs(family, [[3, Video(4), 6]])
    model.set_attn_implementation("eager")
    caught: list[Any] = []
    with watch(adapter.tower, adapter.attention) as sights:
        handle = adapter.attention.register_forward_hook(lambda _m, _a, out: caught.append(out))
        model(**inputs)
        handle.remove()
        [clip] = adapter.clips(inputs["input_ids"], inputs, None)
        signals = adapter.signals(sights[-1])
    model.set_attn_implementation("sdpa")
    maps: Tensor = caught[-1][1]  # (F, H, N, N)
    want = maps[:, :, 0, 1:].mean(1) if maps.shape[-1] % 2 else maps.mean((1, 2))
    want = want.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten()
    torch.testing.assert_close(signals["cls-attention"][clip.slots], want, atol=1e-6, rtol=1e-5)
    assert len(signals["vision-keys"]) == len(signals["cls-attention"])
