"""Weights that are changes to a shipped model: a folder holds what differs, and names the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vidllm.errors import WorkError
from vidllm.errors.writing import sha256

from .shipped import shipped_models, weights_dir

#: Of every model folder.
WEIGHTS = "model.safetensors"


def delta_of(state: Mapping[str, Tensor], base: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What of a state is not as in the model of another folder.

    Args:
        state: of the whole model, in the number type in which it is written.

    Returns:
        The tensors that differ, and the fields of config.json that name the other model.
    """
    from safetensors.torch import load_file

    before = load_file(str(base / WEIGHTS))
    changed = {
        name: value
        for name, value in state.items()
        if name not in before
        or before[name].shape != value.shape
        or not bool((before[name].to(value) == value).all())
    }
    return changed, {"base": base.name, "base_sha256": sha256(base / WEIGHTS)}


def base_of(folder: str, config: Mapping[str, Any]) -> Path | None:
    """The folder of the model that the weights in `folder` are changes to; None for whole ones.

    Raises:
        WorkError: that model does not ship any more, or is another one now.
    """
    name = config.get("base")
    if not name:
        return None
    told = f"the weights in {folder} are changes to the shipped model {name!r}, which"
    if name not in shipped_models():
        raise WorkError(f"{told} is not in the weights folder: get it again")
    base = weights_dir() / str(name)
    if sha256(base / WEIGHTS) != config.get("base_sha256"):
        raise WorkError(
            f"{told} is another one now: get the weights of this version, or train again"
        )
    return base


def whole_state(folder: Path, base: Path) -> dict[str, Tensor]:
    """The base's weights with the changes in them; parts that the model lacks may be among them."""
    from safetensors.torch import load_file

    return {**load_file(str(base / WEIGHTS)), **load_file(str(folder / WEIGHTS))}
