"""Labels of prompts whose tokens are left out: the model's own loss, over the text that stays.

A model computes its loss behind its decoder, of the tensor of labels that it was called with. So it
is called with a copy, and when it is known what the last layer reads, the copy is cut to that in
place. Whatever the family's loss adds or divides by stays its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError

#: The label of what is not learnt, as transformers has it.
IGNORE = -100


def held_labels(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Tensor] | None:
    """A model's arguments by name with a copy of its labels, and this copy; None without labels.

    Raises:
        InputError: a loss that counts on the full prompt.
    """
    if args:
        named = inspect.signature(model.forward).bind_partial(*args).arguments
        rest = [name for name in named if name in ("args", "kwargs")]
        kwargs = kwargs if rest else {**named, **kwargs}
    if kwargs.get("shift_labels") is not None:
        raise InputError("compress leaves tokens out, so shift_labels do not fit: pass labels")
    labels = kwargs.get("labels")
    if labels is None:
        return None
    config = model.config.get_text_config()
    routed = kwargs.get("output_router_logits")
    if getattr(config, "output_router_logits", False) if routed is None else routed:
        raise InputError(
            "the balance of experts is counted over the full prompt, which compress shortens: "
            "leave out output_router_logits"
        )
    # Where parts lie on several devices the model would copy them there by itself, and lose ours.
    place = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    copy = labels.detach().to(labels.device if place is None else place, copy=True)
    return {**kwargs, "labels": copy}, copy


def left_labels(labels: Tensor, rows: Sequence[Tensor], valid: Tensor, text: Tensor) -> Tensor:
    """The labels (B, W) of what is left of prompts; a video's tokens and a row's first have none.

    Args:
        labels: (B, L) of the full prompts. rows: for every row the columns (n,) that are left.
        valid: (B, W) bool, where they stand now. text: (B, L) bool on the CPU.

    Raises:
        InputError: labels that are not those of the prompt.
    """
    if labels.shape != text.shape:
        raise InputError(
            f"labels must be {tuple(text.shape)} as the prompt, not {tuple(labels.shape)}"
        )
    full = labels.cpu().masked_fill(~text, IGNORE)
    made = full.new_full(tuple(valid.shape), IGNORE)
    for row, columns in enumerate(rows):
        own = full[row, columns]
        own[:1] = IGNORE  # what stands before it is nothing, or padding
        made[row, valid[row].cpu()] = own
    return made.to(labels.device)


@torch.no_grad()
def cut_labels(labels: Tensor, rows: Sequence[Tensor], valid: Tensor, text: Tensor) -> None:
    """`left_labels`, in place."""
    labels.data = left_labels(labels, rows, valid, text)
