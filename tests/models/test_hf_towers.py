"""Merging inside the towers of hub models: exact, on fewer tokens, or refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_flash import flash_by_hand
from hf_tiny import Image, Video, hf_inputs, hf_model, hooks_of, tokenizer
from hf_towers import by_hand, projected
from torch import Tensor

from vidllm import InputError
from vidllm.ask.compression import compress
from vidllm.compressors import build
from vidllm.models.families.family import adapter_for
from vidllm.tokens import VideoTokens

MERGING = ("internvl", "smolvlm")
WHOLE = {
    "llava_next_video": "reads layer -2 of its tower, not the last",
    "gemma4": "places the patches of padded frames in its tower",
    "minicpmv4_6": "folds its grid between the layers of its tower",
    "molmo2": "pools patches that its processor names",
    "perception_lm": "has a tower of timm",
}
ONE = [[3, Video(6), 6]]
MIXED = [[3, Video(4), 6], [5, Image(), 2, Video(5), 4, Image(), 2]]
SMALL = {"max_new_tokens": 6, "do_sample": False}


def opened(model: Any, spec: Any, **options: Any) -> Any:
    return compress(model, spec, processor=tokenizer(), **options)


@contextmanager
def seeing(model: Any) -> Iterator[dict[str, list[Tensor]]]:
    """What enters the tower's layers, the MLPs of these layers, and the text model."""
    adapter = adapter_for(model, tokenizer())
    layers = [m for m in adapter.tower.modules() if hasattr(m, "mlp")]
    seen: dict[str, list[Tensor]] = {"tower": [], "mlp": [], "text": []}

    def note(name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen[name].append(args[0] if args else kwargs["inputs_embeds"])

        return hook

    parts = [("tower", layers[0]), ("text", adapter.decoder), *(("mlp", x.mlp) for x in layers)]
    handles = [m.register_forward_pre_hook(note(n), with_kwargs=True) for n, m in parts]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", MERGING)
@pytest.mark.parametrize("spec", ["tome", "mustdrop", "tempme", "pyra"])
def test_a_tower_that_merges_is_the_loop_over_its_layers(family: str, spec: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    adapter = adapter_for(model, tokenizer())
    method = build(spec, keep=0.4)
    with torch.no_grad(), opened(model, method) as c, seeing(model) as seen:
        model(**inputs)
        sizes = [x.shape[0] * x.shape[1] for x in seen["mlp"]]
        want = by_hand(adapter, seen["tower"][0], method)
        rows = projected(adapter, want)
    kept = c.kept[0]
    video = inputs["input_ids"][0, kept] == model.config.image_token_id
    assert c.receipt.tokens_kept == int(video.sum()) == len(want)
    torch.testing.assert_close(seen["text"][0][0, video], rows, atol=1e-5, rtol=1e-5)
    places = torch.nonzero(inputs["input_ids"][0] == model.config.image_token_id).flatten()
    assert torch.equal(kept[video], places[want.position])
    # Of 16 cells a frame; MustDrop leaves one frame whole here, and the rows are equally long.
    assert sizes[-1] < 6 * (16 + adapter.special) + (spec == "mustdrop")


@pytest.mark.parametrize("spec", ["tome", "mustdrop", "tempme", "pyra"])
def test_a_grid_that_is_pooled_merges_by_patches_and_goes_on_behind(spec: str) -> None:
    family = "llava_onevision"
    model, inputs = hf_model(family), hf_inputs(family, [[3, Video(6), 6], [4, Video(6), 2]])
    adapter = adapter_for(model, tokenizer())
    with torch.no_grad(), opened(model, spec, keep=0.4) as c, seeing(model) as seen:
        model(**inputs)
    sizes = [x.shape[0] * x.shape[1] for x in seen["mlp"]]
    assert sizes[-1] < 6 * 16 and c.receipt.tokens_kept == 2 * 10
    for row, states in enumerate(seen["tower"][:2]):
        with torch.no_grad():  # 38 patches are to the 96 of the clip as 10 tokens to its 24
            inside = by_hand(adapter, states, build(spec, budget=40), fold=1)
            filled = inside.features[inside.source].unflatten(0, (6, -1))
            core, keys = adapter.core, inside.signals["vision-keys"][inside.source]
            pooled = core.apply_pooling(core.multi_modal_projector(filled)).flatten(0, 1)
            told = core.apply_pooling(keys.unflatten(0, (6, -1))).flatten(0, 1)
            clip = VideoTokens.from_grid(pooled.view(6, 2, 2, -1), range(6), 6.0)
            clip = clip.with_signals(vision_keys=told)
            want, _ = build(f"{spec}:tower=false", budget=10).run(clip)
        video = inputs["input_ids"][row] == model.config.video_token_id
        places = torch.nonzero(video).flatten()[want.position]
        here = torch.isin(c.kept[row], places)
        assert int(here.sum()) == 10
        pad = seen["text"][0].shape[1] - len(c.kept[row])
        got = seen["text"][0][row, pad:][here]
        torch.testing.assert_close(got, want.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MERGING)
def test_videos_and_images_of_a_batch_do_not_meet_in_the_tower(family: str) -> None:
    model, both = hf_model(family), hf_inputs(family, MIXED)
    with opened(model, "tome", keep=0.5) as c:
        out = model.generate(**both, **SMALL)
        kept, full = c.kept, c.receipt.tokens_full
        width = both["input_ids"].shape[1]
        real = both["attention_mask"][0].bool()
        alone = {n: both[n][:1, real] for n in ("input_ids", "attention_mask")}
        pixels = both["pixel_values"]
        alone["pixel_values"] = pixels[:4] if family == "internvl" else pixels[:1, :4]
        got = model.generate(**alone, **SMALL)
        pad = width - alone["input_ids"].shape[1]
        assert torch.equal(got[0], out[0, pad:]) and torch.equal(c.kept[0] + pad, kept[0])
        beams = model.generate(**both, max_new_tokens=6, num_beams=2, do_sample=False)
        assert beams.shape == out.shape and len(c.kept) == 4
    assert full == 9 * 4
    ids = both["input_ids"][1]
    images = torch.nonzero(ids == model.config.image_token_id).flatten()
    images = torch.cat([images[:4], images[-4:]])
    assert bool(torch.isin(images, kept[1]).all())
    with opened(model, "tome", keep=0.5), seeing(model) as seen:
        model(**both)
        merged = seen["text"][0][1]
    with opened(model, "uniform", keep=0.999), seeing(model) as seen:
        model(**both)
    plain = seen["text"][0][1]
    torch.testing.assert_close(merged[-6:], plain[-6:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", MERGING)
def test_a_chain_goes_on_behind_the_tower(family: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    for spec in ("tome:keep=0.75,visionzip", "tome:keep=0.75,fastv", "tempme,uniform"):
        with opened(model, spec, keep=0.25) as c, seeing(model) as seen:
            model.generate(**inputs, **SMALL)
            assert c.receipt.tokens_kept == 6 and c.receipt.tokens_full == 24
        sizes = [x.shape[0] * x.shape[1] for x in seen["mlp"]]
        assert sizes[-1] < 6 * (16 + adapter_for(model, tokenizer()).special)
    for spec, words in (("tome:faithful=true", "leave out faithful"),):
        with opened(model, spec, keep=0.4), pytest.raises(InputError, match=words):
            model(**inputs)


@pytest.mark.parametrize("family", MERGING)
def test_the_tower_is_its_own_again(family: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    adapter = adapter_for(model, tokenizer())
    plain, hooks = model(**inputs).logits, hooks_of(model)
    own = dict(vars(adapter.tower))
    with pytest.raises(KeyError), opened(model, "tome", keep=0.5):
        assert "forward" in vars(adapter.tower)
        model(**inputs)
        raise KeyError
    nan = {**inputs, "pixel_values": inputs["pixel_values"] * torch.nan}
    with opened(model, "tome", keep=0.5), pytest.raises(InputError, match="NaN or infinite"):
        model(**nan)
    assert vars(adapter.tower).keys() == own.keys() and hooks_of(model) == hooks
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("family", MERGING)
def test_a_video_that_was_encoded_before(family: str) -> None:
    """As `VideoLLM` does it: one clip through the tower, then prompts about it."""
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    ids = {n: inputs[n] for n in ("input_ids", "attention_mask")}

    def encoded() -> dict[str, Any]:
        made = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
        return {"mm_encoder_outputs": {"image": made}}

    with opened(model, "tome", keep=0.4) as c:
        want = model.generate(**inputs, **SMALL)
        made = encoded()
        sights = list(c._session.sights)
        assert sights[-1].method == repr(c.method) and sights[-1].inside
        assert torch.equal(model.generate(**ids, **made, **SMALL), want)
    with opened(model, "tome", keep=0.4) as c:  # what was seen, handed to a later block
        c._session.sights.extend(sights[-1:])
        assert torch.equal(model.generate(**ids, **made, **SMALL), want)
    for spec, keep in (("aim", 0.4), ("mustdrop", 0.4), ("tome", 0.5), ("tome", 1.0)):
        with opened(model, spec, keep=keep) as c:
            c._session.sights.extend(sights[-1:])
            with pytest.raises(InputError, match="another method merged"):
                model.generate(**ids, **made, **SMALL)
    plain = encoded()
    with opened(model, "tome", keep=1.0):  # nothing to merge
        assert torch.equal(
            model.generate(**ids, **plain, **SMALL), model.generate(**inputs, **SMALL)
        )
    with opened(model, "tome", keep=0.4), pytest.raises(InputError, match="did not run on this"):
        model.generate(**ids, **plain, **SMALL)


@pytest.mark.parametrize("family", WHOLE)
def test_towers_whose_grid_must_stay_whole_refuse_and_say_what_to_do(family: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, ONE)
    for spec in ("tome", "mustdrop", "tempme,fastv"):
        with pytest.raises(InputError, match=WHOLE[family]) as caught:
            opened(model, spec, keep=0.4).__enter__()
        name = spec.partition(",")[0]
        assert str(caught.value).startswith(f"{name} merges inside the vision tower, but ")
        assert f"write {name}:tower=false" in str(caught.value) and "\n" not in str(caught.value)
    with opened(model, "tome:tower=false", keep=0.5) as c:
        model(**inputs)
    assert c.receipt.tokens_kept == round(c.receipt.tokens_full / 2 + 0.01)


def test_a_tower_that_is_read_in_another_way_refuses() -> None:
    for name, value, words in (
        ("vision_feature_layer", -2, "reads layer -2 of its tower"),
        ("vision_feature_select_strategy", "default", "leaves out the CLS token of its tower"),
    ):
        other = copy.deepcopy(hf_model("llava_onevision"))
        setattr(other.config, name, value)
        with pytest.raises(InputError, match=f"LLaVA-OneVision {words}"):
            opened(other, "tome", keep=0.4).__enter__()


def test_attention_layers_and_padding_that_cannot_merge_are_refused() -> None:
    model, inputs = hf_model("smolvlm"), hf_inputs("smolvlm", ONE)
    with flash_by_hand() as name:
        model.set_attn_implementation(name)
        with pytest.raises(InputError, match=f"whose attention '{name}' cannot weigh"):
            opened(model, "tome", keep=0.4).__enter__()
        model.set_attn_implementation({"vision_config": "sdpa", "text_config": name})
        with opened(model, "tome", keep=0.4):
            got = model.generate(**inputs, **SMALL)
        model.set_attn_implementation("sdpa")
    with opened(model, "tome", keep=0.4):
        assert torch.equal(model.generate(**inputs, **SMALL), got)
        mask = torch.ones(1, 6, 32, 32, dtype=torch.bool)
        mask[:, :, 24:] = False
        with pytest.raises(InputError, match="frames with padding cannot merge inside the tower"):
            model(**inputs, pixel_attention_mask=mask)
    other = copy.deepcopy(hf_model("internvl"))
    other.config.vision_feature_layer = -2
    with pytest.raises(InputError, match="InternVL reads layer -2 of its tower, not the last"):
        opened(other, "tome", keep=0.4).__enter__()
