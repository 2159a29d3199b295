"""Golden vectors: outputs of the authors' own code, as tests/goldens keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of numbers of one file, by name."""
    arrays = np.load(GOLDENS / f"{name}.npz").items()
    return {k: torch.from_numpy(v) for k, v in arrays if v.dtype.kind != "U"}
