"""Pruning between decoder layers: exact counts, the same as masking, and no trace afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from authors import aim
from test_native import HEAD, TAIL, clip_tokens
from tiny import hub_model, tiny_model
from torch import Tensor
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, apply_rotary_pos_emb

from vidllm import InputError
from vidllm.compressors import Scorer, build, find, names
from vidllm.models.hooks import pruning
from vidllm.models.hooks.cache import decoder_layers, evict
from vidllm.models.hooks.pruning import probe
from vidllm.models.native.model import NativeVideoLLM
from vidllm.tokens import VideoTokens


@dataclass
class ByAttention(Scorer):
    """Keeps what the last prompt token looks at; half of what goes leaves at each of two layers."""

    name = "by-attention"
    stage = "prefill"
    needs = ("decoder-attention", "decoder-text-attention", "decoder-keys")

    def points(self, depth: int) -> list[tuple[int, float]]:
        return [(1, (1 + self.keep) / 2), (depth - 1, self.keep)]

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        assert self.signal(tokens, "decoder-text-attention").shape == (len(tokens), len(TAIL))
        assert self.signal(tokens, "decoder-keys").shape[0] == len(tokens)
        return self.signal(tokens, "decoder-attention")


@torch.inference_mode()
@pytest.mark.parametrize("name", [n for n in names() if find(n).stage == "prefill"])
def test_pruned_answers_are_the_same_under_eager_attention(name: str) -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    replies = []
    for attention in ("sdpa", "eager"):
        model.language_model.set_attn_implementation(attention)
        prefix = model.prefill(
            HEAD, tokens, duration, None, tail=TAIL, method=build(name, keep=0.5)
        )
        said = model.generate_from(prefix, [TAIL[-1:]], max_new_tokens=8, eos=-1)[0]
        replies.append((said, prefix.kept.position.tolist() if prefix.kept else None))
    assert replies[0] == replies[1] and replies[0][1] is not None


@torch.inference_mode()
@pytest.mark.parametrize("stamped", [False, True])
def test_pruning_equals_masking_in_prefill_and_decode(stamped: bool) -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    frames = tokens.grid[0]
    stamps = [[40 + i, 50 + i] for i in range(frames)] if stamped else None
    method = ByAttention(keep=0.5)
    prefix = model.prefill(HEAD, tokens, duration, stamps, tail=TAIL, method=method)
    assert prefix.kept is not None and len(prefix.kept) == method.goal(tokens)
    assert prefix.video_per_layer()[-1] == len(prefix.kept)
    assert bool((prefix.kept.position.diff() > 0).all())
    got = model.generate_from(prefix, [TAIL[-1:]], max_new_tokens=6, eos=-1)[0]

    # The full model, with the same keys hidden from the same layers on.
    full = model.prefill(HEAD, tokens, duration, stamps)
    embeds = model.language_model.get_input_embeddings()
    parts, places = sequence(model, tokens, duration, stamps)
    length = len(places)
    answer = torch.tensor([TAIL + got])
    whole = torch.cat([parts, embeds(answer[0])])[None]
    where = torch.cat([places, full.next_position + torch.arange(answer.shape[1])])
    causal = torch.ones(len(where), len(where), dtype=torch.bool).tril()

    def mask(alive: Tensor):  # type: ignore[no-untyped-def]
        seen = torch.zeros(len(where), dtype=torch.bool)
        seen[alive] = True
        seen[length + len(TAIL) - 1 :] = True

        def hook(_layer, args, kwargs):  # type: ignore[no-untyped-def]
            allowed = causal & seen | torch.eye(len(where), dtype=torch.bool)
            return args, {**kwargs, "attention_mask": allowed[None, None]}

        return hook

    handles = [
        layer.register_forward_pre_hook(mask(alive), with_kwargs=True)
        for layer, alive in zip(decoder_layers(model.language_model), prefix.alive, strict=True)
    ]
    logits = model.language_model(
        inputs_embeds=whole,
        position_ids=where[None],
        attention_mask=causal[None, None],
    ).logits[0]
    for handle in handles:
        handle.remove()
    assert logits[length + len(TAIL) - 1 : -1].argmax(-1).tolist() == got


def sequence(
    model: NativeVideoLLM, tokens: VideoTokens, duration: float, stamps: list[list[int]] | None
) -> tuple[Tensor, Tensor]:
    """Embeddings (L, D) and positions (L,) of head, stamps and all video tokens."""
    cells = len(tokens) // tokens.grid[0]
    video = model.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
    parts = [model.embed_tokens(torch.tensor(HEAD))]
    for f in range(tokens.grid[0]):
        if stamps is not None:
            parts.append(model.embed_tokens(torch.tensor(stamps[f])))
        parts.append(video[f * cells : (f + 1) * cells])
    rows = torch.cat(parts)
    return rows, torch.arange(len(rows))


def test_hooks_are_gone_also_after_an_error() -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    layers = decoder_layers(model.language_model)

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) for m in layers.modules())

    prefix = model.prefill(HEAD, tokens, duration, tail=TAIL, method=ByAttention(keep=0.25))
    model.generate_from(prefix, [TAIL[-1:]], max_new_tokens=2, eos=-1)
    assert hooks() == 0

    class Broken(ByAttention):
        def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        model.prefill(HEAD, tokens, duration, tail=TAIL, method=Broken(keep=0.25))
    assert hooks() == 0


@pytest.mark.parametrize("budget", [1, 2, 7, 23])
def test_any_budget_is_met_exactly(budget: int) -> None:
    model = hub_model("siglip", "qwen3", downsample=2)
    tokens, duration = clip_tokens(model)
    prefix = model.prefill(HEAD, tokens, duration, tail=TAIL, method=ByAttention(), budget=budget)
    assert prefix.kept is not None and len(prefix.kept) == budget
    assert prefix.cache.layers[-1].keys.shape[2] == len(HEAD) + budget + len(TAIL) - 1


@pytest.mark.parametrize("name", [n for n in names() if find(n).stage == "prefill"])
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_every_prefill_method_works_in_a_decoder(name: str, keep: float) -> None:
    model = hub_model("siglip", "qwen3", downsample=2)
    tokens, duration = clip_tokens(model)
    method = build(name, keep=keep)
    prefix = model.prefill(HEAD, tokens, duration, tail=TAIL, method=method)
    assert prefix.kept is not None and len(prefix.kept) == method.goal(tokens)
    assert len(model.generate_from(prefix, [TAIL[-1:]], max_new_tokens=3, eos=-1)[0]) == 3
    assert prefix.video_per_layer() == sorted(prefix.video_per_layer(), reverse=True)


def test_the_cache_of_early_layers_keeps_what_the_last_filter_kept() -> None:
    model = hub_model("siglip", "qwen3", downsample=2)
    tokens, duration = clip_tokens(model)
    chain = build("mustdrop-filter,mustdrop-cache:untouched=0", keep=0.25)
    before, late = chain.before_decoder(tokens)
    assert before is tokens and [budget for _, budget in late] == [6, 6]
    prefix = model.prefill(HEAD, tokens, duration, tail=TAIL, method=late[0][0], budget=6)
    assert prefix.video_per_layer()[0] == len(tokens)
    evicted = evict(prefix, late[1][0], tokens)
    assert set(evicted.video_per_layer()) == {6}
    text = len(HEAD) + len(TAIL) - 1
    assert all(layer.keys.shape[2] == text + 6 for layer in evicted.cache.layers)
    assert len(model.generate_from(evicted, [TAIL[-1:]], max_new_tokens=3, eos=-1)[0]) == 3
    plain = model.prefill(HEAD, tokens, duration)
    with pytest.raises(InputError, match="mustdrop-filter,mustdrop-cache"):
        evict(plain, late[1][0], tokens)


@torch.inference_mode()
def test_the_towers_own_attention_comes_as_signals() -> None:
    for vision in ("siglip", "clip", "dinov2"):
        model = hub_model(vision)
        pixels = torch.rand(2, 3, *[model.vision.image_size] * 2)
        cells, signals = model.vision.with_signals(pixels)
        assert torch.equal(cells, model.vision(pixels))
        patches = model.vision.side**2
        assert signals["cls-attention"].shape == (2, patches)
        model.vision.model.set_attn_implementation("eager")
        maps = model.vision.model(
            pixel_values=(pixels - pixels.new_tensor(model.vision.mean).view(1, 3, 1, 1))
            / pixels.new_tensor(model.vision.std).view(1, 3, 1, 1),
            output_attentions=True,
        ).attentions
        if vision == "siglip":
            want = maps[-1].mean((1, 2))
        else:
            want = maps[-2][:, :, 0].mean(1)[:, -patches:]
        assert torch.allclose(signals["cls-attention"], want, atol=1e-6)


@torch.no_grad()
def test_importance_by_blocks_and_groups_of_heads_is_that_of_the_whole_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seventy tokens are several blocks; two heads share a key."""
    monkeypatch.setattr(pruning, "_BLOCK", 1)  # as few rows as it takes
    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    attention, x = Qwen2Attention(config, layer_idx=0), 9 * torch.randn(70, 32)
    angle = torch.rand(70, 4).repeat(1, 2) * 6
    made = (x @ p.weight.T + p.bias for p in (attention.q_proj, attention.k_proj))
    queries, keys = (v.unflatten(-1, (-1, 8)).transpose(0, 1)[None] for v in made)
    q, k = apply_rotary_pos_emb(queries, keys, angle.cos()[None], angle.sin()[None])
    logits = q @ k.repeat_interleave(2, dim=1).mT / 8**0.5
    late = torch.ones(70, 70, dtype=torch.bool).triu(1)
    whole = aim.importance(logits.masked_fill(late, torch.finfo(torch.float32).min))[0]
    video, words = torch.arange(5, 60), torch.arange(60, 70)
    given = build("aim-prune", keep=0.5), attention, x, angle.cos(), angle.sin(), video, words
    found, _ = probe(*given)
    assert torch.allclose(found["decoder-importance"], whole[video], rtol=1e-4, atol=1e-7)
