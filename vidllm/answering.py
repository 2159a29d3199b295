"""One compressed video and the questions about it: compress, prefill, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidllm.compressors import Chain, Compressor

from .cost import Stopwatch
from .errors import InputError
from .models.cache_choice import CacheChoice
from .models.eviction import evict
from .models.native import NativeVideoLLM
from .tokens import VideoTokens


@dataclass(frozen=True)
class Prompt:
    """Ids before the video, the video tokens, and ids after it, one row a question.

    `stamps` are the ids written before every frame, or None; `duration` is in seconds.
    """

    head: Sequence[int]
    tails: Sequence[Sequence[int]]
    tokens: VideoTokens
    duration: float
    stamps: Sequence[Sequence[int]] | None = None


def check_serves(model: NativeVideoLLM, method: Compressor | Chain) -> None:
    """Refuse a method that needs what a model cannot tell.

    Raises:
        InputError: with the needs that are missing.
    """
    missing = [need for need in method.needs if need not in model.provides]
    if missing:
        raise InputError(
            f"{method.name} needs {' and '.join(missing)}, which this model's vision tower does "
            "not give: choose a method without that need (vidllm list compressors)"
        )
    late = method.late if isinstance(method, Chain) else [method]
    if late and late[0].follows:
        raise InputError(
            f"{method.name} keeps what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{late[0].name}"
        )


def by_question(method: Compressor | Chain) -> bool:
    """Whether what is left of the video depends on the question that comes after it."""
    late = method.late if isinstance(method, Chain) else [method][: method.inside_decoder()]
    return method.query_aware or not all(getattr(m, "shares_prefix", False) for m in late)


@torch.inference_mode()
def reply(
    model: NativeVideoLLM,
    prompt: Prompt,
    method: Compressor | Chain,
    watch: Stopwatch,
    *,
    max_new_tokens: int,
    eos: int,
) -> tuple[list[list[int]], VideoTokens, float]:
    """Answer the questions of a prompt; a method that reads the question gets one at a time.

    Returns:
        New ids of every question; the video tokens that were left in the end; and how many the
        KV cache held in the mean over the decoder's layers.
    """
    tails = list(prompt.tails)
    with watch.stage("compress"):
        query = None
        if method.query_aware:
            query = model.embed_tokens(torch.tensor(list(tails[0]), device=model.device))
        kept, late = method.before_decoder(prompt.tokens, query)
    inside = late[0] if late and late[0][1] < len(kept) else None
    choice = None
    if inside is not None and inside[0].stage == "cache":  # at work while answering
        choice, inside = CacheChoice(*inside), None
    with watch.stage("prefill"):
        if inside is None:
            prefix = model.prefill(prompt.head, kept, prompt.duration, prompt.stamps)
        else:
            prefix = model.prefill(
                prompt.head,
                kept,
                prompt.duration,
                prompt.stamps,
                tail=tails[0],
                method=inside[0],
                budget=inside[1],
            )
            tails = [tails[0][-1:]]
            for method_behind, _ in late[1:]:
                prefix = evict(prefix, method_behind, kept, model.language_model)
    kept = prefix.kept or kept
    layers: Sequence[float] = prefix.video_per_layer() or [len(kept)]
    with watch.stage("generate"):
        replies = model.generate_from(
            prefix, tails, max_new_tokens=max_new_tokens, eos=eos, choice=choice
        )
    if choice is not None:
        kept, layers = choice.active(kept), choice.video_per_layer()
    return replies, kept, sum(layers) / len(layers)
