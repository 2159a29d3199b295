"""Attention masks of batches that were cut, in the form that the model's own attention takes.

SDPA takes a bool mask, eager attention an additive one, FlashAttention the columns that hold a
token (B, K), FlexAttention a block mask. The library keeps a function for each in its public
`AttentionMaskInterface`; here it is called for what a layer holds, so that any attention which is
registered there is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface

from vidllm.errors import InputError

from .bypass import in_checkpoint
from .pruning import BatchPruner, VideoRun
from .state import bare


def makes_masks(attention: str) -> bool:
    """Whether the library has a mask function for an attention of this name."""
    return attention in AttentionMaskInterface()


def layer_mask(attention: str, valid: Tensor, queries: int, states: Tensor) -> Any:
    """The mask of the last `queries` of K columns of a layer; None where it needs none.

    Args:
        attention: name of the attention. valid: (B, K) bool, columns that hold a token.
        states: of the layer, for their dtype and device.
    """
    columns, device = valid.shape[1], states.device
    return AttentionMaskInterface()[attention](
        batch_size=len(valid),
        q_length=queries,
        kv_length=columns,
        q_offset=columns - queries,
        attention_mask=valid.to(device, torch.bool),
        dtype=states.dtype,
        device=device,
    )


class HubPruner(BatchPruner):
    """The cuts between the layers of a hub model, whatever its attention.

    Attributes:
        attention: its name.
    """

    attention = "sdpa"

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, and off again whatever happens."""
        self.outside = torch.is_grad_enabled(), in_checkpoint()
        with super().attached():
            yield

    def _before(self, i: int) -> Any:
        cut = super()._before(i)

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.outside != (torch.is_grad_enabled(), in_checkpoint()):
                raise InputError(
                    f"{self.method.name} leaves tokens out between the decoder's layers, which "
                    "gradient checkpointing runs a second time in backward: switch it off, for "
                    "example with model.gradient_checkpointing_disable()"
                )
            return cut(layer, args, kwargs)

        return hook

    def _masked(self, mask: Any, hidden: Tensor) -> Any:
        """The mask of what is left; made once between two cuts."""
        if self._mask is None or self._mask[0] != id(mask):
            made = layer_mask(self.attention, self.live, self.live.shape[1], hidden)
            self._mask = (id(mask), made)
        return self._mask[1]

    def _choose(self, i: int, run: VideoRun, line: list[Tensor], stays: Tensor) -> list[Tensor]:
        """One video's cut, without holding on to the states that it was chosen by."""
        line = super()._choose(i, run, line, stays)
        run.tokens = bare(run.tokens, signals=True)
        return line
