"""DivPrune (ModelTC/LightCompress): the share of a clip that it keeps."""

from __future__ import annotations

from torch import Tensor

from vidllm.compressors.divprune import pick
from vidllm.errors import InputError


def select(features: Tensor, threshold_ratio: float, faithful: bool = False) -> Tensor:
    """The tokens that DivPrune keeps: round(threshold_ratio * N) of them (Python's rounding).

    Args:
        features: (N, D) or (T, n, D), all tokens of the video.
        threshold_ratio: share kept, in [0, 1]. faithful: as for `pick`; indices may then repeat.

    Returns:
        (k,) kept indices into N, sorted, on the CPU.

    Raises:
        InputError: a share outside [0, 1].
    """
    if not 0 <= threshold_ratio <= 1:
        raise InputError(f"divprune: threshold_ratio must be in [0, 1], not {threshold_ratio}")
    x = features.reshape(-1, features.shape[-1])
    return pick(x, round(threshold_ratio * x.shape[0]), faithful).sort().values.cpu()
