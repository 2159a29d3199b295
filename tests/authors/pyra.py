"""PYRA (arXiv 2403.09192): ToMe's merge of modulated sources."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.pyra import Modulation

from .tome import Merged, check_shapes, owners, pair, weighted


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
