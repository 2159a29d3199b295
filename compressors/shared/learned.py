"""What learned methods share: a module that is made when needed, and places for new tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.tokens import Mix, VideoTokens

from ..base import Compressor


class Places(NamedTuple):
    """Where new tokens stand: `slot` (K,) is their order, the rest is as in `Mix`."""

    slot: Tensor
    target: Tensor
    representative: Tensor
    span: Tensor | None

    def mix(self, features: Tensor, dtype: torch.dtype) -> Mix:
        """The selection, with features (K, D') in the tokens' own order."""
        made = features[self.slot.to(features.device)].to(dtype)
        return Mix(made, self.target, self.representative, self.span)


def place(
    tokens: VideoTokens,
    order: Tensor,
    features: Tensor,
    prefer: Tensor,
    carrier: Tensor,
    *,
    span: Tensor | None = None,
    faithful: bool = False,
) -> Mix:
    """Give every new token a place of its own (`places`), with features (K, D'), K <= L."""
    found = places(tokens, order, prefer, carrier, span=span, faithful=faithful)
    return found.mix(features, tokens.features.dtype)


def places(
    tokens: VideoTokens,
    order: Tensor,
    prefer: Tensor,
    carrier: Tensor,
    *,
    span: Tensor | None = None,
    faithful: bool = False,
) -> Places:
    """Give every new token a place of its own; it stands at the token that it prefers.

    Where several prefer one token, the later ones take the next ones in time. The token at which
    one stands is always carried by it.

    Args:
        tokens: the L tokens before. order: (L,) their indices in time order; ranks count in it.
        prefer: (K,) the preferred rank of each new token, K <= L.
        carrier: (L,) for every rank the new token that carries it, or -1.
        span: (K, 2) seconds that they cover beside their place; None for those of what they carry.
        faithful: leave the new tokens in their own order in place of time order.
    """
    count = torch.arange(len(prefer))
    slot = torch.argsort(prefer, stable=True)
    rank = count + (prefer[slot] - count).cummax(0).values
    rank = torch.minimum(rank, len(tokens) - len(prefer) + count)
    if faithful:
        slot, rank = count, torch.empty_like(rank).scatter_(0, slot, rank)
    number = torch.empty_like(slot).scatter_(0, slot, count)
    in_time = torch.where(carrier < 0, -1, number[carrier.clamp(min=0)])
    in_time[rank] = count
    target = torch.empty_like(in_time).scatter_(0, order, in_time)
    if span is not None:
        own = tokens.span[order[rank]]
        low = torch.minimum(span[slot, 0], own[:, 0])
        span = torch.stack([low, torch.maximum(span[slot, 1], own[:, 1])], dim=1)
    return Places(slot, target, order[rank], span)


@dataclass
class Learned(Compressor):
    """A method with a module, which is made for the width of the features when first needed.

    Where neither its owner nor the model's folder has trained weights (`trained_in`) it runs on
    some drawn from `seed`, and says so (`notes`). For training call `ready(tokens)` once and train
    `module`; save its `state_dict()` as safetensors for `load`.

    Attributes:
        seed: of the weights before training.
        weights: a safetensors file with the state of the module.
        module: the module itself, in place of weights.
    """

    seed: int = field(default=0, metadata={"help": "of the weights before training"})
    weights: str | None = field(default=None, metadata={"help": "safetensors file, if trained"})
    module: nn.Module | None = field(
        default=None, compare=False, repr=False, metadata={"help": "a torch module, from Python"}
    )

    has_parameters = True
    makes_tokens = True
    untrained: ClassVar[str] = "what it leaves of a video means nothing"
    """What comes of it before training."""
    width_of: ClassVar[tuple[str, int]] = ("", 0)
    """A parameter of the module and the axis that has the width of the features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.module  # from a spec string it would be a text
        if not isinstance(given, nn.Module | None):
            raise InputError(f"{self.name}: module is a torch module; a file goes with weights")
        if self.weights is not None and given is not None:
            raise InputError(f"{self.name}: give either weights or module")
        if self.weights is not None:
            self.load(self.weights)

    def notes(self) -> tuple[str, ...]:
        """Whether the weights are those that were drawn here, and no training changed them."""
        if self.module is not None and getattr(self.module, "drawn", None) != changes(self.module):
            return ()
        return (
            f"{self.name} runs on untrained weights (random, seed {self.seed}; no trained ones are "
            f"shipped): {self.untrained}; train it and give {self.name}:weights=FILE",
        )

    def trained_in(self, folder: Path) -> Compressor:
        """See `Compressor.trained_in`; a module that was only drawn here gives way."""
        file = folder / f"{self.name}.safetensors"
        if self.weights is not None or not self.notes() or not file.is_file():
            return self
        return replace(self, module=None, weights=str(file))

    @abstractmethod
    def make(self, width: int) -> nn.Module:
        """The module before training, for features of this width."""

    def load(self, path: str) -> None:
        """Take the module's state from a safetensors file.

        Raises:
            InputError: no such file, or one for another method or other options.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.name}: no safetensors weights in {path}") from error
        name, axis = self.width_of
        try:
            module = self._made(state[name].shape[axis])
            module.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError) as error:
            reason = "holds weights of another method or for other options"
            raise InputError(f"{self.name}: {path} {reason}") from error
        self.module = module

    def ready(self, tokens: VideoTokens) -> nn.Module:
        """The module on the device of the features.

        Raises:
            InputError: a module for features of another width.
        """
        width = tokens.features.shape[1]
        if self.module is None:
            self.module = self._made(width)
        made_for = self.module.get_parameter(self.width_of[0]).shape[self.width_of[1]]
        if made_for != width:
            raise InputError(f"{self.name}: weights for width {made_for} met features of {width}")
        return self.module.to(tokens.features.device)

    def _made(self, width: int) -> nn.Module:
        # Outside inference mode, so that it can be trained later; the global draws stay as is.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.Generator().manual_seed(self.seed).get_state())
            module = self.make(width).float().eval()
        module.drawn = changes(module)  # type: ignore[assignment]  # as many while it is untrained
        return module


def changes(module: nn.Module) -> tuple[int, ...]:
    """How often every parameter was changed in place, as torch counts it: training does so."""
    return tuple(parameter._version for parameter in module.parameters())
