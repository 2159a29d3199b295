"""Exponential moving average of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Average:
    """Exponential moving average of a model's floating-point state."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [v.detach().clone() for v in self._live(model)]

    @staticmethod
    def _live(model: torch.nn.Module) -> list[Tensor]:
        return list(model.parameters())

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self._live(model), 1 - decay)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange the model's values with the average's; a second call undoes it."""
        for mine, live in zip(self.values, self._live(model), strict=True):
            held = live.detach().clone()
            live.copy_(mine)
            mine.copy_(held)

    @torch.no_grad()
    def hold(self, model: torch.nn.Module) -> None:
        """Take the live values of parameters that are frozen from now on."""
        for mine, live in zip(self.values, self._live(model), strict=True):
            if not live.requires_grad:
                mine.copy_(live)

    @torch.no_grad()
    def hold_all(self, model: torch.nn.Module) -> None:
        """Begin again with the live values of all parameters."""
        torch._foreach_copy_(self.values, self._live(model))

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.values, state["values"], strict=True):
            mine.copy_(saved)
