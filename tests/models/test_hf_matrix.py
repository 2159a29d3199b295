"""Every compressor on every family of hub models, in both attentions, alone and in a batch.

A compressed answer must be that of the full model with the dropped tokens masked, at the same
positions: logits to 1e-5, 16 greedy tokens the same. Where layers carry a state it must be that of
the model on the shortened sequence, layer by layer, at the same positions.

Families that differ from others in facts only are swept with one method of every kind (`KINDS`).
`make models` tries all of it. The suite takes every method with both attentions and both batches in
pairs (one prompt with eager, two with sdpa), and the other two pairs with one method of every kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hf_reference import NEW, Run, reference, shortened
from hf_results import WRITTEN
from hf_tiny import (
    FAMILIES,
    IMAGE,
    MORE,
    OTHERS,
    Image,
    Video,
    hf_inputs,
    hf_model,
    hooks_of,
    tokenizer,
)
from hf_tiny_others import ALONE

from vidllm.ask.compression import compress
from vidllm.compressors import build, names

SPECS = [
    *(n for n in names() if n not in ("none", "mustdrop-cache")),
    "mustdrop-filter,mustdrop-cache",
    "random,aim-prune",
    "dycoke,dycoke-cache:threshold=0.99",
    "per-scene:scenes=2(evs)",
]
#: One prompt, and two of unequal text and videos, one with a picture beside its video.
BATCHES = {
    "one": [[3, Video(4), 6]],
    "two": [[3, Video(4), 6], [5, Image(), 2, Video(4, 3), 4, Video(4), 3]],
}


#: One method a kind: merging inside the tower, signals of it, merging behind it, between layers by
#: attention, by states (with merging), by a layer's own attention, evicting from the cache,
#: choosing at decode steps.
KINDS = [
    "tome",
    "visionzip",
    "aim",
    "random,aim-prune",
    "framefusion",
    "pyramiddrop",
    "mustdrop-filter,mustdrop-cache",
    "dycoke,dycoke-cache:threshold=0.99",
]
#: Still fewer for those whose file another one shares, and for a tower that tells nothing.
FEW = ["visionzip", "random,aim-prune"]
SHARING = {
    **dict.fromkeys(("glm4v_moe", "glm46v", "minicpmv4_7", "video_llava", "cosmos3_omni"), FEW),
    "cosmos3_edge": ["tome", *FEW],
    "llava_next_video": FEW,
    "exaone4_5": ["tome", *FEW, "aim", "pyramiddrop"],
    "ernie4_5_vl_moe": ["tome", *FEW, "framefusion"],
    "perception_lm": ["tome:tower=false", *FEW[1:]],
}
#: Families with sliding windows, whose caches forget by themselves.
WINDOWS = ("gemma4", "exaone4_5")
#: Families whose towers cannot merge inside.
WHOLE = ("gemma4", "minicpmv4_6", "molmo2")
#: Families whose layers carry a state, which no method takes tokens out of again.
STATES = ("qwen3_5", "qwen3_5_moe")


def specs_of(family: str) -> list[str]:
    if family in MORE:
        return [spec for spec in KINDS if family not in STATES or "cache" not in spec]
    if family in OTHERS:
        tried = SHARING.get(family, KINDS)
        tried = [spec for spec in tried if family not in WINDOWS or "cache" not in spec]
        return [spec for spec in tried if family not in WHOLE or spec != "tome"]
    return SPECS


def cases(batches: dict[str, Any]) -> Iterator[Any]:
    """Families with a method and an attention, and with a batch where there are several."""
    for family in (*FAMILIES, *MORE, *(kind for kind in OTHERS if "+" not in kind)):
        for way in ("sdpa", "eager"):
            for spec in specs_of(family):
                for batch in batches:
                    paired = (way == "sdpa") == (batch in ("two", "whole"))
                    if WRITTEN or paired or (spec in KINDS and family not in OTHERS):
                        name = f"{family}-{way}-{spec}-{batch}".removesuffix("-whole")
                        yield pytest.param((family, way), spec, batch, id=name)


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    family, attention = request.param
    model = hf_model(family)
    model.set_attn_implementation(attention)
    yield family, model
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(("served", "spec", "batch"), cases(BATCHES), indirect=["served"])
def test_compressed_is_masked(served: tuple[str, Any], spec: str, batch: str) -> None:
    family, model = served
    inputs = hf_inputs(family, BATCHES[batch])
    length = inputs["input_ids"].shape[1]
    run = Run(model, inputs, spec, keep=0.4)
    assert torch.equal(run.out[:, :length], inputs["input_ids"])
    assert run.receipt.tokens_kept < run.receipt.tokens_full
    assert len(run.steps) == (NEW - 1 if "dycoke-cache" in spec else 0)
    pictures = model.model.config.image_token_id
    for row, kept in enumerate(run.layers[-1]):
        gone = torch.ones(length, dtype=torch.bool)
        gone[kept] = False
        lost = inputs["input_ids"][row][gone]
        video = IMAGE if family in ALONE else getattr(model.config, "video_token_id", pictures)
        pad = inputs["attention_mask"][row][gone] == 0
        assert bool((pad | (lost == video)).all())
    told = shortened if family in STATES else reference
    want = told(model, inputs, run, merged=build(spec).name == "framefusion")
    torch.testing.assert_close(run.logits, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(want.argmax(-1), run.out[:, length:])


@pytest.mark.parametrize(
    ("served", "spec", "batch"), cases({"whole": BATCHES["two"]}), indirect=["served"]
)
def test_keeping_everything_is_bit_equal(served: tuple[str, Any], spec: str, batch: str) -> None:
    family, model = served
    inputs = hf_inputs(family, BATCHES["two"])
    plain = model(**inputs).logits
    hooks = hooks_of(model)
    with compress(model, spec, keep=1.0, processor=tokenizer()):
        got = model(**inputs).logits
    assert torch.equal(got, plain)
    assert hooks_of(model) == hooks


def test_every_registered_method_is_served() -> None:
    assert {*(s for s in SPECS if s in names()), "none", "mustdrop-cache"} == set(names())
