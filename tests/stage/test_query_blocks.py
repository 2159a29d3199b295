"""Attention by blocks of queries is torch's own, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from vidllm.stage.training.data import block_mask
from vidllm.stage.training.query_blocks import BLOCK, QUERY_BLOCKS, attend


def drawn(heads: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, heads, length, 8).to(dtype).requires_grad_()


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_attention_of_torch(length: int, causal: bool, groups: int) -> None:
    torch.manual_seed(length)
    query, key, value = drawn(6, length), drawn(6 // groups, length), drawn(6 // groups, length)
    way_back = torch.randn_like(query)
    wanted = F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=0.3, enable_gqa=groups > 1
    )
    got = attend(query, key, value, scale=0.3, causal=causal)
    assert torch.allclose(got, wanted, atol=1e-5)
    inputs = (query, key, value)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, way_back),
        torch.autograd.grad(wanted, inputs, way_back),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_questions_see_the_video_and_themselves(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    slot = torch.tensor([[0] * 30 + [1] * 20, [0] * 10 + [1] * 25 + [-1] * 15])
    mask = block_mask(slot, BLOCK + 9, torch.float32)  # its least number is none of bfloat16
    query, key, value = (drawn(2, mask.shape[-1], dtype) for _ in range(3))
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(dtype))
    got = attend(query, key, value, mask, scale=8**-0.5, causal=True)
    assert got.isfinite().all()
    assert torch.allclose(got, wanted, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_dropped_weights_are_made_up_for() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(2, 5), drawn(2, 400), torch.ones(2, 2, 400, 8)
    got = attend(query * 0, key, value, scale=1.0, causal=False, dropout=0.5)
    assert not torch.allclose(got, torch.ones_like(got), atol=1e-3)
    assert torch.allclose(got.mean(), torch.tensor(1.0), atol=0.1)


def test_queries_behind_a_cache_see_all_of_it() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(2, 3), drawn(2, 10), drawn(2, 10)
    got = attend(query, key, value, scale=1.0, causal=True)
    seen = torch.ones(3, 10, dtype=torch.bool).tril(7)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=1.0)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_model_answers_as_with_its_own_attention() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
    model = Qwen2ForCausalLM(config).eval()
    ids = torch.randint(0, 50, (2, BLOCK + 5))
    padded = torch.ones_like(ids)
    padded[1, :7] = 0
    with torch.no_grad():
        wanted = model(ids, attention_mask=padded).logits
        spoken = model.generate(ids, attention_mask=padded, max_new_tokens=4, do_sample=False)
        model.set_attn_implementation(QUERY_BLOCKS)
        got = model(ids, attention_mask=padded).logits
        again = model.generate(ids, attention_mask=padded, max_new_tokens=4, do_sample=False)
    assert torch.allclose(got[padded.bool()], wanted[padded.bool()], atol=1e-4)
    assert torch.equal(spoken, again)
