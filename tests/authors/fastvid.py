"""FastVID (LunarShen/FastVID): both variants on a full grid."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.fastvid import _alike, _counts, _reduce, _Rules, segments
from vidllm.errors import InputError


def merge(
    features: Tensor,
    frame_global_features: Tensor,
    frame_attention: Tensor,
    retention_ratio: float,
    DySeg_c: int = 8,
    DySeg_tau: float = 0.9,
    STPrune_d: float = 0.4,
    DTM_p: int = 4,
    DTM_beta: float = 0.6,
    DySeg_ignore: float | None = None,
    noise: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """FastVID as the authors' code gives it: the LLaVA variant, or with `DySeg_ignore` Qwen's.

    A frame is worth int(n * retention_ratio) tokens; divisions that leave a remainder lose it
    in the LLaVA variant, and caps lose tokens in Qwen's. Where anchors exceed the tokens of
    their frame (a large share; the authors' code fails) the surplus goes to the segment's other
    anchor frames, then to its other frames. Source: LunarShen/FastVID, `modeling_qwen2.py` and
    `modeling_qwen2_5_vl.py`.

    Args:
        features: (T, n, D) tokens. frame_global_features: (T, G), see `segments`.
        frame_attention: (T, n) saliency. retention_ratio: share of a frame kept, in (0, 1].
        STPrune_d: share of that which is anchors. DTM_p: every p-th frame, counted from the
            last of a segment, has anchors. DTM_beta: least weight of an anchor in its merge.
        DySeg_ignore: neighbours of at least this cosine count as one frame, the last of them.
        noise: see `density.peaks`; the authors have it, the default is none.

    Returns:
        video_kept_idx (K,) long, ascending, in 0..T*n-1, and video_tokens (K, D).

    Raises:
        InputError: shapes that do not fit, or a share of less than one token a frame.
    """
    if features.dim() != 3 or frame_attention.shape != features.shape[:2]:
        raise InputError("features must be (T, n, D) and frame_attention (T, n)")
    total, size = features.shape[:2]
    worth = int(size * retention_ratio)
    if len(frame_global_features) != total or not 1 <= worth <= size:
        raise InputError(
            f"{total} frames need as many features and 1 to {size} tokens, not {worth}"
        )
    places = torch.arange(total * size).split(size)
    lengths = segments(frame_global_features, DySeg_c, DySeg_tau).tolist()
    alike = _alike(frame_global_features)
    rules = _Rules(STPrune_d, DTM_p, DTM_beta, DySeg_ignore, exact=False, theirs=True)
    counts = _counts(rules, [worth] * total, [size] * total, lengths, alike)
    saliency = frame_attention.flatten().cpu()
    kept, rows, _ = _reduce(rules, features.flatten(0, 1), saliency, places, lengths, counts, noise)
    order = kept.argsort()
    return kept[order], rows[order.to(rows.device)]
