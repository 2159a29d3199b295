"""SemVID (JiaqiLi404/SemVID, Qwen3-VL): frame budget and choice on a full grid."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.semvid import choose, token_motion
from vidllm.compressors.shared.allocation import shares


def budget(
    frame_global: Tensor,
    query: Tensor,
    n: int,
    R: float = 0.125,
    *,
    c: int = 0,
    tau: float = 0.0,
    topk: int = 0,
    win: int = 1,
    alpha: float = 0.7,
    minf: int = 0,
) -> Tensor:
    """SemVID's tokens a frame for T frames of `n` tokens, of which the share `R` stays.

    The total is round(T n R) (Python's rounding), at least what `minf` asks for; see `shares`.

    Returns:
        (T,) long, "kept_per_frame".
    """
    frames = frame_global.shape[0]
    base = max(min(minf, n), 1)
    target = min(max(round(frames * n * R), frames * base), frames * n)
    sizes = torch.full((frames,), n)
    return shares(
        frame_global, query, sizes, target, c=c, tau=tau, topk=topk, win=win, alpha=alpha, minf=minf
    )


def select(
    features: Tensor,
    frame_global: Tensor,
    token_saliency: Tensor,
    query: Tensor,
    kept_per_frame: Tensor,
    *,
    obj: float = 0.6,
    lam: float = 0.9,
    beta: float = 0.5,
    minf: int = 0,
) -> Tensor:
    """SemVID's choice inside every frame of a full grid.

    Args:
        features: (T, n, D). frame_global: (T, D). token_saliency: (T, n), the tokens' L2 norms
            for Qwen3-VL. query: (L, D) or (D,). kept_per_frame: (T,) as `budget` gives.
            obj, lam, beta, minf: see `choose`.

    Returns:
        (K,) long, kept indices t * n + i in ascending order, "kept_idx".
    """
    frames, n = features.shape[:2]
    position = torch.arange(frames * n).view(frames, n)
    after = torch.cat([position[1:], position.new_full((1, n), -1)])
    before = torch.cat([position.new_full((1, n), -1), position[:-1]])
    motion = token_motion(features.flatten(0, 1), before.flatten(), after.flatten())
    motion = motion.view(frames, n)
    saliency, kept = token_saliency.float().cpu(), []
    for t, keep in enumerate(kept_per_frame.tolist()):
        if keep:
            parts = choose(
                features[t], frame_global[t], saliency[t], motion[t], query, keep,
                obj=obj, lam=lam, beta=beta, minf=minf,
            )  # fmt: skip
            kept.append(position[t][torch.tensor([i for part in parts for i in part])])
    return torch.cat(kept).sort().values
