"""One compressed video for many questions: reuse equals a fresh run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_flash import flash_by_hand
from hf_tiny import FAMILIES, PAD, Image, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor

from vidllm import InputError
from vidllm.ask.compression import Prefix, compress

PROMPT = [[3, Image(), 2, Video(4), 6]]
LONG = {"max_new_tokens": 16, "do_sample": False}
TOLD = {"output_logits": True, "return_dict_in_generate": True}


def asked(inputs: dict[str, Any], words: int, seed: int) -> dict[str, Any]:
    """The same beginning with another question of so many words."""
    random = torch.Generator().manual_seed(seed)
    tail = torch.randint(40, 95, (1, words), generator=random)
    made = dict(inputs)
    made["input_ids"] = torch.cat([inputs["input_ids"][:, :-6], tail], dim=1)
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in inputs:
            fill = torch.full_like(tail, int(name == "attention_mask")).to(inputs[name])
            made[name] = torch.cat([inputs[name][:, :-6], fill], dim=1)
    return made


def together(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Two prompts in a batch, padded on the left."""
    width = max(one["input_ids"].shape[1], two["input_ids"].shape[1])
    pads = {"input_ids": PAD, "attention_mask": 0, "mm_token_type_ids": 0}

    def wide(name: str, value: Tensor) -> Tensor:
        if name not in pads:
            return value
        more = (width - value.shape[1], 0)
        return torch.nn.functional.pad(value, more, value=pads[name])

    return {n: torch.cat([wide(n, one[n]), wide(n, two[n])]) for n in one}


def opened(model: Any, spec: Any, keep: float = 0.4) -> Any:
    return compress(model, spec, keep=keep, processor=tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["vidcom2", "visionzip,temporal-pool"])
def test_a_reused_video_answers_as_a_fresh_one(family: str, spec: str) -> None:
    model = hf_model(family)
    first = hf_inputs(family, PROMPT)
    others = [asked(first, 9, seed=1), asked(first, 1, seed=2)]
    others.append(together(others[0], others[1]))
    with opened(model, spec) as c:
        fresh, kept = [], []
        for inputs in (first, *others):
            fresh.append(model.generate(**inputs, **LONG, **TOLD))
            kept.append(c.kept)
        full = c.receipt
        with c.reuse() as video:
            assert video.ids is None
            got = model.generate(**first, **LONG, **TOLD)
            assert torch.equal(got.sequences, fresh[0].sequences) and video.reused == 0
            assert len(video) == int((c.kept[0] < len(video.ids)).sum()) < len(video.ids)
            for n, inputs in enumerate(others, 1):
                read: list[int] = []
                handle = c._session.decoder.register_forward_hook(
                    lambda _m, _a, out, read=read: read.append(out.last_hidden_state.shape[1])
                )
                got = model.generate(**inputs, **LONG, **TOLD)
                handle.remove()
                assert read == [inputs["input_ids"].shape[1] - len(video.ids)] + [1] * 15
                assert torch.equal(got.sequences, fresh[n].sequences) and video.reused == n
                logits = (torch.stack(x.logits) for x in (got, fresh[n]))
                torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
                assert all(torch.equal(a, b) for a, b in zip(c.kept, kept[n], strict=True))
            reused = c.receipt
        assert reused.flops < full.flops and reused.tokens_kept == full.tokens_kept
        assert video.bytes == len(video) * 4 * 2 * 2 * 8 * 4
        again = model.generate(**others[0], **LONG)
        assert torch.equal(again, fresh[1].sequences) and video.reused == 3


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_what_is_read_by_hand_with_beams_and_with_an_image_behind(family: str) -> None:
    model = hf_model(family)
    first = hf_inputs(family, [[3, Video(4), 6]])
    second = asked(first, 5, seed=3)
    both = together(asked(first, 9, seed=1), asked(first, 3, seed=2))
    beams = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    with opened(model, "vidcom2") as c:
        whole, beamed = model(**second).logits, model.generate(**second, **beams)
        padded = model(**both).logits
        prefix = Prefix()
        with c.reuse(prefix):
            model.generate(**first, **beams)
            part = model(**second)
            width = part.logits.shape[1]
            torch.testing.assert_close(part.logits, whole[:, -width:], atol=1e-5, rtol=1e-5)
            rows = model(**both).logits  # the second begins behind padding
            for row, count in ((0, 9), (1, 3)):
                want = padded[row, -count:]
                torch.testing.assert_close(rows[row, -count:], want, atol=1e-5, rtol=1e-5)
            got = [part.logits[0, -1].argmax()]
            for _ in range(3):
                step = got[-1].view(1, 1)
                part = model(input_ids=step, past_key_values=part.past_key_values)
                got.append(part.logits[0, -1].argmax())
            assert torch.equal(model.generate(**second, **beams), beamed)
    with opened(model, "vidcom2") as c:
        greedy = model.generate(**second, max_new_tokens=4, do_sample=False)
        assert torch.equal(torch.stack(got), greedy[0, -4:])
        with c.reuse(prefix):  # of an earlier block
            again = model.generate(**second, max_new_tokens=4, do_sample=False)
            assert torch.equal(again, greedy) and prefix.reused == 4
    with opened(model, "aim") as c, pytest.raises(InputError, match="another method"):
        c.reuse(prefix).__enter__()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_reuse_under_other_attention_and_keeping_everything(family: str) -> None:
    model = hf_model(family)
    first = hf_inputs(family, PROMPT)
    both = together(asked(first, 9, seed=1), asked(first, 3, seed=2))
    plain = model.generate(**both, **LONG)
    with opened(model, "vidcom2", keep=1.0) as c, c.reuse() as video:
        model.generate(**first, **LONG)
        assert torch.equal(model.generate(**both, **LONG), plain) and video.reused == 1
        assert len(video) == len(video.ids)
    with opened(model, "vidcom2") as c:
        want = model.generate(**both, **LONG)
    with flash_by_hand() as name:
        model.set_attn_implementation(name)
        with opened(model, "vidcom2") as c, c.reuse():
            model.generate(**both, **LONG)
            assert torch.equal(model.generate(**both, **LONG), want)
        model.set_attn_implementation("sdpa")


