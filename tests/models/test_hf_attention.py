"""Attention other than SDPA and eager: the same answers from every kind that transformers has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hf_flash import CALLS, flash_by_hand
from hf_reference import Run
from hf_tiny import FAMILIES, Image, Video, hf_inputs, hf_model, hooks_of, tokenizer
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from vidllm import InputError
from vidllm.ask.compression import compress

#: Fewer tokens before the decoder; between its layers, with scores; in its cache; at every step.
SPECS = ("aim", "random,fastv", "mustdrop-filter,mustdrop-cache", "dycoke-cache:threshold=0.99")
BATCHES = {
    "one": [[3, Video(4), 6]],
    "two": [[3, Video(4), 6], [5, Image(), 2, Video(4, 3), 4, Video(4), 3]],
}
#: Families whose decoder the library lets run on FlexAttention, and how it is asked for.
FLEX: dict[str, Any] = {
    "llava_onevision": "flex_attention",
    "internvl": "flex_attention",
    "smolvlm": "flex_attention",
    "video_llama_3": {"text_config": "flex_attention"},
}


@contextmanager
def attending(model: Any, name: Any) -> Iterator[Any]:
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation("sdpa")


@pytest.fixture(scope="module")
def flash() -> Iterator[str]:
    with flash_by_hand() as name:
        yield name


@pytest.fixture(autouse=True)
def _says_what_ran(request: pytest.FixtureRequest, record_property: Any) -> None:
    if "flash" in request.fixturenames:
        record_property("cell", "passed on a stand-in")


@pytest.fixture
def flex() -> Iterator[None]:
    """FlexAttention as it is written, not compiled: that takes minutes on a CPU."""
    torch.compiler.set_stance("force_eager")
    with torch.no_grad():
        yield
    torch.compiler.set_stance("default")


def same(a: Run, b: Run) -> None:
    assert torch.equal(a.out, b.out)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-5)
    for one, two in ((a.layers, b.layers), (a.cached, b.cached)):
        for rows, others in zip(one, two, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(rows, others, strict=True))
    assert [len(s) for s in a.steps] == [len(s) for s in b.steps]
    assert a.receipt.tokens_kept == b.receipt.tokens_kept < a.receipt.tokens_full


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", BATCHES)
def test_flash_attention_answers_as_sdpa(flash: str, family: str, batch: str) -> None:
    """Its masks are (B, K) or none, and its rows are packed without their padding."""
    model, inputs = hf_model(family), hf_inputs(family, BATCHES[batch])
    for spec in SPECS:
        want = Run(model, inputs, spec, keep=0.4)
        before = dict(CALLS)
        with attending(model, flash):
            got = Run(model, inputs, spec, keep=0.4)
        assert CALLS["whole"] > before["whole"] or CALLS["packed"] > before["packed"]
        same(got, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_keeps_everything_bit_equal(flash: str, family: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, BATCHES["two"])
    with attending(model, flash):
        plain, hooks = model(**inputs).logits, hooks_of(model)
        for spec in ("aim", "fastv"):
            with compress(model, spec, keep=1.0, processor=tokenizer()):
                assert torch.equal(model(**inputs).logits, plain)
        assert hooks_of(model) == hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_and_padding_behind(flash: str, family: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, BATCHES["one"])
    pad = {"input_ids": 100, "attention_mask": 0, "mm_token_type_ids": 0}
    wide = {
        name: torch.nn.functional.pad(value, (0, 3), value=pad[name]) if name in pad else value
        for name, value in inputs.items()
    }
    with attending(model, flash):
        for spec in ("aim", "random,fastv"):
            with compress(model, spec, keep=0.5, processor=tokenizer()):
                alone, padded = model(**inputs).logits, model(**wide).logits
            real = padded[:, : alone.shape[1]]
            torch.testing.assert_close(real, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("served", FLEX)
@pytest.mark.parametrize("batch", BATCHES)
def test_flex_attention_answers_as_sdpa(flex: None, served: str, batch: str) -> None:
    """Its masks are block masks."""
    model, inputs = hf_model(served), hf_inputs(served, BATCHES[batch])
    for spec in SPECS[1:]:
        want = Run(model, inputs, spec, keep=0.4)
        with attending(model, FLEX[served]):
            assert model.model.get_decoder().config._attn_implementation == "flex_attention"
            got = Run(model, inputs, spec, keep=0.4)
        same(got, want)


def test_any_registered_attention_with_a_mask_function_is_served() -> None:
    """One of the user's own: eager's formula, told by SDPA's masks."""

    def attention(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        logits = q @ k.transpose(2, 3) * more["scaling"]
        if mask is None and q.shape[2] > 1 and module.is_causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return (torch.softmax(logits, dim=-1) @ v).transpose(1, 2), None

    AttentionInterface.register("own", attention)
    AttentionMaskInterface.register("own", AttentionMaskInterface()["sdpa"])
    model, inputs = hf_model("llava_onevision"), hf_inputs("llava_onevision", BATCHES["two"])
    for spec in ("random,fastv", "mustdrop-filter,mustdrop-cache"):
        want = Run(model, inputs, spec, keep=0.4)
        with attending(model, "own"):
            same(Run(model, inputs, spec, keep=0.4), want)


def test_what_has_no_masks_or_holds_several_prompts_is_refused() -> None:
    model = copy.deepcopy(hf_model("llava_onevision"))
    inputs = hf_inputs("llava_onevision", BATCHES["one"])
    length = inputs["input_ids"].shape[1]
    position = torch.arange(length)[None]
    position[:, -3:] = torch.arange(3)
    square = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with compress(model, "aim", keep=0.5):
        for more, words in (
            ({"position_ids": position, "attention_mask": None}, "one prompt a row"),
            ({"cu_seq_lens_q": torch.tensor([0, 3, length])}, "one prompt a row"),
            ({"attention_mask": square}, r"attention mask as the processor made it"),
        ):
            with pytest.raises(InputError, match=words):
                model(**{**inputs, **more})
    AttentionInterface.register("maskless", AttentionInterface()["sdpa"])
    model.set_attn_implementation("maskless")
    with pytest.raises(InputError, match=r"aim on LLaVA-OneVision: attention 'maskless' has no"):
        compress(model, "aim", keep=0.5).__enter__()
