"""PYRA (arXiv 2403.09192): ToMe with tokens that are modulated before they merge.

`modulate` and `merge` are the pure functions, `Modulation` their parameters, `Pyra` the method on
`VideoTokens`.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.bipartite import check_shapes, owners, weighted
from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens

from .base import Compressor
from .registry import register
from .segments import present_frames, share
from .tempme import compose
from .tome import Merged, matching_metric, neighbours, one_round, pair, rows_of


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


def merge(
    metric: Tensor,
    x: Tensor,
    r: int,
    modulation: Modulation,
    size: Tensor | None = None,
    class_token: bool = False,
) -> Merged:
    """ToMe's merge (`tome.merge`, same shapes and order) of modulated sources.

    Raises:
        InputError: shapes that do not fit.
    """
    check_shapes(x, metric, size)
    stays, pairs = pair(metric, r, class_token)
    owner = owners(stays, pairs)
    sizes = torch.ones_like(x[..., :1]) if size is None else size
    if pairs.merged.shape[1] == 0:
        return Merged(x, sizes, owner)
    merged, into = (index[..., None].expand(-1, -1, x.shape[2]) for index in pairs[1:])
    x = x.scatter(1, merged, modulation(x.gather(1, merged), x.gather(1, into)))
    return Merged(*weighted(x, sizes, owner, stays.shape[1]), owner)


@register("pyra")
@dataclass
class Pyra(Compressor):
    """ToMe's rounds inside every frame, with the merging tokens modulated first (PYRA).

    Without parameters it is `tome`. They come as `modulation`, to train or use in Python, or as
    `weights`, a file of `torch.save(modulation.state_dict())`. One modulation serves all rounds
    (the authors have one a layer); a frame's pairs are weighed by their rank in the round. The
    rounds run in one plan, and the budget is met as in `tome`; runs of neighbouring frames, for
    a budget below their number, merge unmodulated.

    Attributes:
        weights: file of a trained modulation.
        modulation: the parameters themselves; wins over `weights`.
    """

    weights: str = field(default="", metadata={"help": "file of a trained modulation"})
    modulation: Modulation | None = field(
        default=None, repr=False, compare=False, metadata={"help": "parameters, from Python"}
    )

    stage = "vision"
    trained = True
    uses = ("vision-keys",)
    paper = "PYRA, arXiv 2403.09192"
    summary = "as tome, with tokens modulated before they merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulation is not None and not isinstance(self.modulation, Modulation):
            raise InputError("pyra: modulation is a Modulation given in Python; use weights=FILE")
        if self.modulation is None and self.weights:
            self.modulation = _load(self.weights)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All rounds inside the frames, or the runs of neighbours."""
        _, frames, counts = present_frames(tokens)
        if len(tokens) == frames.numel():
            return neighbours(tokens, budget)
        width = tokens.features.shape[1]
        if self.modulation is not None and self.modulation.w_b.shape[1] != width:
            raise InputError(
                f"pyra: the modulation is for tokens of width {self.modulation.w_b.shape[1]}, "
                f"these have {width}: train one for this model"
            )
        goals = share(max(budget, frames.numel()), counts.tolist())
        every = torch.arange(len(tokens))
        whole, now = Merge(every, every, "size"), tokens
        while len(now) > sum(goals):
            merged, found = one_round(matching_metric(now), rows_of(now.frame), goals)
            merged = merged.in_order(now.position)
            if self.modulation is None:
                return merged
            now = _modulated(now, found, self.modulation).apply(merged)
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


def _load(file: str) -> Modulation:
    try:
        state = torch.load(Path(file), map_location="cpu", weights_only=True)
        modulation = Modulation(state["w_b"].shape[1], state["w_a"].shape[0])
        modulation.load_state_dict(state)
    except OSError as error:
        raise InputError(f"pyra: cannot read weights {file!r}: {error.strerror}") from error
    except (LookupError, AttributeError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"pyra: {file!r} does not hold a modulation") from error
    return modulation
