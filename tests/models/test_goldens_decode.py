"""Decode steps of AIM and MustDrop against their authors' arrays, through the project's driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from authors import aim, mustdrop
from goldens import golden
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vidllm.compressors.aim_prune import retention
from vidllm.models.hooks.cache import Prefill
from vidllm.models.hooks.decoding import DecodeSteps, generate_from, past_of

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def load(model: PreTrainedModel, data: dict[str, Tensor]) -> Any:
    state = {k.removeprefix("sd/"): v for k, v in data.items() if k.startswith("sd/")}
    model.load_state_dict(state)
    return model.eval()


def masked(layers: Any, masks: list[Tensor]) -> list[Any]:
    """Hooks that give every layer its own mask (queries, keys)."""

    def before(mask: Tensor) -> Callable[..., Any]:
        def hook(_layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": mask[None, None]}

        return hook

    return [
        layer.register_forward_pre_hook(before(mask), with_kwargs=True)
        for layer, mask in zip(layers, masks, strict=True)
    ]


# AIM: 28 layers, 6 + 25 + 9 tokens, three steps


def aim_model(data: dict[str, Tensor]) -> Any:
    config = Qwen2Config(**SMALL, num_hidden_layers=28, num_key_value_heads=2, vocab_size=50)
    return load(Qwen2ForCausalLM(config), data)


def aim_seen(data: dict[str, Tensor]) -> list[Tensor]:
    """What every layer sees of the prompt, by this project's own choice from the importance."""
    ends, place = data["boundaries"][0].tolist(), torch.arange(40)
    text = ((place < ends[0]) | (place >= ends[1]))[None]
    mask = torch.ones(1, 40, dtype=torch.bool)
    seen = [mask[0]]
    for layer, share in enumerate(retention(28)):
        mask = aim.visible(data["raw_importance"][layer], mask, text, share)
        assert torch.equal(mask, data["mask_after_layer"][layer])
        seen.append(mask[0])
    return seen[:-1]


def see(seen: Tensor, length: int) -> Tensor:
    """(length, length) causal, with the prompt's pruned columns hidden but for themselves."""
    columns = torch.ones(length, dtype=torch.bool)
    columns[: len(seen)] = seen
    eye = torch.eye(length, dtype=torch.bool)
    return (torch.ones(length, length, dtype=torch.bool).tril() & columns) | eye


@torch.inference_mode()
def aim_prefix(model: Any, data: dict[str, Tensor], seen: list[Tensor]) -> Prefill:
    """The golden prompt in a cache out of which every layer's pruned tokens have gone."""
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    cache = DynamicCache()
    handles = masked(model.model.layers, [causal & mask for mask in seen])
    out = model.model(inputs_embeds=data["inputs_embeds"], past_key_values=cache)
    for handle in handles:
        handle.remove()
    assert torch.allclose(out.last_hidden_state, data["last_hidden"], atol=1e-3)
    for layer, mask in zip(cache.layers, seen, strict=True):
        layer.keys, layer.values = layer.keys[:, :, mask], layer.values[:, :, mask]
    return Prefill(cache, 40, 40, [torch.nonzero(mask).flatten() for mask in seen])


def steps(model: Any, prefix: Prefill, token: int, count: int) -> tuple[list[int], Tensor]:
    """Greedy ids and the logits (count, 50) that they come from, from the driver."""
    caught: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda _m, _a, out: caught.append(out[0, -1]))
    ids = generate_from(model, prefix, [[token]], max_new_tokens=count, eos=-1)[0]
    handle.remove()
    return ids, torch.stack(caught)


def test_aim_decode_steps_are_the_authors() -> None:
    data = golden("aim_qwen2_prefill_decode")
    model, seen = aim_model(data), aim_seen(data)
    fed = data["dec_tokens"][0].tolist()
    assert int(data["logits"][0, -1].argmax()) == fed[0]
    prefix = aim_prefix(model, data, seen)
    assert data["dec_mask_in_step0"].all()
    ids, logits = steps(model, prefix, fed[0], 1)
    assert torch.allclose(logits, data["dec_logits"][0, :1], atol=1e-3) and ids == fed[1:2]
    # Their first layer then forgets what the last one has dropped, which is no choice of ours:
    # with as much taken out of its cache, the driver gives their later steps too.
    for step in (1, 2):
        survivors = data[f"dec_mask_in_step{step}"][0]
        assert torch.equal(survivors[:40], data["mask_after_layer"][-1, 0])
        assert torch.equal(survivors, data[f"dec_mask_after_step{step}"][0])
    first: Any = prefix.cache.layers[0]
    stays = data["dec_mask_after_step0"][0]
    first.keys, first.values = first.keys[:, :, stays], first.values[:, :, stays]
    fresh = torch.tensor([40])
    alive = [torch.nonzero(stays).flatten(), *(torch.cat([a, fresh]) for a in prefix.alive[1:])]
    leaking = Prefill(prefix.cache, 41, 41, alive)
    ids, logits = steps(model, leaking, fed[1], 2)
    assert torch.allclose(logits, data["dec_logits"][0, 1:], atol=1e-3) and ids[0] == fed[2]


