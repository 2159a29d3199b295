"""MustDrop in its three stages: windows in the vision tower, the filter, the cache."""

from __future__ import annotations

import pytest
import torch
from authors import mustdrop
from authors import positions as rope
from test_methods_prefill import clip, golden

from vidllm.compressors import get
from vidllm.compressors.mustdrop_filter import key_tokens
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens


@pytest.mark.parametrize("case", ["mustdrop_spatial_6x6_3x3", "mustdrop_spatial_24x24_real"])
def test_mustdrop_windows_are_the_authors(case: str) -> None:
    data = golden(case)
    window = (int(data["window"][0]), int(data["window"][1]))
    x, size = mustdrop.merge_windows(data["x"], window, float(data["threshold"]))
    assert torch.allclose(x, data["out"], atol=1e-5) and torch.equal(size, data["size"])
    side = round((data["x"].shape[1] - 1) ** 0.5)
    tokens = VideoTokens.from_grid(data["x"][:, 1:].view(1, side, side, -1), [0.0], 1.0)
    faithful = get("mustdrop", threshold=0.8, faithful=True)(tokens)
    assert torch.allclose(faithful.features, data["out"][0, 1:], atol=1e-5)
    default = get("mustdrop", threshold=0.8)(tokens)
    assert torch.equal(default.features, faithful.features[faithful.position.argsort()])


def test_mustdrop_batches_wait_for_the_least_redundant_only_when_faithful() -> None:
    x = torch.randn(2, 17, 5, generator=torch.Generator().manual_seed(1))
    x[0, 1:] = 1.0
    x[1, [1, 2, 5, 6]] = torch.ones(5)
    out, size = mustdrop.merge_windows(x, (2, 2), 0.9)
    assert size[..., 0].tolist() == [[1, 4] + [1] * 12] * 2 and bool((out[:, 1] == 1).all())
    tokens = VideoTokens.from_grid(x[:, 1:].view(2, 4, 4, 5), [0.0, 1.0], 2.0)
    theirs = get("mustdrop", threshold=0.9, window=2, faithful=True)(tokens)
    assert torch.allclose(theirs.features.view(2, 13, 5), out[:, 1:], atol=1e-6)
    assert get("mustdrop", threshold=0.9, window=2)(tokens).per_frame().tolist() == [4, 13]
    same, ones = mustdrop.merge_windows(x, (2, 2), 1.5)
    assert torch.equal(same, x) and bool((ones == 1).all())
    with pytest.raises(InputError, match="does not divide"):
        mustdrop.merge_windows(x)


def test_mustdrop_merges_the_likest_part_then_windows_of_windows_then_frames() -> None:
    row = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.0]])
    tokens = VideoTokens.from_grid(row.view(1, 2, 2, 2), [0.0], 1.0)
    after = get("mustdrop", budget=3, window=2)(tokens)
    assert after.source.tolist() == [0, 1, 0, 2]
    flat = clip((6, 5, 7)).with_features(torch.zeros(210, 6))
    assert get("mustdrop", budget=36)(flat).per_frame().tolist() == [6] * 6
    assert get("mustdrop", budget=6)(flat).size.tolist() == [35] * 6
    assert get("mustdrop", budget=3)(flat).span.tolist() == [[0.0, 1.5], [1.5, 3.5], [3.5, 6.0]]


def test_mustdrop_filter_is_the_authors_and_its_order_theirs_at_any_threshold() -> None:
    data = golden("mustdrop_dualfilter_a")
    attention, first, count = data["attn"], int(data["v_token_start"]), int(data["img_seq"])
    both = float(data["global_thr"]), float(data["individual_thr"])
    kept = mustdrop.dual_filter(attention, first, count, *both)
    assert torch.equal(kept, data["kept"])
    rows = attention[0, :, first + count :, first : first + count].mean(0)
    tokens = VideoTokens.from_grid(torch.zeros(5, 1, 2, 4), [0.0, 1.0, 2.0, 3.0, 4.0], 5.0)
    tokens = tokens.with_signals(decoder_text_attention=rows.T)
    options = {"global_threshold": both[0], "individual_threshold": both[1]}
    for scale in (0.5, 0.9, 1.0, 1.2, 1.5):
        theirs = mustdrop.dual_filter(attention, first, count, *(scale * t for t in both))
        if len(theirs):
            after = get("mustdrop-filter", budget=len(theirs), **options)(tokens)
            assert torch.equal(after.position, theirs)
    peak = float(rows[:, 3].max())  # a value that equals the threshold stays
    assert 3 in mustdrop.dual_filter(attention, first, count, 1.0, peak).tolist()


