"""Decoders of other builds than Qwen's and Llama's, as the one of those that costs the same.

Means over the layers where these differ (experts in some, heads of two sizes), the experts that one
token goes through as one MLP, keys only where a layer has its own. Sliding windows are counted as
if every layer saw the whole prompt.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_KINDS = ("glm4v", "gemma4", "molmo2", "ernie4_5_vl", "exaone4", "cosmos3_edge")


def as_plain(config: Any) -> Any:
    """A text model's config as one of a Qwen3 decoder of the same cost; others as they are."""
    if not str(config.model_type).startswith(_KINDS):
        return config
    depth, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    groups, width = _keys(config, depth)
    return SimpleNamespace(
        model_type="qwen3",
        num_hidden_layers=depth,
        hidden_size=int(config.hidden_size),
        intermediate_size=_inner(config, depth),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        vocab_size=int(config.vocab_size),
    )


def _keys(config: Any, depth: int) -> tuple[float, int]:
    """Key heads, and the width of a head, in the mean over the layers."""
    if not str(config.model_type).startswith("gemma4"):
        heads, size = int(config.num_attention_heads), int(config.hidden_size)
        return float(config.num_key_value_heads or heads), int(
            getattr(config, "head_dim", None) or size // heads
        )
    each = [config.per_layer_config[i] for i in range(depth)]
    own = depth - int(getattr(config, "num_kv_shared_layers", 0) or 0)
    width = sum(int(one.head_dim) for one in each) / depth
    held = sum(int(one.num_key_value_heads) * int(one.head_dim) for one in each[:own])
    return held / depth / width, round(width)


def _inner(config: Any, depth: int) -> int:
    """Inner width of what one token's MLP costs with its gate, in the mean over the layers."""
    kind, dense = str(config.model_type), int(config.intermediate_size)
    if kind.startswith("cosmos3_edge"):  # no gate: two products where others have three
        return round(2 * dense / 3)
    if kind.startswith("gemma4"):
        chosen = int(config.top_k_experts or 0) if config.enable_moe_block else 0
        return dense + chosen * int(config.moe_intermediate_size or 0)
    if kind.startswith("glm4v_moe"):
        each, first = int(config.moe_intermediate_size), int(config.first_k_dense_replace)
        sparse = (int(config.num_experts_per_tok) + int(config.n_shared_experts)) * each
        return round((first * dense + (depth - first) * sparse) / depth)
    if kind.startswith("ernie4_5_vl"):
        text, pictures = (int(n) for n in config.moe_intermediate_size)
        sparse = int(config.moe_k) * pictures + int(config.moe_num_shared_experts) * text
        count = sum(kind == "sparse" for kind in config.mlp_layer_types)
        return round((count * sparse + (depth - count) * dense) / depth)
    return dense
