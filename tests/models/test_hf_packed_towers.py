"""Merging inside towers that pack their frames in one row: exact, on fewer tokens, nothing left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hf_packed_towers import by_hand, entering, places_of, projected
from hf_tiny import Image, Video, hf_inputs, hf_model, hooks_of, tokenizer

from vidllm import InputError
from vidllm.ask.compression import compress
from vidllm.compressors import build
from vidllm.models.families.family import adapter_for
from vidllm.tokens.budget import budget_of

#: A tower of every form: windows, DeepStack, a convolution behind it, fewer keys than queries,
#: queries and keys apart.
PACKED = ["qwen2_5_vl", "qwen3_vl", "glm4v", "video_llama_3"]
OTHERS = ["qwen2_vl", "qwen3_5", "exaone4_5", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"]
OTHERS += ["ernie4_5_vl_moe", "cosmos3_edge"]
EACH = [
    *((f, spec, "sdpa") for f in PACKED for spec in ("tome", "mustdrop", "tempme", "pyra")),
    *((kind, "tome", "eager") for kind in PACKED),
    ("qwen2_5_vl+windows", "tempme", "sdpa"),  # whose frames are joined where windows attend
    *((kind, "tome", "sdpa") for kind in OTHERS),
]
TWO = [[3, Video(4, 3), 6], [5, 2, Video(5, 4), 4]]
SMALL = {"max_new_tokens": 4, "do_sample": False}


def opened(model: Any, spec: Any, **options: Any) -> Any:
    return compress(model, spec, processor=tokenizer(), **options)


def read(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the text model is given for these inputs."""
    seen: dict[str, Any] = {}

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    decoder: Any = adapter_for(model, tokenizer()).decoder
    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen


def encode(adapter: Any, inputs: dict[str, Any]) -> Any:
    named = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    given = {n: inputs[n] for n in named if n in inputs}
    return adapter.core.get_video_features(**given, return_dict=True)


@pytest.mark.parametrize(("kind", "spec", "way"), EACH)
def test_a_packed_tower_that_merges_is_the_loop_over_its_segments(
    kind: str, spec: str, way: str
) -> None:
    kind, _, form = kind.partition("+")
    model, inputs = hf_model(kind), hf_inputs(kind, TWO)
    if form:
        model = copy.deepcopy(model)
        model.model.visual.fullatt_block_indexes = [0]
    model.set_attn_implementation(way)
    adapter, method = adapter_for(model, tokenizer()), build(spec, keep=0.4)
    try:
        with torch.no_grad(), entering(adapter) as plain:
            encode(adapter, inputs)
        with torch.no_grad():
            full = read(model, inputs)
        with torch.no_grad(), opened(model, method) as c, entering(adapter) as seen:
            left = read(model, inputs)
    finally:
        model.set_attn_implementation("sdpa")
    assert sum(seen["lengths"]) < sum(plain["lengths"])
    clips = [clip.tokens for clip in adapter.clips(inputs["input_ids"], inputs, None)]
    width, first = left["inputs_embeds"].shape[1], 0
    places = places_of(adapter, [clip.grid for clip in clips])
    for row, (clip, place) in enumerate(zip(clips, places, strict=True)):
        with torch.no_grad():
            want, planes = by_hand(adapter, plain, place, clip, method)
            rows = projected(adapter, want.features)
        assert len(want) == budget_of(0.4, len(clip))
        where = torch.nonzero(inputs["input_ids"][row] == adapter.video_token).flatten()
        where = where[torch.searchsorted(clip.position, want.position)]
        kept = c.kept[row]
        video = torch.isin(kept, where)
        assert torch.equal(kept[video], where)
        here = torch.arange(width - len(kept), width)[video]
        torch.testing.assert_close(left["inputs_embeds"][row, here], rows, atol=2e-5, rtol=1e-5)
        if adapter.mrope:  # of the full prompt, at the representatives' places
            told = full["position_ids"][:, row, where]
            assert torch.equal(left["position_ids"][:, row, here], told)
        for deep, plane in zip(left.get("deepstack_visual_embeds") or [], planes, strict=True):
            own = deep[first : first + len(want)]
            torch.testing.assert_close(own, plane, atol=2e-5, rtol=1e-5)
        first += len(want)
    assert c.receipt.tokens_kept == first


#: Of every way to merge and to tell what is left: windows, DeepStack, a mask of its own, pooling.
ALL = ["qwen2_5_vl", "qwen3_vl", "video_llama_3", "llava_onevision"]
MIXED = [[3, Video(4), 6], [5, Image(), 2, Video(4), 4, Image(), 2]]


