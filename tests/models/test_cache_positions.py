"""Where cached tokens stand after others left: gaps stay, or are closed by turning keys (PIE)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from authors import positions as rope
from test_cache_stage import PROMPTS, InTurns, answer
from test_native import HEAD, TAIL, clip_tokens
from test_pruning import ByAttention
from tiny import tiny_model
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vidllm import InputError
from vidllm.compressors import get
from vidllm.compressors.shared import positions as pos
from vidllm.models.hooks.cache import Prefill, close_gaps, decoder_layers, evict
from vidllm.models.hooks.decoding import DecodeSteps, past_of


def rope_models() -> dict[str, Any]:
    """A decoder layer each with 1D positions, M-RoPE in blocks and M-RoPE in turns."""
    torch.manual_seed(0)
    small = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 9}
    small |= {"num_attention_heads": 3, "num_key_value_heads": 1}
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    qwen25 = Qwen2_5_VLTextModel.config_class(**small, rope_parameters=rotary)
    turns = {**rotary, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    qwen3 = Qwen3VLTextModel.config_class(**small, head_dim=16, rope_parameters=turns)
    return {
        "llama": LlamaModel(LlamaConfig(**small)).eval(),
        "qwen2.5-vl": Qwen2_5_VLTextModel(qwen25).eval(),
        "qwen3-vl": Qwen3VLTextModel(qwen3).eval(),
    }


def grid_places(mrope: bool) -> tuple[Tensor, Tensor, int]:
    """Positions of 3 + 2 x 2 x 3 + 2 tokens, where the video is, and what comes next."""
    is_video = torch.zeros(17, dtype=torch.bool)
    is_video[3:15] = True
    if not mrope:
        return torch.arange(17), is_video, 17
    text, after = torch.arange(3).expand(3, 3), torch.tensor([6, 7]).expand(3, 2)
    grid = 3 + torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).T
    return torch.cat([text, grid, after], dim=1), is_video, 8


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "qwen2.5-vl", "qwen3-vl"])
def test_contiguous_positions_are_a_fresh_forward_in_one_layer(name: str) -> None:
    model, mrope = rope_models()[name], name != "llama"
    places, is_video, following = grid_places(mrope)
    kept = torch.tensor([0, 1, 2, 4, 10, 13, 15, 16])
    x = torch.randn(1, 18, 48, generator=torch.Generator().manual_seed(1))

    def run(cache: DynamicCache, hidden: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
        out = model(
            inputs_embeds=hidden,
            position_ids=at[..., None, :],
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
        )
        return out.last_hidden_state

    cache, fresh = DynamicCache(), DynamicCache()
    run(cache, x[:, :17], places)
    layer: Any = cache.layers[0]
    layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    video = torch.nonzero(is_video).flatten()
    prefix = Prefill(cache, 17, following, [kept], video, places=places)
    closed = close_gaps(prefix, model)
    new = pos.contiguous(places, kept, is_video)
    expected = run(fresh, x[:, kept], new)
    assert expected.shape[1] == len(kept)
    assert torch.allclose(layer.keys, fresh.layers[0].keys, atol=1e-5)
    # The same from keys that were never turned.
    block = model.layers[0]
    raw = block.self_attn.k_proj(block.input_layernorm(x[:, kept])).unflatten(-1, (1, 16))
    raw = getattr(block.self_attn, "k_norm", torch.nn.Identity())(raw).transpose(1, 2)
    axes = rope.section_axes(model.rotary_emb.mrope_section, name == "qwen3-vl") if mrope else None
    turned = rope.rotate(raw, rope.angles(new, rope.inverse_frequencies(16), axes))
    assert torch.allclose(layer.keys, turned, atol=1e-5)
    # And the next token, which the driver puts right behind.
    steps, at = DecodeSteps(model), torch.tensor([[following]])
    steps.past = past_of(closed, 1, 1)
    with ExitStack() as stack:
        steps.attach(stack, choosing=False)
        mask = steps.grow(at, torch.ones(1, 1, dtype=torch.bool)).long()
        got = run(cache, x[:, 17:], at[0] if not mrope else at.expand(3, 1), mask)
    end = new.max() + 1
    want = run(fresh, x[:, 17:], end[None] if not mrope else end.expand(3, 1))
    assert closed.shift == [following - int(end)] != [0]
    assert torch.allclose(got, want, atol=1e-5)
    with pytest.raises(InputError, match="moved before"):
        close_gaps(closed, model)


@torch.inference_mode()
def test_dycoke_keys_stand_without_gaps_whatever_was_chosen() -> None:
    model, _ = tiny_model()
    stamps = [[40 + i, 50 + i] for i in range(6)]
    method = InTurns(layer=1, positions="contiguous")
    seen: list[Tensor] = []
    last = decoder_layers(model.language_model)[-1]
    handle = last.self_attn.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    _, _, prefix, _ = answer(model, method, stamps=stamps)
    handle.remove()
    raw = torch.cat([part[0] for part in seen])  # the prefill and every pass, all positions
    attention: Any = last.self_attn
    keys = attention.k_proj(raw).unflatten(-1, (-1, attention.head_dim))
    keys = getattr(attention, "k_norm", torch.nn.Identity())(keys).transpose(0, 1)[None]
    stays = torch.ones(len(raw), dtype=torch.bool)
    stays[prefix.video] = False
    stays[prefix.video[method.made[-1]]] = True
    held = prefix.cache.layers[-1].keys
    frequencies = model.language_model.base_model.rotary_emb.inv_freq
    assert held.shape[2] == int(stays.sum()) == prefix.length - 24 + 7 + len(TAIL) + 7
    expected = rope.rotate(keys[:, :, stays], rope.angles(torch.arange(held.shape[2]), frequencies))
    assert torch.allclose(held, expected, atol=1e-5)


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("untouched", [None, 0])
def test_an_evicted_cache_serves_several_prompts(
    positions: str, attention: str, untouched: int | None
) -> None:
    model, _ = tiny_model()
    model.language_model.set_attn_implementation(attention)
    tokens, duration = clip_tokens(model)

    def answers(prompts: list[list[int]]) -> tuple[list[list[int]], Prefill]:
        prefix = model.prefill(HEAD, tokens, duration, tail=TAIL, method=ByAttention(keep=0.25))
        method = get("mustdrop-cache", untouched=untouched, positions=positions)
        prefix = evict(prefix, method, tokens, model.language_model)
        return model.generate_from(prefix, prompts, max_new_tokens=5, eos=-1), prefix

    together, prefix = answers(PROMPTS)
    assert together == [answers([prompt])[0][0] for prompt in PROMPTS]
    gone = [24 - count for count in prefix.video_per_layer()]
    assert gone[-1] == 18 and prefix.shift == (gone if positions == "contiguous" else [])
