"""Qwen2-VL: M-RoPE whose time counts pairs of frames; no seconds are told."""

from __future__ import annotations

from .qwen3_vl import Qwen3VL


class Qwen2VL(Qwen3VL):
    """The grid of Qwen3-VL, in one piece: no times between frames."""

    family = "Qwen2-VL"
    stamp = None
