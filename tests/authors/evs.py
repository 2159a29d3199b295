"""EVS (vLLM): the count and the tokens of a full grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidllm.compressors.evs import _NEW
from vidllm.compressors.shared.kernels import row_cosine
from vidllm.errors import InputError


def count(thw: Sequence[int] | Tensor, q: float, spatial_merge_size: int = 1) -> int:
    """How many tokens the published rule keeps: max(n, int(T * n * (1 - q))).

    The product is taken in Python floats and cut, as in the published code: 1000 tokens at
    q = 0.9 leave 99. One frame is kept whatever q says.

    Args:
        thw: (T, H, W), the grid before the spatial merge. q: share removed, in [0, 1).
        spatial_merge_size: side m of the merge; a frame has n = (H // m) * (W // m) tokens.

    Raises:
        InputError: q outside [0, 1), or a grid without tokens.
    """
    if not 0 <= q < 1:
        raise InputError(f"evs: q must be at least 0 and below 1, not {q}")
    frames, cells = _grid(thw, spatial_merge_size)
    return max(cells, int(frames * cells * (1 - q)))


def select(
    features: Tensor, thw: Sequence[int] | Tensor, q: float, spatial_merge_size: int = 1
) -> Tensor:
    """The tokens that EVS keeps of one clip, by the published order and arithmetic.

    Args:
        features: (N, D) or (T, n, D), the projected tokens, frame by frame in raster order.
        thw, q, spatial_merge_size: as for `count`.

    Returns:
        (k,) kept indices into N, ascending, on the CPU. Equal scores: the earlier token.

    Raises:
        InputError: as `count`, or features that do not fit the grid.
    """
    kept = count(thw, q, spatial_merge_size)
    frames, cells = _grid(thw, spatial_merge_size)
    x = features.reshape(-1, features.shape[-1])
    if x.shape[0] != frames * cells:
        raise InputError(f"evs: a grid of {frames} x {cells} tokens met {x.shape[0]} features")
    later = torch.arange(cells, frames * cells)
    scores = torch.full((frames * cells,), _NEW, device=x.device)
    scores[cells:] = 1 - row_cosine(x, later, later - cells)
    return scores.argsort(descending=True, stable=True)[:kept].sort().values.cpu()


def _grid(thw: Sequence[int] | Tensor, merge: int) -> tuple[int, int]:
    frames, rows, columns = (int(side) for side in thw)
    cells = (rows // merge) * (columns // merge) if merge >= 1 else 0
    if frames < 1 or cells < 1:
        raise InputError(
            f"evs: a grid of {frames} x {rows} x {columns} merged by {merge} has no tokens"
        )
    return frames, cells