def test_what_cannot_be_reused_is_refused() -> None:
    model = hf_model("qwen2_5_vl")
    first = hf_inputs("qwen2_5_vl", PROMPT)
    other = hf_inputs("qwen2_5_vl", PROMPT, seed=9)
    other = {**other, "input_ids": first["input_ids"]}
    cut = {n: v[:, 1:] if v.dim() == 2 and n != "video_grid_thw" else v for n, v in first.items()}
    cut = {**cut, **{n: first[n] for n in first if "pixel" in n or "grid" in n}}
    ends = {n: v[:, :-7] if n in ("input_ids", "attention_mask") else v for n, v in first.items()}
    ends["mm_token_type_ids"] = first["mm_token_type_ids"][:, :-7]
    behind = hf_inputs("qwen2_5_vl", [[*PROMPT[0], Video(2), 3]])
    slower = {**first, "second_per_grid_ts": first["second_per_grid_ts"] * 4}
    for spec, words in [
        ("semvid", "semvid reads the question"),
        ("fastv", "fastv looks at the whole prompt"),
        ("aim,dycoke-cache", "looks at the whole prompt"),
    ]:
        with opened(model, spec) as c, pytest.raises(InputError, match=words) as caught:
            c.reuse().__enter__()
        assert "\n" not in str(caught.value)
    with opened(model, "vidcom2") as c, c.reuse() as video:
        with pytest.raises(InputError, match="leave out use_cache=False"):
            model.generate(**first, max_new_tokens=2, use_cache=False)
        model.generate(**first, max_new_tokens=2)
        for inputs, words in [
            (other, "not the one that is reused"),
            (slower, "other seconds than the one"),
            (cut, "does not begin as the one"),
            (behind, "does not begin as the one"),
            (ends, "put a question behind it"),
        ]:
            with pytest.raises(InputError, match=words) as caught:
                model.generate(**inputs, max_new_tokens=2)
            assert "\n" not in str(caught.value)
        assert video.reused == 0
        model.generate(**asked(first, 4, seed=5), max_new_tokens=2)
        assert video.reused == 1
