"""What leaves the KV cache while answering, and what comes back (DyCoke)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from test_native import HEAD, TAIL, clip_tokens
from test_pruning import ByAttention, sequence
from tiny import hub_model, tiny_model
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from vidllm import InputError
from vidllm.compressors import DyCokeCache, build, get
from vidllm.models.engine import by_question
from vidllm.models.hooks.cache import CacheChoice, Prefill, decoder_layers, evict
from vidllm.models.hooks.decoding import generate_from
from vidllm.models.native.generation import Prompt, answer_prompt
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress import Stopwatch

PROMPTS = [[10, 11, 12, 4], [20, 4], [30, 31, 32, 33, 34, 35, 4]]


@dataclass
class Recorded(DyCokeCache):
    """With all choices of all rows written down."""

    made: list[Tensor | None] = field(default_factory=list)

    def step(self, attention: Tensor, budget: int, state: Any = None) -> tuple[Tensor | None, Any]:
        chosen, state = super().step(attention, budget, state)
        self.made.append(chosen)
        return chosen, state


@dataclass
class InTurns(Recorded):
    """Reads the first entries of the video, then the last ones, then the first again."""

    def step(self, attention: Tensor, budget: int, state: Any = None) -> tuple[Tensor | None, Any]:
        _, state = super().step(attention, budget, state)
        turn = (len(self.made) - 1) % 2
        self.made[-1] = torch.arange(budget) + turn * (len(attention) - budget)
        return self.made[-1], state


def answer(
    model: NativeVideoLLM,
    method: DyCokeCache | None,
    budget: int = 7,
    prompts: list[list[int]] = [TAIL],  # noqa: B006
    stamps: list[list[int]] | None = None,
    count: int = 8,
) -> tuple[list[list[int]], Tensor, Prefill, CacheChoice | None]:
    """Ids, the logits of all passes (count, rows, V), and the cache as it is in the end."""
    tokens, duration = clip_tokens(model)
    prefix = model.prefill(HEAD, tokens, duration, stamps)
    choice = None if method is None else CacheChoice(method, budget)
    caught: list[Tensor] = []
    handle = model.language_model.lm_head.register_forward_hook(
        lambda _m, _a, out: caught.append(out[:, -1].clone())
    )
    try:
        ids = model.generate_from(prefix, prompts, max_new_tokens=count, eos=-1, choice=choice)
    finally:
        handle.remove()
    return ids, torch.stack(caught), prefix, choice


def deep_model() -> NativeVideoLLM:
    """A tiny model with five decoder layers."""
    small, _ = tiny_model()
    text = {**small.config.text, "num_hidden_layers": 5, "layer_types": None}
    torch.manual_seed(0)
    return NativeVideoLLM(type(small.config)(**{**small.config.to_dict(), "text": text})).eval()


def hooks(model: NativeVideoLLM) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@torch.inference_mode()
@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("method", [Recorded(layer=2, threshold=2.0), InTurns(layer=1), Recorded()])
def test_a_choice_at_every_step_equals_masking(method: Recorded, stamped: bool) -> None:
    model = deep_model()
    tokens, duration = clip_tokens(model)
    stamps = [[40 + i, 50 + i] for i in range(tokens.grid[0])] if stamped else None
    method.made = []
    [got], logits, prefix, choice = answer(model, method, stamps=stamps)
    assert choice is not None and hooks(model) == 0 and len(method.made) == 7
    if isinstance(method, InTurns):  # what was parked is back, as it was
        first, second, third = method.made[:3]
        assert first is not None and second is not None and third is not None
        assert torch.equal(first, third) and not torch.isin(first, second).any()
    parts, places = sequence(model, tokens, duration, stamps)
    text = torch.tensor([TAIL + got[:-1]])
    whole = torch.cat([parts, model.embed_tokens(text[0])])[None]
    length, begin = whole.shape[1], len(places) + len(TAIL)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    read = causal.clone()
    for step, chosen in enumerate(method.made):
        assert chosen is not None and len(chosen) == 7
        parked = torch.ones(len(tokens), dtype=torch.bool)
        parked[chosen] = False
        read[begin + step, prefix.video[parked]] = False
    layers = decoder_layers(model.language_model)
    [(first_layer, _)] = method.points(len(layers))

    def before(_layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": read[None, None]}

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers[first_layer:]
    ]
    full = model.language_model(
        inputs_embeds=whole, attention_mask=causal[None, None], use_cache=False
    ).logits[0, begin - 1 :]
    for handle in handles:
        handle.remove()
    assert torch.allclose(logits[:, 0], full, atol=1e-5)
    # Exactly the budget is held behind the layer that chooses, and the whole video before it.
    held = [layer.keys.shape[2] for layer in prefix.cache.layers]
    extra = len(TAIL) + 7
    assert set(held[:first_layer]) == {prefix.length + extra}
    assert set(held[first_layer:]) == {prefix.length - len(tokens) + 7 + extra}
    assert choice.video_per_layer() == [24.0] * first_layer + [7.0] * (len(layers) - first_layer)
    assert torch.equal(choice.active(tokens).position, method.made[-1])


@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_reading_everything_is_plain_decoding_bit_for_bit(positions: Any) -> None:
    model, _ = tiny_model()
    plain = answer(model, None, prompts=PROMPTS)[1]
    whole = answer(model, DyCokeCache(positions=positions), 24, PROMPTS)[1]
    same = torch.equal if positions == "original" else torch.allclose
    assert same(plain, whole)


@pytest.mark.parametrize("options", [{}, {"threshold": 2.0}, {"positions": "contiguous"}])
def test_every_question_has_its_own_choice(options: dict[str, Any]) -> None:
    model, _ = tiny_model()
    alone = []
    for prompt in PROMPTS:
        method = Recorded(layer=1, **options)
        [ids], logits, _, _ = answer(model, method, prompts=[prompt])
        alone.append((ids, logits[:, 0], method.made))
    assert not torch.equal(alone[0][2][0], alone[2][2][0])  # type: ignore[arg-type]
    method = Recorded(layer=1, **options)
    ids, logits, _, choice = answer(model, method, prompts=PROMPTS)
    for row, (want, expected, made) in enumerate(alone):
        assert ids[row] == want and torch.allclose(logits[:, row], expected, atol=1e-5)
        for one, two in zip(method.made[row::3], made, strict=True):
            assert one is not None and two is not None and torch.equal(one, two)
    # The same choice, used once more, knows nothing of the answers before.
    tokens, duration = clip_tokens(model)
    prefix = model.prefill(HEAD, tokens, duration)
    again = model.generate_from(prefix, [PROMPTS[1]], max_new_tokens=8, eos=-1, choice=choice)
    assert again[0] == alone[1][0]


def test_faithful_reads_the_full_cache_where_attention_has_not_moved() -> None:
    model, _ = tiny_model()
    method = Recorded(layer=1, threshold=0.05, faithful=True)
    _, _, prefix, choice = answer(model, method)
    assert choice is not None and method.made[0] is not None and method.made[1:] == [None] * 6
    assert {layer.keys.shape[2] for layer in prefix.cache.layers} == {prefix.length + 11}
    assert choice.video_per_layer()[-1] == pytest.approx((7 + 6 * 24) / 7)
    # The full cache is whole again: what follows the first step is read as ever.
    layer: Any = prefix.cache.layers[1]
    tokens, duration = clip_tokens(model)
    fresh = model.prefill(HEAD, tokens, duration).cache.layers[1]
    assert torch.equal(layer.keys[:, :, : prefix.length], fresh.keys)
    with pytest.raises(InputError, match="one question at a time"):
        answer(model, method, prompts=PROMPTS)
    assert hooks(model) == 0


def test_a_receipt_counts_what_is_parked_on_the_device() -> None:
    model, _ = tiny_model()
    for offload, held in ((True, 7.0), (False, 31.0)):
        choice = answer(model, DyCokeCache(layer=1, offload=offload))[3]
        assert choice is not None and choice.video_per_layer()[1:][-1] == held
    choice = answer(model, DyCokeCache(), count=1)[3]  # no step that could choose
    assert choice is not None and set(choice.video_per_layer()) == {24.0}


@pytest.mark.parametrize("spec", ["dycoke-cache", "dycoke,dycoke-cache"])
def test_questions_share_one_prefill_and_the_receipt_says_what_was_read(spec: str) -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    method = build(spec, keep=0.25)

    def ask(tails: list[list[int]], watch: Stopwatch) -> tuple[list[list[int]], int, float]:
        prompt = Prompt(HEAD, tails, tokens, duration)
        left = method.before_decoder(tokens)
        made = answer_prompt(model, prompt, *left, watch, max_new_tokens=5, eos=-1)
        return made.ids, len(made.kept), made.cached

    both, kept, cached = ask(PROMPTS, Stopwatch())
    assert kept == 6 < cached < 24 and not by_question(method)
    assert both == [ask([tail], Stopwatch())[0][0] for tail in PROMPTS]
    assert by_question(build("dycoke-cache:faithful=true", keep=0.25))
    assert by_question(build("fastv", keep=0.25)) and not by_question(build("aim", keep=0.25))
    plain = model.prefill(HEAD, tokens, duration)
    method = build("dycoke-cache", keep=1.0)
    assert ask(PROMPTS, Stopwatch()) == (
        model.generate_from(plain, PROMPTS, max_new_tokens=5, eos=-1), 24, 24
    )  # fmt: skip


# What is refused


def test_what_cannot_serve_is_refused_and_leaves_no_hook() -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    pruned = model.prefill(HEAD, tokens, duration, tail=TAIL, method=ByAttention(keep=0.5))
    choice = CacheChoice(DyCokeCache(), 7)
    with pytest.raises(InputError, match="nothing has left yet"):
        model.generate_from(pruned, [TAIL[-1:]], max_new_tokens=3, eos=-1, choice=choice)
    with pytest.raises(InputError, match="cannot choose"):
        CacheChoice(get("mustdrop-cache"), 7)
    with pytest.raises(InputError, match="need the language model"):
        evict(pruned, get("mustdrop-cache", positions="contiguous"), tokens)
    with pytest.raises(InputError, match="one layer"):
        DyCokeCache().points(1)
    with pytest.raises(InputError, match="NaN"):
        DyCokeCache().step(torch.tensor([0.1, float("nan")]), 1)
    for options, message in (
        ({"layer": 0}, "at least 1"),
        ({"threshold": 0.0}, "above 0"),
        ({"positions": "rotated"}, "'original' or 'contiguous'"),
        ({"positions": "contiguous", "faithful": True}, "positions=original"),
    ):
        with pytest.raises(InputError, match=message):
            get("dycoke-cache", **options)
    with pytest.raises(InputError, match="one method inside the decoder"):
        build("fastv,dycoke-cache", keep=0.5)
    sliding = Qwen2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, vocab_size=60, use_sliding_window=True, sliding_window=4,
        max_window_layers=0,
    )  # fmt: skip
    llm = Qwen2ForCausalLM(sliding).eval()
    prefix = Prefill(DynamicCache(config=sliding), 9, 9, video=torch.arange(1, 9))
    with pytest.raises(InputError, match="sliding windows"):
        generate_from(llm, prefix, [[5]], max_new_tokens=2, eos=-1, choice=choice)
    assert hooks(model) == 0


def test_ties_go_to_the_earlier_entry_and_one_token_is_enough() -> None:
    chosen, state = DyCokeCache().step(torch.full((6,), 0.1), 2)
    assert chosen is not None and chosen.tolist() == [0, 1] and state.similarity == 0
    chosen, state = DyCokeCache().step(torch.tensor([0.3]), 1, None)
    assert chosen is not None and chosen.tolist() == [0]
    model = hub_model("siglip", "llama", downsample=4)  # a token a frame
    tokens, duration = clip_tokens(model, frames=1)
    prefix = model.prefill(HEAD, tokens, duration)
    choice = CacheChoice(DyCokeCache(), 1)
    plain = model.prefill(HEAD, tokens, duration)
    ids = model.generate_from(prefix, [TAIL], max_new_tokens=4, eos=-1, choice=choice)
    assert ids == model.generate_from(plain, [TAIL], max_new_tokens=4, eos=-1)
