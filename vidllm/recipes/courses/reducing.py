"""Token reduction while training: a plan for every clip, with gradients where a method has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidllm.compressors import Compressor, build
from vidllm.compressors.mrt5 import Mrt5, gate
from vidllm.compressors.pyra import Modulation, Pyra
from vidllm.compressors.shared.in_tower import falling
from vidllm.compressors.shared.learned import Learned
from vidllm.encoders.vision import HubTower
from vidllm.encoders.vision.merging import tower_layers
from vidllm.models.native.model import NativeVideoLLM
from vidllm.stage.training.trainee import Reduced
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

#: Below half of its scale MrT5's gate deletes.
_DELETES = -5.0


class Reductions(nn.ModuleDict):
    """The methods that training meets, those of one name with one module of weights.

    Args:
        model: whose tokens they reduce. specs: all of the mixture, and that of the result.
        folder: where trained weights of methods may lie, to go on from; None for none.
    """

    def __init__(self, model: NativeVideoLLM, specs: Sequence[str], folder: Path | None) -> None:
        super().__init__()
        self.methods: dict[str, Compressor] = {}
        for spec in dict.fromkeys(specs):
            with_module = partial(self._with_module, model=model, folder=folder)
            self.methods[spec] = build(spec).mapped(with_module)

    def _with_module(
        self, method: Compressor, model: NativeVideoLLM, folder: Path | None
    ) -> Compressor:
        name = method.name.replace("-", "_")
        if isinstance(method, Learned):
            if name not in self:
                trained = method if folder is None else cast(Learned, method.trained_in(folder))
                blank = torch.zeros(1, 1, 1, int(model.language_model.config.hidden_size))
                self[name] = trained.ready(VideoTokens.from_grid(blank, [0.0], 1.0))
            return replace(method, module=self[name], weights=None)
        if isinstance(method, Pyra):
            if name not in self:
                self[name] = new_modulation(method, model)
                if folder is not None and (folder / "pyra.safetensors").is_file():
                    self[name].load_state_dict(load_file(folder / "pyra.safetensors"))
            module = cast("Modulation | nn.ModuleList", self[name])
            return replace(method, modulation=module, weights="")
        return method

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The weights by method, as they lie beside a model."""
        return {
            name.replace("_", "-"): {
                k: v.detach().cpu().float().contiguous() for k, v in module.state_dict().items()
            }
            for name, module in self.items()
        }


def new_modulation(method: Pyra, model: NativeVideoLLM) -> nn.Module:
    """PYRA's parameters for a model: one modulation a layer of a ViT, else one for its output."""
    side, tower = model.grid_side, model.vision
    if not isinstance(tower, HubTower) or not method.tower:
        return Modulation(int(model.language_model.config.hidden_size), max(1, side * side // 4))
    layers = len(tower_layers(tower.model))
    shape = TowerShape(layers, tower.special, 1, side * side)
    counts = [side * side, *falling(shape, max(1, round(method.keep * side * side)), layers)]
    width = tower.hidden_size * model.config.downsample**2
    pairs = [max(1, before - after) for before, after in pairwise(counts)]
    return nn.ModuleList(Modulation(width, count) for count in pairs)


def padded(clips: Sequence[VideoTokens], bias: Sequence[Tensor] | None = None) -> Reduced:
    """The tokens of every clip in one batch; shorter clips are filled up and hidden.

    Args:
        bias: (L,) of every clip, added to the logits of whoever attends to its tokens.
    """
    longest = max(map(len, clips))
    device = clips[0].features.device
    uneven = any(len(clip) != longest for clip in clips)
    hidden: Tensor | None = None
    if uneven or bias is not None:
        own = bias or [torch.zeros(len(clip), device=device) for clip in clips]
        hidden = torch.stack([_filled(b, longest, -torch.inf) for b in own])
    return Reduced(
        torch.stack([_filled(clip.features, longest, 0.0) for clip in clips]),
        torch.stack([_filled(clip.span.to(device).float(), longest, 0.0) for clip in clips]),
        torch.stack([_filled(clip.position.to(device), longest, 0) for clip in clips]),
        torch.stack([clip.source.to(device) for clip in clips]),
        hidden,
    )


def _filled(rows: Tensor, length: int, value: float) -> Tensor:
    missing = length - len(rows)
    return (
        rows if not missing else torch.cat([rows, rows.new_full((missing, *rows.shape[1:]), value)])
    )


class DeletionControl(nn.Module):
    """MrT5's controller: how much the mean of the gate counts, so that a share is deleted.

    With err the share that is still to be deleted, p <- 0.9 p + 0.1 k_p err, i <- i + k_i err, and
    the weight is max(0, p + i); k_p is 0.5 and k_i 1e-5, as the authors have it.
    """

    def __init__(self, k_p: float = 0.5, k_i: float = 1e-5) -> None:
        super().__init__()
        self.k_p, self.k_i = k_p, k_i
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("i", torch.zeros(()))

    def weight(self, deleted: Tensor, target: float) -> Tensor:
        """The weight behind a step in which so much was deleted."""
        state: Any = self
        error = target - deleted.detach()
        state.p.mul_(0.9).add_(0.1 * self.k_p * error)
        state.i.add_(self.k_i * error)
        return (state.p + state.i).clamp(min=0).clone()


def softly_deleted(
    method: Mrt5, clips: Sequence[VideoTokens], control: DeletionControl
) -> tuple[Reduced, dict[str, Tensor]]:
    """Nothing leaves, but the gate is added to the logits of whoever attends to a token (MrT5).

    Returns:
        The tokens, and as losses "deletion", the weighted mean of the gate, and "deleted", the
        share that would leave.
    """
    logits = [method.score(clip) for clip in clips]
    gates = [gate(row) for row in logits]
    every = torch.cat(gates)
    deleted = (every < _DELETES).float().mean()
    weight = control.weight(deleted, 1.0 - method.keep)
    told = {"deletion": weight * every.mean(), "deleted": deleted.detach()}
    return padded(clips, gates), told
