"""VisionZip (dvlab-research/VisionZip, cokeshao/HoliTom): a batch of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.visionzip import assign
from vidllm.errors import InputError


def merge(
    hidden: Tensor,
    key_mean: Tensor,
    dominant: int,
    contextual: int,
    *,
    cls_attention_heads: Tensor | None = None,
    attention_mean: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """VisionZip of every picture of a batch, as the authors' code gives it.

    A contextual token is its target PLUS the mean of the tokens that join it, so that its norm
    is up to about doubled; a target that none joins is unchanged. Source:
    dvlab-research/VisionZip, `visionzip/clip_encoder.py`; without a CLS, the port that video
    papers use (cokeshao/HoliTom).

    Args:
        hidden: (B, 1 + N, D) states with the CLS first, or (B, N, D) of a tower without CLS.
        key_mean: (B, same, Dk) keys of the same tokens, mean over heads.
        dominant: patches that stay; a CLS comes on top. contextual: merged tokens.
        cls_attention_heads: (B, heads, 1 + N) softmaxed attention of the CLS; summed over heads.
        attention_mean: (B, N) attention that a token gets, where there is no CLS; give one of
            the two.

    Returns:
        tokens (B, [1 +] dominant + contextual, D): the CLS, the dominant patches in raster
        order, then the contextual tokens; and dominant_idx (B, [1 +] dominant) in the order of
        falling attention, the CLS (index 0) first.

    Raises:
        InputError: both or neither kind of attention, shapes that do not fit, or more tokens
            asked for than there are.
    """
    if (cls_attention_heads is None) == (attention_mean is None):
        raise InputError("give either cls_attention_heads or attention_mean")
    skip = 0 if cls_attention_heads is None else 1
    score = attention_mean if cls_attention_heads is None else cls_attention_heads.sum(1)
    if score is None or score.shape != hidden.shape[:2] or score.shape != key_mean.shape[:2]:
        raise InputError("hidden, key_mean and the attention must be of the same tokens")
    if min(dominant, contextual) < 0 or dominant + contextual > hidden.shape[1] - skip:
        raise InputError(
            f"{dominant} dominant and {contextual} contextual tokens cannot be had from "
            f"{hidden.shape[1] - skip}"
        )
    picked = assign(score[:, skip:].float(), key_mean[:, skip:], dominant, contextual)
    best, targets, rest = (which + skip for which in picked[:3])
    if skip:
        best = torch.cat([best.new_zeros(len(best), 1), best], dim=1)

    def rows(index: Tensor) -> Tensor:
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))

    merged = rows(targets)
    if contextual:
        joins = torch.nn.functional.one_hot(picked[3], contextual).to(hidden.dtype)
        count = joins.sum(1).clamp(min=1)[..., None]
        merged = merged + (joins.transpose(1, 2) @ rows(rest)) / count
    return torch.cat([rows(best.sort(dim=1).values), merged], dim=1), best