@pytest.mark.parametrize("kind", ALL)
def test_videos_and_images_of_a_batch_do_not_meet(kind: str) -> None:
    model, both = hf_model(kind), hf_inputs(kind, MIXED)
    adapter = adapter_for(model, tokenizer())
    real = both["attention_mask"][0].bool()
    alone = {n: x for n, x in both.items() if not n.startswith(("pixel_values", "image"))}
    pixels = both["pixel_values_videos"]
    alone["pixel_values_videos"] = pixels[: len(pixels) // 2]
    alone |= {n: x[: len(x) // 2] for n, x in alone.items() if n.startswith(("video", "second"))}
    alone |= {
        n: x[:1, real]
        for n, x in alone.items()
        if n in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    with torch.no_grad(), opened(model, "tome", keep=0.5) as c:
        out = model.generate(**both, **SMALL)
        kept = c.kept
        got = model.generate(**alone, **SMALL)
        pad = len(real) - int(real.sum())
        assert torch.equal(got[0], out[0, pad:]) and torch.equal(c.kept[0] + pad, kept[0])
        if kind != "video_llama_3":  # whose beams fail in transformers, plain as well
            beams = model.generate(**both, max_new_tokens=4, num_beams=2, do_sample=False)
            assert beams.shape == out.shape and len(c.kept) == 4
        merged = read(model, both)["inputs_embeds"][1]
    images = torch.nonzero(both["input_ids"][1] == model.config.image_token_id).flatten()
    assert bool(torch.isin(images, kept[1]).all())
    with torch.no_grad():
        plain = read(model, both)["inputs_embeds"][1, kept[1]]
    still = ~torch.isin(kept[1], torch.nonzero(adapter.vision(both["input_ids"][1])).flatten())
    still |= torch.isin(kept[1], images)
    torch.testing.assert_close(merged[-len(kept[1]) :][still], plain[still])


@pytest.mark.parametrize("kind", ALL)
def test_a_chain_goes_on_behind_and_everything_kept_is_the_plain_model(kind: str) -> None:
    model, inputs = hf_model(kind), hf_inputs(kind, TWO if kind != ALL[3] else [[2, Video()]])
    with torch.no_grad():
        plain = model(**inputs).logits
        for spec in ("tome:keep=0.75,visionzip", "mustdrop:keep=0.75,fastv", "tempme,uniform"):
            with opened(model, spec, keep=0.25) as c:
                model.generate(**inputs, **SMALL)
                full = c.receipt.tokens_full
                assert abs(c.receipt.tokens_kept - full / 4) <= len(c.kept)
        for spec in ("tome", "tempme,visionzip"):
            with opened(model, spec, keep=1.0):
                assert torch.equal(model(**inputs).logits, plain)
        with opened(model, "tempme", budget=2) as c:  # fewer than frames: they merge behind
            model(**inputs)
            assert c.receipt.tokens_kept == 2 * len(c.kept)
        with opened(model, "mustdrop:threshold=-0.1") as c:
            model(**inputs)
            assert c.receipt.tokens_kept < c.receipt.tokens_full


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_left_on_the_model_and_other_calls_are_refused(kind: str) -> None:
    model, inputs = hf_model(kind), hf_inputs(kind, [[3, Video(4), 6]])
    adapter = adapter_for(model, tokenizer())
    nan = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"] * torch.nan}
    ids = {n: x for n, x in inputs.items() if not n.startswith("pixel")}
    with torch.no_grad():
        plain = model(**inputs).logits  # transformers hangs on hooks of its own when it runs first
        hooks = hooks_of(model)
        own = [dict(vars(part)) for part in (adapter.tower, adapter.core)]
        for spec in ("tome", "tempme"):
            with pytest.raises(InputError, match="NaN or infinite"), opened(model, spec, keep=0.5):
                model(**nan)
        kind = adapter.tower.config._attn_implementation
        assert kind == "sdpa" and hooks_of(model) == hooks and adapter.core.config is model.config
        for part, before in zip((adapter.tower, adapter.core), own, strict=True):
            assert vars(part).keys() == before.keys()
        assert torch.equal(model(**inputs).logits, plain)
        elsewhere = {"mm_encoder_outputs": {"video": encode(adapter, inputs)}}
        with opened(model, "tome", keep=0.4):
            want = model.generate(**inputs, **SMALL)
            adapter.given(inputs)
            made = {"mm_encoder_outputs": {"video": encode(adapter, inputs)}}
            assert torch.equal(model.generate(**ids, **made, **SMALL), want)
            with pytest.raises(InputError, match="did not run on this video"):
                model(**ids, **elsewhere)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "glm4v", "llava_onevision"])
def test_gradients_reach_a_tower_that_merges(kind: str) -> None:
    model = copy.deepcopy(hf_model(kind)).train()
    inputs = hf_inputs(kind, [[3, Video(4), 6]])
    tower = adapter_for(model, tokenizer()).tower
    with opened(model, "tome", keep=0.5):
        model(**inputs).logits.square().mean().backward()
    found = [p.grad for p in tower.parameters() if p.grad is not None]
    assert sum(bool((g != 0).any()) for g in found) > len(list(tower.parameters())) / 2
    half = copy.deepcopy(hf_model(kind)).bfloat16()
    pixels = {n: x.bfloat16() if "pixel" in n else x for n, x in inputs.items()}
    with torch.no_grad(), opened(half, "tome", keep=0.5):
        assert bool(torch.isfinite(half(**pixels).logits).all())
