"""Decoding that people use, under compression: guesses, caches, beams, samples, streams.

The answers are those of plain greedy decoding on the same kept prompt, token for token; what that
is to be is held by the matrix (`test_hf_matrix.py`).
"""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hf_tiny import Video, hf_inputs, hf_model, tokenizer
from packaging.version import Version
from transformers import DynamicCache, QuantizedCache, StaticCache, TextStreamer

from vidllm import InputError
from vidllm.ask.compression import compress
from vidllm.models.families.family import adapter_for

#: Those whose code others share, a hybrid, and one with windows and shared keys.
PLAIN = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
GREEDY = {"max_new_tokens": 12, "do_sample": False}
ONE = [[3, Video(4), 6]]
TWO = [[3, Video(4), 6], [9, Video(4), 4]]


def opened(model: Any, spec: str = "vidcom2", keep: float = 0.4) -> Any:
    return compress(model, spec, keep=keep, processor=tokenizer())


class Calls:
    """How many tokens every call of a decoder read."""

    def __init__(self, model: Any) -> None:
        self.read: list[int] = []
        hook = adapter_for(model, tokenizer()).decoder.register_forward_pre_hook
        self.handle = hook(self._called, with_kwargs=True)

    def _called(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.read.append(kwargs["inputs_embeds"].shape[1])

    def __enter__(self) -> list[int]:
        return self.read

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


def assistant_of(model: Any) -> Any:
    """A model that is often right."""
    other = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.003 * torch.randn(weight.shape, generator=noise)
    return other


@pytest.mark.parametrize(
    ("kind", "keep"), [*((kind, 0.4) for kind in (*PLAIN, "gemma4")), ("qwen3_vl", 1.0)]
)
def test_guesses_change_nothing(kind: str, keep: float) -> None:
    """With a method that reads the question, which must not see the guesses."""
    model, inputs = hf_model(kind), hf_inputs(kind, ONE)
    ways = ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant_of(model)})
    with opened(model, "semvid", keep) as c:
        want, kept = model.generate(**inputs, **GREEDY), c.kept[0]
        for how in ways:
            with Calls(model) as read:
                got = model.generate(**inputs, **GREEDY, **how)
            assert torch.equal(got, want) and torch.equal(c.kept[0], kept)
            assert max(read[1:]) > 1  # several guesses in one pass
    if keep == 1.0:
        assert torch.equal(want, model.generate(**inputs, **GREEDY))
    assert "_get_candidate_generator" not in vars(model)


def test_guesses_go_on_from_a_video_that_was_read_before() -> None:
    model, inputs = hf_model("llava_onevision"), hf_inputs("llava_onevision", ONE)
    with opened(model) as c:
        want = model.generate(**inputs, **GREEDY)
        with c.reuse() as prefix:
            for _ in range(2):
                got = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
                assert torch.equal(got, want)
            assert prefix.reused == 1
            with pytest.raises(InputError, match="ask without reuse"):
                model.generate(**inputs, **GREEDY, cache_implementation="static")


@pytest.mark.parametrize(
    ("kind", "keep"), [*((kind, 0.4) for kind in (*PLAIN, "qwen3_5")), ("qwen3_vl", 1.0)]
)
def test_static_caches_change_nothing(kind: str, keep: float) -> None:
    """Rows of different lengths, so that masks matter; with beams and samples as well."""
    model, inputs = hf_model(kind), hf_inputs(kind, TWO)
    size = inputs["input_ids"].shape[1] + GREEDY["max_new_tokens"]
    own = StaticCache(config=model.config.get_text_config(), max_cache_len=size)
    static: dict[str, Any] = {"cache_implementation": "static"}
    beams = {"num_beams": 2, "num_return_sequences": 2}
    with opened(model, keep=keep) as c:
        want = model.generate(**inputs, **GREEDY)
        kept = c.kept
        for how in (static, {"past_key_values": own}):
            assert torch.equal(model.generate(**inputs, **GREEDY, **how), want)
        assert all(torch.equal(a, b) for a, b in zip(c.kept, kept, strict=True))
        want = model.generate(**inputs, **GREEDY, **beams)
        assert torch.equal(model.generate(**inputs, **GREEDY, **beams, **static), want)
        drawn = []
        for how in ({}, static):
            torch.manual_seed(7)
            more = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": 2, **how}
            drawn.append(model.generate(**inputs, **more))
        assert torch.equal(*drawn) and len(drawn[0]) == 4
        assert len(c.kept) == 4


