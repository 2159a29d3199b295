"""`vidllm.compress` on hub models: what it returns, what it leaves alone, what it refuses."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hf_reference import Run
from hf_tiny import (
    FAMILIES,
    VIDEO,
    Image,
    Video,
    hf_inputs,
    hf_model,
    hooks_of,
    tokenizer,
)
from torch import Tensor
from transformers import DynamicCache

from vidllm import InputError, WorkError
from vidllm.ask.compression import compress
from vidllm.compressors import Chain, Compressor, build
from vidllm.compressors.base import Scorer
from vidllm.eval.bench.model_shapes import build_subject
from vidllm.models.cost.memory import Allocated
from vidllm.tokens import VideoTokens

ONE = [[3, Video(4), 6]]
SMALL = {"max_new_tokens": 6, "do_sample": False}


def opened(model: Any, spec: Any, **options: Any) -> Any:
    return compress(model, spec, processor=tokenizer(), **options)


def state_of(model: Any) -> tuple[dict[str, Tensor], Any, Any, int, Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    own = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    return state, own, model.forward, hooks_of(model), getattr(model.model, "rope_deltas", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_untouched_afterwards_also_after_an_error(family: str) -> None:
    model = hf_model(family)
    inputs = hf_inputs(family, ONE)
    plain = model.generate(**inputs, **SMALL)
    before = state_of(model)
    with opened(model, "mustdrop-filter,mustdrop-cache", keep=0.4):
        model.generate(**inputs, **SMALL)

    class Broken(Scorer):
        name = "broken"
        stage = "prefill"
        needs = ("decoder-attention",)

        def points(self, depth: int) -> list[tuple[int, float]]:
            return [(2, self.keep)]

        def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
            raise ValueError("broken")

    with pytest.raises(WorkError, match="broken: score"), opened(model, Broken(keep=0.5)):
        model.generate(**inputs, **SMALL)
    after = state_of(model)
    assert before[1].keys() == after[1].keys() and before[2:4] == after[2:4]
    assert before[4] is after[4]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert torch.equal(model.generate(**inputs, **SMALL), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_tokens_matters_and_calls_do_not_remember_each_other(family: str) -> None:
    model = hf_model(family)
    inputs, other = hf_inputs(family, ONE), hf_inputs(family, [[9, Video(6), 2]], seed=5)
    plain = model(**inputs).logits[:, -1]
    with opened(model, "aim", keep=0.25) as c:
        first = model(**inputs)
        kept = c.kept[0]
        model.generate(**other, **SMALL)
        again = model(**inputs)
    assert torch.equal(first.logits, again.logits)
    assert first.logits.shape[1] == len(kept) == first.past_key_values.get_seq_length()
    assert not torch.allclose(first.logits[:, -1], plain, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["aim", "fastv", "dycoke,mustdrop-filter,mustdrop-cache"])
def test_a_batch_gives_what_each_prompt_gives_alone(family: str, spec: str) -> None:
    model = hf_model(family)
    prompts = [[3, Video(4), 6], [7, Video(4), 2, Image(), 3, Video(4), 4]]
    both = hf_inputs(family, prompts)
    width = both["input_ids"].shape[1]
    with opened(model, spec, keep=0.5) as c:
        out = model.generate(**both, **SMALL)
        kept = c.kept
        for row, alone in enumerate(_alone(family, both)):
            pad = width - alone["input_ids"].shape[1]
            got = model.generate(**alone, **SMALL)
            assert torch.equal(got[0], out[row, pad:])
            assert torch.equal(c.kept[0] + pad, kept[row])


def _alone(family: str, both: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch (one video; a video, an image and a video) as inputs of their own."""
    rows = []
    for row in range(2):
        real = both["attention_mask"][row].bool()
        one: dict[str, Any] = {
            name: both[name][row : row + 1, real]
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in both
        }
        videos, images = slice(0, 1) if row == 0 else slice(1, 3), row == 1
        grid = both.get("video_grid_thw")
        if grid is not None:
            sizes = grid.prod(1).tolist()
            parts = both["pixel_values_videos"].split(sizes)
            one["pixel_values_videos"] = torch.cat(parts[videos])
            one["video_grid_thw"] = grid[videos]
        if "second_per_grid_ts" in both:
            one["second_per_grid_ts"] = both["second_per_grid_ts"][videos]
        if "video_merge_sizes" in both:
            one["video_merge_sizes"] = both["video_merge_sizes"][videos]
            masks = both["video_compression_mask"].split((grid.prod(1) // 4).tolist())
            one["video_compression_mask"] = torch.cat(masks[videos])
        if family == "llava_onevision":
            one["pixel_values_videos"] = both["pixel_values_videos"][videos]
        if family == "internvl":
            pixels = both["pixel_values"]
            one["pixel_values"] = pixels[:4] if row == 0 else pixels[4:]
        elif family == "smolvlm":
            pixels = both["pixel_values"][row : row + 1]
            one["pixel_values"] = pixels[:, :4] if row == 0 else pixels
        elif images:
            pictures = ("pixel_values", "image_grid_thw", "image_merge_sizes", "image_sizes")
            one |= {name: both[name] for name in pictures if name in both}
        rows.append(one)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_text_alone_are_untouched(family: str) -> None:
    model = hf_model(family)
    for prompt in ([4, Image(), 5], [9]):
        inputs = hf_inputs(family, [prompt])
        plain = model.generate(**inputs, **SMALL)
        with opened(model, "random,fastv", keep=0.1) as c:
            assert torch.equal(model.generate(**inputs, **SMALL), plain)
        assert c.receipt.tokens_full == 0 and c.receipt.flops == 1.0
        assert len(c.kept[0]) == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_goes_on_by_hand(family: str) -> None:
    """Without generate: the cache of model(**inputs) and one token at a time."""
    model = hf_model(family)
    inputs = hf_inputs(family, ONE)
    with opened(model, "random,aim-prune", keep=0.5):
        want = model.generate(**inputs, **SMALL)[0, -6:]
        out = model(**inputs, use_cache=True)
        got = [out.logits[0, -1].argmax()]
        for _ in range(5):
            out = model(input_ids=got[-1].view(1, 1), past_key_values=out.past_key_values)
            got.append(out.logits[0, -1].argmax())
    assert torch.equal(torch.stack(got), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_several_answers(family: str, record_property: Any) -> None:
    model = hf_model(family)
    inputs = hf_inputs(family, [[3, Video(4), 6], [5, Video(4), 2]])
    if family == "video_llama_3":
        with pytest.raises((RuntimeError, ValueError)):  # as made, without us
            model.generate(**inputs, max_new_tokens=6, num_beams=2, do_sample=False)
        record_property("cell", "fails in transformers")
        inputs = {k: v for k, v in inputs.items() if k != "video_compression_mask"}
        inputs = _whole(inputs)
    with opened(model, "aim", keep=0.5) as c:
        greedy = model.generate(**inputs, **SMALL)
        two = model.generate(**inputs, max_new_tokens=6, num_beams=2, do_sample=False)
        assert len(c.kept) == 4 and torch.equal(c.kept[0], c.kept[1])
        assert two.shape == greedy.shape
    with opened(model, "aim", keep=1.0):
        same = model.generate(**inputs, max_new_tokens=6, num_beams=2, do_sample=False)
    assert torch.equal(same, model.generate(**inputs, max_new_tokens=6, num_beams=2))


def _whole(inputs: dict[str, Any]) -> dict[str, Any]:
    """VideoLLaMA3's prompt as if its own choice had left nothing out."""
    rows = []
    for ids in inputs["input_ids"].tolist():
        row: list[int] = []
        for i, token in enumerate(ids):
            row.append(token)
            if token == VIDEO and ids[i + 1] != VIDEO and len(row) > 3 and row[-4] != VIDEO:
                row.append(VIDEO)
        rows.append(row)
    ids = torch.tensor(rows)
    mask = (ids != 100).long()
    return {**inputs, "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_without_a_tokenizer_numbered_images_are_refused(family: str) -> None:
    with pytest.raises(InputError, match=r"give compress\(\.\.\., processor=processor\)"):
        compress(hf_model(family), "aim", keep=0.5).__enter__()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_behind_and_no_cache(family: str) -> None:
    model = hf_model(family)
    inputs = hf_inputs(family, ONE)
    pad = {"input_ids": 100, "attention_mask": 0, "mm_token_type_ids": 0}
    wide = {
        name: torch.nn.functional.pad(value, (0, 3), value=pad[name]) if name in pad else value
        for name, value in inputs.items()
    }
    for spec in ("aim", "random,fastv"):
        with opened(model, spec, keep=0.5) as c:
            alone, kept = model(**inputs).logits, c.kept[0]
            padded = model(**wide).logits
            assert torch.equal(c.kept[0], kept)
            cached = model.generate(**inputs, **SMALL)
            again = model.generate(**inputs, use_cache=False, **SMALL)
        torch.testing.assert_close(padded[:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)
        if spec == "aim":  # FastV looks from the last token, which moves without a cache
            assert torch.equal(cached, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_turn_keeps_the_same_of_the_video(family: str) -> None:
    model = hf_model(family)
    first = hf_inputs(family, ONE)
    more = torch.tensor([[41, 52, 63, 74]])
    later = {**first, "input_ids": torch.cat([first["input_ids"], more], dim=1)}
    for name in ("attention_mask", "mm_token_type_ids"):
        if name in first:
            fill = torch.full_like(more, int(name == "attention_mask")).to(first[name])
            later[name] = torch.cat([first[name], fill], dim=1)
    with opened(model, "vidcom2", keep=0.5) as c:
        model.generate(**first, **SMALL)
        kept = c.kept[0]
        model.generate(**later, **SMALL)
        assert torch.equal(c.kept[0][: len(kept)], kept)


def test_methods_by_name_instance_chain_and_list() -> None:
    model = hf_model("llava_onevision")
    inputs = hf_inputs("llava_onevision", ONE)
    specs: list[tuple[Any, dict[str, Any]]] = [
        ("aim", {"keep": 0.25}),
        ("aim", {"budget": 4}),
        (build("aim", keep=0.25), {}),
        (Chain([build("temporal-pool"), build("aim")], keep=0.25), {}),
        (["temporal-pool", build("aim")], {"keep": 0.25}),
        ("per-scene(aim)", {"keep": 0.25}),
    ]
    for spec, options in specs:
        with compress(model, spec, **options) as c:
            model(**inputs)
        assert (c.receipt.tokens_full, c.receipt.tokens_kept) == (16, 4)
    assert str(c.receipt).startswith("video tokens 16 -> 4 (25.0 %) by per-scene(aim) · KV ")


class Asked(Compressor):
    """Keeps the first tokens and remembers the question."""

    name = "asked"
    query_aware = True
    seen: Tensor

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Any:
        from vidllm.tokens import Keep

        assert query is not None
        type(self).seen = query
        return Keep(torch.arange(budget))


def test_methods_get_the_question_behind_the_video() -> None:
    model = hf_model("qwen3_vl")
    inputs = hf_inputs("qwen3_vl", [[3, Image(), 2, Video(2), 5]])
    with compress(model, Asked(keep=0.5)):
        model(**inputs)
    embeds = model.get_input_embeddings()(inputs["input_ids"][0, -6:])  # END and five words
    assert torch.equal(Asked.seen, embeds)


def test_what_cannot_be_served_is_refused_in_one_line() -> None:
    model = hf_model("qwen2_5_vl")
    inputs = hf_inputs("qwen2_5_vl", ONE)
    for spec, options, words in [
        ("aim", {}, "how much should 'aim' keep"),
        ("mustdrop-cache", {"keep": 0.5}, "mustdrop-filter,mustdrop-cache"),
        ("nothing", {"keep": 0.5}, "no compressor 'nothing'"),
        (build("aim", keep=0.5), {"keep": 0.5}, "an instance has its own"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            compress(model, spec, **options).__enter__()
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match=r"a Linear model is not served, for .*: use one of Qwen2\.5-VL"
    ):
        compress(torch.nn.Linear(2, 2), "aim", keep=0.5).__enter__()
    with compress(model, "aim", keep=0.5) as c:
        with pytest.raises(InputError, match="no prompt yet"):
            _ = c.receipt
        with pytest.raises(InputError, match="compressed already"):
            compress(model, "evs", keep=0.5).__enter__()
        with pytest.raises(InputError, match="labels do not fit"):
            model(**inputs, shift_labels=inputs["input_ids"])
        with pytest.raises(InputError, match="input_ids, not inputs_embeds"):
            model(inputs_embeds=torch.zeros(1, 4, 32))
        with pytest.raises(InputError, match="do not fit its videos"):
            model(**{**inputs, "input_ids": inputs["input_ids"][:, :-8]})
        cache = DynamicCache()
        model.generate(**inputs, past_key_values=cache, **SMALL)
        with pytest.raises(InputError, match="whole conversation"):
            longer = hf_inputs("qwen2_5_vl", [[3, Video(4), 20]])
            model.generate(**longer, past_key_values=cache, **SMALL)


def test_receipts_count_what_was_spent() -> None:
    model = hf_model("llava_onevision")
    inputs = hf_inputs("llava_onevision", ONE)
    full = Run(model, inputs, "aim", keep=1.0).receipt
    tokens = Run(model, inputs, "aim", keep=0.25).receipt
    late = Run(model, inputs, "fastv", keep=0.25).receipt
    assert full.flops == 1.0 and full.kv_full_mb == full.kv_kept_mb
    assert tokens.kv_full_mb == 16 * 4 * 2 * 2 * 8 * 4 / 1e6
    assert tokens.kv_kept_mb == tokens.kv_full_mb / 4
    assert tokens.flops < late.flops < 1.0 and late.kv_kept_mb > tokens.kv_kept_mb
    assert late.tokens_kept == tokens.tokens_kept == 4


@pytest.mark.parametrize("spec", ["aim", "fastv", "visionzip"])
def test_keeping_everything_takes_no_more_memory(spec: str) -> None:
    subject = build_subject("llava-onevision-7b", 0.02, torch.device("cpu"), torch.float32)
    inputs, peaks = subject.inputs(4), []
    for keep in (None, 1.0, 0.25):
        block = nullcontext() if keep is None else compress(subject.model, spec, keep=keep)
        with torch.no_grad(), block, Allocated() as memory:
            subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        peaks.append(memory.most)
    assert peaks[2] < peaks[0] and peaks[1] <= 1.01 * peaks[0]
