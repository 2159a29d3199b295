"""PYRA (arXiv 2403.09192): ToMe with tokens that are modulated before they merge.

`modulate` is the pure function, `Modulation` its parameters, `Pyra` the method on `VideoTokens`.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from .base import InTower
from .registry import register
from .shared.in_tower import falling, rounds
from .shared.segments import present_frames, share
from .tome import Tome, compose, matching_metric, neighbours, one_round, rows_of


def modulate(
    src: Tensor,
    dst: Tensor,
    w_a: Tensor,
    w_b: Tensor,
    norm: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Modulate the r tokens that are about to merge, by what they and their partners hold.

    With s = LN(src + dst), d_c = 2 sigmoid(w_a^T s) over the channels and d_t = 2 sigmoid(s w_b^T)
    - 1 over the tokens, the result is src + (src * d_c) * d_t; w_b = 0 gives src itself.

    Args:
        src, dst: (B, r, C) tokens that merge, best pair first, and what they merge into.
        w_a: (R, 1) weights of the pairs. It ties a layer to the R merges it was trained with;
            for another r its line over the pairs is resampled and scaled by R / r.
        w_b: (1, C) weights of the channels. norm: weight and bias (C,) of the layer norm.

    Returns:
        (B, r, C) in the dtype of `src`, computed in float32 at least.
    """
    exact = torch.promote_types(src.dtype, torch.float32)
    source = src.to(exact)
    w_a, w_b = w_a.to(source), w_b.to(source)
    scale, shift = (None, None) if norm is None else (weight.to(source) for weight in norm)
    both = F.layer_norm(source + dst.to(exact), src.shape[-1:], scale, shift)
    trained, count = w_a.shape[0], src.shape[1]
    if trained != count:
        line = w_a.reshape(1, 1, trained)
        line = F.interpolate(line, size=count, mode="linear", align_corners=False)
        w_a = line.reshape(count, 1) * (trained / count)
    channels = 2 * torch.sigmoid(w_a.T @ both)
    tokens = 2 * torch.sigmoid(both @ w_b.T) - 1
    return (source + source * channels * tokens).to(src.dtype)