def test_an_answer_goes_on_by_hand_in_a_static_cache() -> None:
    model, inputs = hf_model("qwen2_5_vl"), hf_inputs("qwen2_5_vl", TWO)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
    with opened(model):
        want = model.generate(**inputs, **GREEDY)[:, -12:]
        out = model(**inputs, past_key_values=cache)
        got = [out.logits[:, -1:].argmax(-1)]
        for _ in range(11):
            out = model(input_ids=got[-1], past_key_values=cache)
            got.append(out.logits[:, -1:].argmax(-1))
    assert torch.equal(torch.cat(got, 1), want)


def test_tokens_may_be_taken_back_by_hand() -> None:
    """Of the answer; not of the prompt, which is shorter than it was."""
    model, inputs = hf_model("qwen3_vl"), hf_inputs("qwen3_vl", ONE)
    ids = torch.tensor([[41, 52, 63]])
    with opened(model):
        first = model(**inputs, use_cache=True)
        want = model(input_ids=ids, past_key_values=first.past_key_values).logits
        first.past_key_values.crop(-2)
        again = model(input_ids=ids[:, 1:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(again, want[:, 1:], atol=1e-5, rtol=1e-5)
        first.past_key_values.crop(-4)
        with pytest.raises(InputError, match="whole conversation"):
            model(input_ids=ids, past_key_values=first.past_key_values)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision"])
def test_quantized_caches_are_those_of_the_kept_prompt(kind: str) -> None:
    """As the plain model's on the kept tokens, at their positions: 8-bit floats of the library."""
    if Version(transformers.__version__) < Version("5.21"):
        pytest.skip("transformers before 5.21 has no cache of 8-bit floats")
    model, inputs = hf_model(kind), hf_inputs(kind, ONE)
    told: dict[str, Any] = {}
    decoder: Any = adapter_for(model).decoder

    def begins(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        told.setdefault("embeds", kwargs["inputs_embeds"])
        told.setdefault("place", kwargs["position_ids"])

    config = {"backend": "fp8"}
    with opened(model):
        handle = decoder.register_forward_pre_hook(begins, with_kwargs=True)
        how = {"cache_implementation": "quantized", "cache_config": config}
        got = model.generate(**inputs, **GREEDY, **how)[0, -12:]
        handle.remove()
    cache = QuantizedCache(config=model.config.get_text_config(), backend="fp8")
    embeds, place, want = told["embeds"], told["place"], []
    for _ in range(12):
        with torch.no_grad():
            out = decoder(
                inputs_embeds=embeds, position_ids=place, past_key_values=cache, use_cache=True
            )
        want.append(model.lm_head(out.last_hidden_state[:, -1]).argmax(-1))
        embeds = decoder.get_input_embeddings()(want[-1])[:, None]
        place = place[..., -1:] + 1
    assert torch.equal(got, torch.cat(want))


def test_offloaded_caches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's caches wait for a GPU's streams; here they wait for nothing."""

    class Stream(contextlib.nullcontext[None]):
        def wait_stream(self, _: Any) -> None:
            pass

    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda *_: Stream())
    model, inputs = hf_model("qwen2_5_vl"), hf_inputs("qwen2_5_vl", TWO)
    for spec in ("vidcom2", "fastv"):
        with opened(model, spec):
            want = model.generate(**inputs, **GREEDY)
            got = model.generate(**inputs, **GREEDY, cache_implementation="offloaded")
        assert torch.equal(got, want)
    with opened(model, "dycoke-cache"), pytest.raises(InputError, match="wait in another memory"):
        model.generate(**inputs, **GREEDY, cache_implementation="offloaded")


@pytest.mark.parametrize("how", [{}, {"prompt_lookup_num_tokens": 3}])
def test_streams_carry_every_token(how: dict[str, Any]) -> None:
    class Heard(TextStreamer):
        ids: list[int] = []  # noqa: RUF012

        def put(self, value: torch.Tensor) -> None:
            self.ids = [*self.ids, *value.flatten().tolist()]

        def end(self) -> None:
            self.ended = True

    model, inputs = hf_model("smolvlm"), hf_inputs("smolvlm", ONE)
    heard = Heard(tokenizer())
    with opened(model):
        out = model.generate(**inputs, **GREEDY, **how, streamer=heard)
    assert heard.ids == out[0].tolist() and heard.ended


@pytest.mark.parametrize(
    ("kind", "spec", "how", "words"),
    [
        ("qwen2_5_vl", "fastv", {"cache_implementation": "static"}, "it leaves layers of diff"),
        ("qwen2_5_vl", "random,fastv", {"cache_implementation": "static"}, "fastv leaves layers"),
        ("qwen2_5_vl", "dycoke-cache", {"cache_implementation": "quantized"}, "it leaves layers"),
        ("qwen2_5_vl", "fastv", {"prompt_lookup_num_tokens": 2}, "no guess is taken back"),
        ("qwen3_5", "random", {"prompt_lookup_num_tokens": 2}, "hold a state, out of which no"),
        (
            "qwen2_5_vl",
            "random",
            {"prompt_lookup_num_tokens": 2, "cache_implementation": "quantized"},
            "does not count the guesses",
        ),
        ("qwen2_5_vl", "random", {"assistant_early_exit": 2}, "guesses from inside the model"),
        ("qwen2_5_vl", "random", {"cache_implementation": "paged"}, "a paged cache is laid out"),
        ("qwen2_5_vl", "random", {"prefill_chunk_size": 8}, "reads the prompt in parts: leave"),
        ("gemma4", "random", {"cache_implementation": "static"}, "its windows, or pictures"),
        ("molmo2", "random", {"cache_implementation": "static"}, "its windows, or pictures"),
    ],
)
def test_what_is_refused_says_why_at_once(
    kind: str, spec: str, how: dict[str, Any], words: str
) -> None:
    model, inputs = hf_model(kind), hf_inputs(kind, ONE)
    with (
        opened(model, spec),
        Calls(model) as read,
        pytest.raises(InputError, match=words) as caught,
    ):
        model.generate(**inputs, **GREEDY, **how)
    assert "\n" not in str(caught.value) and read == []


def test_a_model_does_not_assist_itself() -> None:
    model, inputs = hf_model("qwen2_5_vl"), hf_inputs("qwen2_5_vl", ONE)
    with opened(model):
        with pytest.raises(InputError, match="cannot be its own assistant_model"):
            model.generate(**inputs, **GREEDY, assistant_model=model)
        static = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        model.generate(**inputs, **GREEDY, past_key_values=static)
    with opened(model, "fastv"):
        with pytest.raises(InputError, match="one StaticCache does not hold"):
            model(**inputs, past_key_values=static)
        model.generate(**inputs, **GREEDY, past_key_values=DynamicCache())


def test_a_gpu_is_told_not_to_compile_what_hooks_hang_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = hf_model("llava_onevision"), hf_inputs("llava_onevision", ONE)
    told = SimpleNamespace(off=None)
    plain = type(model)._prepare_generation_config

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = plain(self, *args, **kwargs)
        told.off = made[0].disable_compile
        return made

    monkeypatch.setattr(type(model), "_prepare_generation_config", prepared)
    with opened(model):
        model.generate(**inputs, **GREEDY, cache_implementation="static")
    assert told.off is True