def test_mustdrop_key_tokens_of_every_frame_stay() -> None:
    tokens = clip((3, 3, 4), seed=2)
    cls = torch.rand(36, generator=torch.Generator().manual_seed(5))
    keys = key_tokens(tokens, cls, 0.2)
    best = torch.cat([12 * f + mustdrop.key_set(cls[12 * f :][:12], 0.2) for f in range(3)])
    assert torch.equal(torch.nonzero(keys).flatten(), best.sort().values)
    for known in ({"cls_attention": cls}, {"key_tokens": keys}):
        after = get("mustdrop-filter", budget=9, key_share=0.2)(tokens.with_signals(**known))
        assert torch.equal(after.position, torch.nonzero(keys).flatten())


def test_mustdrop_in_a_decoder_is_the_authors() -> None:
    data = golden("mustdrop_llama_prefill")
    first, left, length = int(data["v_token_start"]), int(data["img_seq"]), 45
    both = float(data["global_thr"]), float(data["individual_thr"])
    x, keys, chosen, caches = data["inputs_embeds"], data["key_set"].sort().values, [], []
    cuts = (3, 7, 11, 15)
    for layer in range(32):
        here = f"sd/layers.{layer}."
        w = {k.removeprefix(here): v.T for k, v in data.items() if here in k and "proj" in k}
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        q, k, v = (
            (normed @ w[f"self_attn.{p}_proj.weight"]).unflatten(-1, (4, 8)).transpose(1, 2)
            for p in "qkv"
        )
        turn = rope.angles(torch.arange(x.shape[1]), rope.inverse_frequencies(8))  # counted anew
        q, k = rope.rotate(q, turn), rope.rotate(k, turn)
        late = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(late, -torch.inf)
        attention = scores.softmax(-1)
        x = x + (attention @ v).transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"]
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        gate, up = (normed @ w[f"mlp.{p}_proj.weight"] for p in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w["mlp.down_proj.weight"]
        caches.append((k, v))
        if layer + 1 in cuts:
            kept = mustdrop.dual_filter(attention, first, left, *both)
            assert torch.equal(kept, data[f"filter_keep_stage{len(chosen)}"])
            kept = torch.cat([kept, keys]).unique()
            keys = torch.nonzero(torch.isin(kept, keys)).flatten()
            tail = torch.arange(first + left, x.shape[1])
            chosen.append(torch.cat([torch.arange(first), first + kept, tail]))
            x, left = x[:, chosen[-1]], len(kept)
    assert torch.allclose(
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6), data["last_hidden"], atol=1e-3
    )
    for layer, index in enumerate(mustdrop.output_aware(chosen, cuts, 32)):
        k, v = (c if index is None else c[:, :, index] for c in caches[layer])
        assert k.shape[2] == int(data["cache_len"][layer])
        if f"cache_k_layer{layer}" in data:
            assert torch.allclose(k, data[f"cache_k_layer{layer}"], atol=1e-3)
            assert torch.allclose(v, data[f"cache_v_layer{layer}"], atol=1e-3)
    early = mustdrop.output_aware(chosen, cuts, 40, untouched=0)
    assert [i is None for i in early] == [False] * 15 + [True] * 25 and length == x.shape[1] + 7


def test_output_aware_composes_backwards() -> None:
    lists = [torch.tensor([0, 2, 4, 5, 6]), torch.tensor([0, 1, 4]), torch.tensor([1, 2])]
    index = mustdrop.output_aware(lists, (2, 4, 5), 7)
    assert [None if i is None else i.tolist() for i in index] == [
        None, [2, 6], [1, 4], [1, 4], [1, 2], None, None
    ]  # fmt: skip
    tokens = clip((1, 1, 6)).with_signals(prefill_survivors=torch.tensor([0, 3, 1, 3, 2, 0.0]))
    assert get("mustdrop-cache", budget=2)(tokens).position.tolist() == [1, 3]
