"""Decoders whose layers carry a state or choose experts: what was left out has left no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hf_reference import Run, reference, shortened
from hf_tiny import Image, Video, hf_inputs, hf_model, tokenizer
from torch import Tensor

from vidllm import InputError
from vidllm.ask.compression import compress

STATES = ("qwen3_5", "qwen3_5_moe")
TWO = [[3, Video(4), 6], [5, Image(), 2, Video(4, 3), 4, Video(4), 3]]


def padded_behind(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same batch with its padding on the right."""
    made = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        rows = zip(inputs[name], inputs["attention_mask"], strict=True)
        made[name] = torch.stack([row.roll(-int((mask == 0).sum())) for row, mask in rows])
    return made


@torch.no_grad()
def alone(model: Any, inputs: dict[str, Any], kept: list[Tensor]) -> list[Any]:
    """The text model on the kept tokens of every row, at their positions in the full prompt."""
    core, told = model.model, {}

    def begins(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        told.update(kwargs)

    handle = core.language_model.register_forward_pre_hook(begins, with_kwargs=True)
    core(**inputs, use_cache=False)
    handle.remove()
    core.rope_deltas = None
    embeds, place = told["inputs_embeds"], told["position_ids"]
    return [
        core.language_model(
            inputs_embeds=embeds[row : row + 1, columns],
            position_ids=place[:, row : row + 1, columns],
            use_cache=True,
        )
        for row, columns in enumerate(kept)
    ]


@pytest.mark.parametrize("family", STATES)
@pytest.mark.parametrize("behind", [False, True])
def test_what_is_left_out_never_touches_a_state(family: str, behind: bool) -> None:
    model, inputs = hf_model(family), hf_inputs(family, TWO)
    inputs = padded_behind(inputs) if behind else inputs
    with compress(model, "random", keep=0.4, processor=tokenizer()) as c:
        out = model(**inputs, use_cache=True)
        kept = c.kept
    for row, want in enumerate(alone(model, inputs, kept)):
        count = len(kept[row])
        part = slice(0, count) if behind else slice(out.logits.shape[1] - count, None)
        logits = model.lm_head(want.last_hidden_state)[0]
        torch.testing.assert_close(out.logits[row, part], logits, atol=1e-5, rtol=1e-5)
        if behind:
            continue  # its padding goes through the state, as without us: see below
        for mine, plain in zip(
            out.past_key_values.layers, want.past_key_values.layers, strict=True
        ):
            for name in ("conv_states", "recurrent_states"):
                for state, alike in zip(
                    getattr(mine, name, {}).values(), getattr(plain, name, {}).values(), strict=True
                ):
                    torch.testing.assert_close(state[row], alike[0], atol=1e-5, rtol=1e-4)


def test_no_answer_goes_on_from_padding_in_a_state() -> None:
    model = hf_model("qwen3_5")
    inputs = padded_behind(hf_inputs("qwen3_5", TWO))
    with compress(model, "random", keep=0.4, processor=tokenizer()):
        out = model(**inputs, use_cache=True)
        with pytest.raises(InputError, match="pad on the left"):
            model(input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=out.past_key_values)


def test_cuts_stand_beside_full_attention() -> None:
    """At the next layer where there is some, and a note says so."""
    model, inputs = hf_model("qwen3_5"), hf_inputs("qwen3_5", TWO)
    with compress(model, "pyramiddrop", keep=0.4, processor=tokenizer()) as c:
        model(**inputs)
        moved = c.notes[-1]
        counts = [len(layer[0]) for layer in c.layers]
    assert "pyramiddrop cuts before layer" in moved and "beside full attention" in moved
    changes = [i for i in range(1, 4) if counts[i] < counts[i - 1]]
    assert changes and all(model.config.text_config.layer_types[i][0] == "f" for i in changes)
    with compress(model, "fastv", keep=0.4, processor=tokenizer()) as c:
        model(**inputs)
        assert not c.notes  # layer 2 stands behind full attention as it is


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("dycoke-cache", r"^dycoke-cache on Qwen3\.5: its layers of linear attention hold a state"),
        (
            "mustdrop-filter,mustdrop-cache",
            r"^mustdrop-cache on Qwen3\.5: .* no token can be taken",
        ),
    ],
)
def test_nothing_is_taken_out_of_a_state(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        compress(hf_model("qwen3_5"), spec, keep=0.5, processor=tokenizer()).__enter__()
    assert "\n" not in str(caught.value)


def test_a_video_is_not_reused_where_its_state_is_gone() -> None:
    model = hf_model("qwen3_5")
    with (
        compress(model, "aim", keep=0.5, processor=tokenizer()) as c,
        pytest.raises(InputError, match="ask without reuse"),
        c.reuse(),
    ):
        pass


def test_without_attention_before_a_layer_there_is_no_cut() -> None:
    config = copy.deepcopy(hf_model("qwen3_5").config)
    config.text_config.layer_types = ["linear_attention"] * 3 + ["full_attention"]
    model = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    with pytest.raises(InputError, match="no layer of full attention stands before another layer"):
        compress(model, "fastv", keep=0.5, processor=tokenizer()).__enter__()
    inputs = hf_inputs("qwen3_5", [[3, Video(4), 6]])
    with compress(model, "pyramiddrop", keep=0.5, processor=tokenizer()) as c:
        model(**inputs)
        assert [len(layer[0]) for layer in c.layers].count(len(c.layers[0][0])) == 3


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe_thinker"])
@pytest.mark.parametrize("spec", ["random", "fastv"])
def test_kept_tokens_go_to_the_experts_that_they_would_go_to(family: str, spec: str) -> None:
    model, inputs = hf_model(family), hf_inputs(family, [[3, Video(4), 6]])
    layers = model.model.language_model.layers
    chosen: list[list[Tensor]] = [[] for _ in layers]

    def catch(number: int) -> Any:
        return lambda _module, _args, output: chosen[number].append(output[2])

    handles = [x.mlp.gate.register_forward_hook(catch(i)) for i, x in enumerate(layers)]
    run = Run(model, inputs, spec, keep=0.4)
    first = [calls[0] for calls in chosen]
    for calls in chosen:
        calls.clear()
    told = shortened if family in STATES else reference
    told(model, inputs, run, merged=False)
    for handle in handles:
        handle.remove()
    for number, (mine, calls) in enumerate(zip(first, chosen, strict=True)):
        read = run.layers[number][0]
        plain = calls[-1][: len(read)] if told is shortened else calls[-1][read]
        assert torch.equal(mine.sort(-1).values, plain.sort(-1).values)