@torch.inference_mode()
def test_aim_decode_steps_without_the_leak_are_the_masked_model() -> None:
    data = golden("aim_qwen2_prefill_decode")
    model, seen = aim_model(data), aim_seen(data)
    ids, logits = steps(model, aim_prefix(model, data, seen), int(data["dec_tokens"][0, 0]), 4)
    answer = torch.tensor([[int(data["dec_tokens"][0, 0]), *ids[:-1]]])
    whole = torch.cat([data["inputs_embeds"], model.model.embed_tokens(answer)], dim=1)
    handles = masked(model.model.layers, [see(mask, 44) for mask in seen])
    full = model(inputs_embeds=whole).logits[0, -4:]
    for handle in handles:
        handle.remove()
    assert torch.allclose(logits, full, atol=1e-5)
    leaked = data["dec_logits"][0, 1]
    assert int(data["dec_tokens"][0, 1]) == ids[0] and not torch.allclose(logits[1], leaked)


# MustDrop: 32 layers, 5 + 30 + 10 tokens, one step


@torch.inference_mode()
def test_mustdrop_decode_step_is_the_authors() -> None:
    data = golden("mustdrop_llama_prefill")
    config = LlamaConfig(
        **SMALL,
        num_hidden_layers=32,
        num_key_value_heads=4,
        vocab_size=40,
        attn_implementation="eager",
    )
    model = load(LlamaModel(config), data)
    first, left, cuts = int(data["v_token_start"]), int(data["img_seq"]), (3, 7, 11, 15)
    both = float(data["global_thr"]), float(data["individual_thr"])
    x, keys, cache = data["inputs_embeds"], data["key_set"].sort().values, DynamicCache()
    chosen: list[Tensor] = []
    for number, layer in enumerate(model.layers):
        length = x.shape[1]
        late = torch.full((length, length), -torch.inf).triu(1)[None, None]
        turn = model.rotary_emb(x, torch.arange(length)[None])  # counted anew behind a cut
        normed = layer.input_layernorm(x)
        _, attention = layer.self_attn(normed, position_embeddings=turn, attention_mask=late)
        x = layer(x, attention_mask=late, position_embeddings=turn, past_key_values=cache)
        if number + 1 in cuts:
            kept = mustdrop.dual_filter(attention, first, left, *both)
            assert torch.equal(kept, data[f"filter_keep_stage{len(chosen)}"])
            kept = torch.cat([kept, keys]).unique()
            keys = torch.nonzero(torch.isin(kept, keys)).flatten()
            tail = torch.arange(first + left, length)
            chosen.append(torch.cat([torch.arange(first), first + kept, tail]))
            x, left = x[:, chosen[-1]], len(kept)
    assert torch.allclose(model.norm(x), data["last_hidden"], atol=1e-3)
    held: list[Any] = list(cache.layers)
    for entry, index in zip(held, mustdrop.output_aware(chosen, cuts, 32), strict=True):
        if index is not None:
            entry.keys, entry.values = entry.keys[:, :, index], entry.values[:, :, index]
    lengths = [entry.keys.shape[2] for entry in held]
    assert lengths == data["cache_len"].tolist()
    for number, entry in enumerate(held):
        if f"cache_k_layer{number}" in data:
            assert torch.allclose(entry.keys, data[f"cache_k_layer{number}"], atol=1e-3)
            assert torch.allclose(entry.values, data[f"cache_v_layer{number}"], atol=1e-3)
    # The position of the new token is the length of each layer's own cache.
    prefix = Prefill(
        cache, 45, 45, [torch.arange(n) for n in lengths], shift=[45 - n for n in lengths]
    )
    decode, place = DecodeSteps(model), torch.tensor([[45]])
    decode.past = past_of(prefix, 1, 32)
    with ExitStack() as stack:
        decode.attach(stack, choosing=False)
        hidden = model(
            inputs_embeds=data["decode_inputs_embeds"],
            attention_mask=decode.grow(place, torch.ones(1, 1, dtype=torch.bool)).long(),
            position_ids=place,
            past_key_values=cache,
        ).last_hidden_state
    assert torch.allclose(hidden, data["decode_hidden"], atol=1e-3)
    assert [entry.keys.shape[2] for entry in held] == [n + 1 for n in lengths]
