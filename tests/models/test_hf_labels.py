"""Training under compress: the loss over the text that stays, and where its gradients go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hf_tiny import IMAGE, PAD, VIDEO, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidllm import InputError
from vidllm.ask.compression import Compression, compress

#: Every kind of hooks: M-RoPE, DeepStack, 1D, frames as images, a choice of the family's own,
#: layers of a state, experts, windows and shared keys.
KINDS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm", "video_llama_3",
         "qwen3_5", "qwen3_vl_moe", "gemma4")  # fmt: skip
#: Two prompts of unlike lengths.
TWO = [[3, Video(4), 6], [5, Video(4), 12]]


def labelled(family: str, prompts: Any = TWO) -> tuple[dict[str, Any], Tensor]:
    """Inputs, and labels of all their text."""
    inputs = hf_inputs(family, prompts)
    ids = inputs["input_ids"]
    pictures = (ids == IMAGE) | (ids == VIDEO) | (inputs["attention_mask"] == 0)
    return inputs, ids.masked_fill(pictures, -100)


def padded_behind(inputs: dict[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The same with padding behind the prompts."""
    mask = inputs["attention_mask"].bool()
    moved = dict(inputs)
    for name, fill in (("input_ids", PAD), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        if name in inputs:
            moved[name] = torch.full_like(inputs[name], fill)
            moved[name][mask.flip(1)] = inputs[name][mask]
    behind = torch.full_like(labels, -100)
    behind[mask.flip(1)] = labels[mask]
    return moved, behind


def by_hand(logits: Tensor, kept: list[Tensor], labels: Tensor, left: bool) -> Tensor:
    """Cross entropy of every text token that has one before it, row by row."""
    sums, count = logits.new_zeros(()), 0
    for row, own in enumerate(kept):
        said = logits[row, -len(own) :] if left else logits[row, : len(own)]
        wanted = labels[row, own][1:]
        sums = sums + F.cross_entropy(said[:-1], wanted, ignore_index=-100, reduction="sum")
        count += int((wanted != -100).sum())
    return sums / count


def check_loss(c: Compression, out: Any, labels: Tensor, left: bool) -> None:
    torch.testing.assert_close(out.loss, by_hand(out.logits, c.kept, labels, left))
    own = c.labels(labels)
    assert own.shape == out.logits.shape[:2]
    again = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), own[:, 1:].flatten())
    torch.testing.assert_close(out.loss, again)


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_the_loss_is_that_of_the_text_that_stays(family: str) -> None:
    model = hf_model(family)
    inputs, labels = labelled(family)
    for spec in ("vidcom2", "fastv"):
        with compress(model, spec, keep=0.5, processor=tokenizer()) as c:
            check_loss(c, model(**inputs, labels=labels), labels, True)
            bare = model(**inputs, labels=inputs["input_ids"].masked_fill(labels == -100, -100))
            whole = labels.masked_fill(inputs["input_ids"] == VIDEO, VIDEO)
            assert torch.equal(bare.loss, model(**inputs, labels=whole).loss)
    plain = model(**inputs, labels=labels).loss
    with compress(model, "vidcom2", keep=1.0, processor=tokenizer()):
        assert torch.equal(plain, model(**inputs, labels=labels).loss)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "qwen3_5"])
@torch.no_grad()
def test_padding_behind_and_a_count_of_ones_own(family: str) -> None:
    model = hf_model(family)
    inputs, labels = padded_behind(*labelled(family))
    with compress(model, "evs", keep=0.5, processor=tokenizer()) as c:
        out = model(**inputs, labels=labels)
        check_loss(c, out, labels, False)
        count = int((c.labels(labels) != -100).sum())
        twice = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(2 * count)).loss
        torch.testing.assert_close(twice, out.loss / 2)
        given = labels.clone()
        model(**inputs, labels=given)
        assert torch.equal(given, labels)  # the caller's stay as they are
        text = {n: v for n, v in inputs.items() if n in ("input_ids", "attention_mask")}
        text["input_ids"] = text["input_ids"].clamp(max=95)
        alone = model(**text, labels=labels).loss
    assert torch.equal(alone, model(**text, labels=labels).loss)


def test_losses_of_the_full_prompt_are_refused() -> None:
    model = hf_model("qwen2_5_vl")
    inputs, labels = labelled("qwen2_5_vl", [[3, Video(4), 6]])
    with compress(model, "evs", keep=0.5, processor=tokenizer()) as c:
        with pytest.raises(InputError, match=r"labels must be \(1, 27\) as the prompt"):
            model(**inputs, labels=labels[:, 1:])
        with pytest.raises(InputError, match="so shift_labels do not fit: pass labels"):
            model(**inputs, labels=labels, shift_labels=labels)
        with c.reuse(), pytest.raises(InputError, match="leave out labels"):
            model(**inputs, labels=labels)
        with pytest.raises(InputError, match="nothing that is learned"):
            c.save_pretrained("nowhere")
    experts = hf_model("qwen3_vl_moe")
    inputs, labels = labelled("qwen3_vl_moe", [[3, Video(4), 6]])
    with (
        compress(experts, "evs", keep=0.5, processor=tokenizer()),
        pytest.raises(InputError, match="leave out output_router_logits"),
    ):
        experts(**inputs, labels=labels, output_router_logits=True)


def adapted(family: str, reentrant: bool | None = None) -> Any:
    peft = pytest.importorskip("peft", reason="a LoRA needs peft: pip install 'vidllm[lora]'")
    model = copy.deepcopy(hf_model(family))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return model


def gradients(model: Any, family: str, spec: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    inputs, labels = labelled(family)
    with compress(model, spec, keep=0.5, processor=tokenizer(), temporal="ssd") as c:
        out = model(**inputs, labels=labels)
        check_loss(c, out, labels, True)
        out.loss.backward()
        assert {id(p) for p in c.parameters()} <= {id(p) for p in model.parameters()}
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert not any("vidllm" in name for name, _ in model.named_parameters())
    return found


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "qwen3_5"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradients_reach_adapters_encoder_and_reducer(family: str) -> None:
    found = gradients(adapted(family), family, "timesuite")
    parts = [".lora_B.", ".vidllm.temporal.", ".vidllm.timesuite."]
    assert all(any(part in n and bool(g.any()) for n, g in found.items()) for part in parts)
    assert all(any(part in name for part in (".lora_", ".vidllm.")) for name in found)
    for reentrant in (True, False):
        again = gradients(adapted(family, reentrant), family, "timesuite")
        assert again.keys() == found.keys()
        assert all(torch.allclose(again[n], g, atol=1e-6) for n, g in found.items())


def test_a_quarter_of_the_tokens_is_at_most_half_of_a_step() -> None:
    """By operations of the decoder, forward and back: what a clock says depends on the machine."""
    model = copy.deepcopy(hf_model("qwen2_5_vl")).train()
    inputs, labels = labelled("qwen2_5_vl", [[3, Video(16, 4), 6]])
    with torch.no_grad():
        grid = inputs["video_grid_thw"]
        seen = model.get_video_features(inputs.pop("pixel_values_videos"), grid)
    spent = []
    for keep in (1.0, 0.25):
        with compress(model, "vidcom2", keep=keep), FlopCounterMode(display=False) as counter:
            made = {"video": copy.copy(seen)}
            model(**inputs, labels=labels, mm_encoder_outputs=made).loss.backward()
        spent.append(counter.get_total_flops())
    assert spent[1] <= 0.5 * spent[0]