class Modulation(nn.Module):
    """The trained parameters of `modulate`; new ones are the identity (w_b = 0).

    Args:
        width: channels C. pairs: merges R that `w_a` weighs, drawn as Kaiming's uniform
            distribution over R inputs.
    """

    def __init__(self, width: int, pairs: int) -> None:
        super().__init__()
        self.w_a = nn.Parameter(torch.empty(pairs, 1).uniform_(-1, 1) / math.sqrt(pairs))
        self.w_b = nn.Parameter(torch.zeros(1, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, src: Tensor, dst: Tensor) -> Tensor:
        """`modulate` with these parameters, on the device of `src`."""
        return modulate(src, dst, self.w_a, self.w_b, (self.norm.weight, self.norm.bias))


@register("pyra")
@dataclass
class Pyra(InTower):
    """ToMe's rounds inside every frame, with the merging tokens modulated first (PYRA).

    Without parameters it is `tome`. They come as `modulation`, to train or use in Python, or as
    `weights`, a file of `torch.save(modulation.state_dict())`. One modulation serves all rounds,
    or, inside a tower, one a layer as the authors have it; a frame's pairs are weighed by their
    rank in the round. The rounds run in one plan, and the budget is met as in `tome`; runs of
    neighbouring frames, for a budget below their number, merge unmodulated.

    It acts where `tome` does: between the attention and the MLP of every layer of a vision
    transformer (and then modulates tokens of the tower's width), else on the tower's output.

    Attributes:
        weights: file of a trained modulation, or of an `nn.ModuleList` of them; safetensors too.
        modulation: the parameters themselves; wins over `weights`.
    """

    weights: str = field(default="", metadata={"help": "file of a trained modulation"})
    modulation: Modulation | nn.ModuleList | None = field(
        default=None, repr=False, compare=False, metadata={"help": "parameters, from Python"}
    )

    has_parameters = True
    same_as = "`tome`, bit by bit, without a trained modulation"
    uses = ("vision-keys",)
    paper = "PYRA, arXiv 2403.09192"
    summary = "as tome, with tokens modulated before they merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        each = self.modulation if isinstance(self.modulation, nn.ModuleList) else [self.modulation]
        if not all(m is None or isinstance(m, Modulation) for m in each):
            raise InputError("pyra: modulation is a Modulation given in Python; use weights=FILE")
        if self.modulation is None and self.weights:
            self.modulation = _load(self.weights)

    def notes(self) -> tuple[str, ...]:
        """Whether the modulation does nothing, as a new one (w_b = 0) or none."""
        weights = [] if self.modulation is None else self.modulation.named_parameters()
        if any(name.endswith("w_b") and bool((w != 0).any()) for name, w in weights):
            return ()
        return (
            "pyra has no trained modulation here (none is shipped): without one it is tome, bit by "
            "bit; give pyra:weights=FILE",
        )

    def trained_in(self, folder: Path) -> Pyra:
        """See `Compressor.trained_in`."""
        file = folder / "pyra.safetensors"
        if self.weights or self.modulation is not None or not file.is_file():
            return self
        return replace(self, weights=str(file))

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """As `Compressor.run`; without a modulation that of `Tome`."""
        if self.modulation is None:
            return Tome().run(tokens, self.goal(tokens, budget), query)
        return super().run(tokens, budget, query)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All rounds inside the frames, or the runs of neighbours."""
        if isinstance(self.modulation, nn.ModuleList):
            raise InputError(
                "pyra: modulations of layers act inside a vision tower; give one for its output"
            )
        return self._rounds(tokens, budget, self.modulation)

    def tower_steps(self, shape: TowerShape, budget: int | None) -> list[TowerStep]:
        """One merge at every layer, with that layer's modulation.

        Raises:
            InputError: modulations of another number of layers.
        """
        own = self.modulation if isinstance(self.modulation, nn.ModuleList) else None
        if own is not None and len(own) != shape.layers:
            raise InputError(
                f"pyra: {len(own)} modulations do not fit a tower of {shape.layers} layers"
            )
        steps = []
        counts = falling(shape, shape.frames if budget is None else budget, shape.layers)
        for layer, count in enumerate(counts):
            modulation = cast("Modulation | None", self.modulation if own is None else own[layer])
            plan = partial(self._rounds, modulation=modulation, front=shape.special)
            steps.append(TowerStep(layer, "attention", partial(rounds, plan, goal=count)))
        return steps

    def _rounds(
        self, tokens: VideoTokens, budget: int, modulation: Modulation | None, front: int = 0
    ) -> Selection:
        _, frames, counts = present_frames(tokens)
        if len(tokens) == frames.numel():
            return neighbours(tokens, budget)
        width = tokens.features.shape[1]
        if modulation is not None and modulation.w_b.shape[1] != width:
            raise InputError(
                f"pyra: the modulation is for tokens of width {modulation.w_b.shape[1]}, "
                f"these have {width}: train one for this place (tower=false: the tower's output)"
            )
        goals = share(max(budget, frames.numel()), counts.tolist())
        every = torch.arange(len(tokens))
        whole, now = Merge(every, every, "size"), tokens
        while len(now) > sum(goals):
            metric, rows = matching_metric(now), rows_of(now.frame)
            merged, found = one_round(metric, rows, goals, front=[front] * len(goals))
            merged = merged.in_order(now.position)
            if modulation is None:
                return merged
            now = _modulated(now, found, modulation).apply(merged)
            whole = compose(whole, merged)
        return Mix(now.features, whole.target, whole.representative)


def _modulated(
    now: VideoTokens, found: list[tuple[Tensor, Tensor]], modulation: Modulation
) -> VideoTokens:
    """The tokens with those that are about to merge modulated, differentiably."""
    features = now.features
    for merged, into in found:
        src, dst = (index.to(features.device) for index in (merged, into))
        new = modulation(now.features[src], now.features[dst])
        features = features.index_copy(0, src.flatten(), new.flatten(0, 1))
    return now.with_features(features)


def _load(file: str) -> Modulation | nn.ModuleList:
    modulation: Modulation | nn.ModuleList
    try:
        if file.endswith(".safetensors"):
            state = load_file(file)
        else:
            state = torch.load(Path(file), map_location="cpu", weights_only=True)
        names = [n.removesuffix("w_b") for n in state if n == "w_b" or n.endswith(".w_b")]
        every = [Modulation(state[n + "w_b"].shape[1], state[n + "w_a"].shape[0]) for n in names]
        modulation = every[0] if names == [""] else nn.ModuleList(every)
        modulation.load_state_dict(state)
    except OSError as error:
        raise InputError(f"pyra: cannot read weights {file!r}: {error.strerror}") from error
    except (
        LookupError,
        AttributeError,
        TypeError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(f"pyra: {file!r} does not hold a modulation") from error
    return modulation
