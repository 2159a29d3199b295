"""Merging inside towers that pack their frames in one row: exact, on fewer tokens, nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_packed_towers import by_hand, entering, places_of, projected
from hf_tiny import Video, hf_inputs, hf_model, tokenizer

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
    *((family, "tome", "eager") for family in PACKED),
    *((family, "tome", "sdpa") for family in OTHERS),
]
TWO = [[3, Video(4, 3), 6], [5, 2, Video(5, 4), 4]]
SMALL = {"max_new_tokens": 4, "do_sample": False}


def opened(model: Any, spec: Any, **options: Any) -> Any:
    return compress(model, spec, processor=tokenizer(), **options)


@contextmanager
def reading(model: Any) -> Iterator[dict[str, Any]]:
    """What the text model is given."""
    seen: dict[str, Any] = {}

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = adapter_for(model, tokenizer()).decoder.register_forward_pre_hook(
        note, with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def encode(adapter: Any, inputs: dict[str, Any]) -> Any:
    named = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    given = {n: inputs[n] for n in named if n in inputs}
    return adapter.core.get_video_features(**given, return_dict=True)


@pytest.mark.parametrize(("family", "spec", "way"), EACH)
def test_a_packed_tower_that_merges_is_the_loop_over_its_segments(
    family: str, spec: str, way: str
) -> None:
    model, inputs = hf_model(family), hf_inputs(family, TWO)
    model.set_attn_implementation(way)
    adapter, method = adapter_for(model, tokenizer()), build(spec, keep=0.4)
    try:
        with torch.no_grad(), entering(adapter) as plain:
            encode(adapter, inputs)
        with torch.no_grad(), reading(model) as full:
            model(**inputs)
        with opened(model, method) as c, entering(adapter) as seen, reading(model) as left:
            with torch.no_grad():
                model(**inputs)
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
