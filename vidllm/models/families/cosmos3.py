"""Cosmos3-Edge: M-RoPE, a packed SigLIP tower, times written before every frame."""

from __future__ import annotations

from .family import Adapter
from .qwen3_vl import Qwen3VL


class Cosmos3Edge(Qwen3VL):
    """The prompt is that of Qwen3-VL; tokens are folded behind the tower."""

    mrope = token_types = True
    tower_end_name = "post_layernorm"
    attention = Adapter.attention
