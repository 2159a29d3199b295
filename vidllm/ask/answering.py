"""One compressed video and the questions about it: compress, prefill, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.cost.spending import Counts
from vidllm.errors import InputError
from vidllm.models.hooks.cache_choice import CacheChoice
from vidllm.models.hooks.decoding import Trace, generate_from
from vidllm.models.hooks.eviction import evict
from vidllm.models.hooks.kv_cache import decoder_layers
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress.stopwatch import Stopwatch
from vidllm.tokens import VideoTokens


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


@dataclass
class Record(Trace):
    """What `reply` notes beside its answers.

    Attributes:
        counts: where in the decoder how many video tokens were.
        apart: for every question how many of its tokens were read behind the video's pass.
    """

    counts: Counts = field(default_factory=lambda: Counts(0, 0, (), ()))
    apart: list[int] = field(default_factory=list)


def check_serves(model: NativeVideoLLM, method: Compressor) -> None:
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
    if method.late and method.late[0].follows:
        raise InputError(
            f"{method.name} keeps what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.late[0].name}"
        )


def check_early(method: Compressor) -> None:
    """Refuse a method whose choice is not known before the LLM runs.

    Raises:
        InputError: a method of the stages "prefill" or "cache".
    """
    if method.inside_decoder():
        raise InputError(
            f"{method.name} chooses while the LLM runs, so there is no preview: ask, and see "
            "answer.kept"
        )


def by_question(method: Compressor) -> bool:
    """Whether what is left of the video depends on the question that comes after it."""
    shared = all(getattr(m, "shares_prefix", False) for m in method.late)
    return method.query_aware or (method.inside_decoder() and not (method.late and shared))


def question_rows(model: NativeVideoLLM, tail: Sequence[int]) -> Tensor:
    """(N, D) embeddings of a question, for methods that read it."""
    return model.embed_tokens(torch.tensor(list(tail), device=model.device))


@torch.inference_mode()
def before_prefill(
    model: NativeVideoLLM, tokens: VideoTokens, method: Compressor, tail: Sequence[int]
) -> VideoTokens:
    """What a method leaves of a video before the decoder.

    Raises:
        InputError: a method that is at work inside the decoder.
    """
    check_early(method)
    query = question_rows(model, tail) if method.query_aware else None
    return method.before_decoder(tokens, query)[0]


@torch.inference_mode()
def reply(
    model: NativeVideoLLM,
    prompt: Prompt,
    method: Compressor,
    watch: Stopwatch,
    *,
    max_new_tokens: int,
    eos: int,
    record: Record | None = None,
) -> tuple[list[list[int]], VideoTokens, float]:
    """Answer the questions of a prompt; a method that reads the question gets one at a time.

    Returns:
        New ids of every question; the video tokens that were left in the end; and how many the
        KV cache held in the mean over the decoder's layers.
    """
    tails, depth = list(prompt.tails), len(decoder_layers(model.language_model))
    with watch.stage("compress"):
        query = question_rows(model, tails[0]) if method.query_aware else None
        kept, late = method.before_decoder(prompt.tokens, query)
    inside = late[0] if late and late[0][1] < len(kept) else None
    choice = None
    if inside is not None and inside[0].stage == "cache":  # at work while answering
        choice, inside = CacheChoice(*inside), None
    entering = len(kept)
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
        layers: Sequence[float] = prefix.video_per_layer() or [entering] * depth
        if inside is not None:
            for method_behind, _ in late[1:]:
                prefix = evict(prefix, method_behind, kept, model.language_model)
    kept = prefix.kept or kept
    cached: Sequence[float] = prefix.video_per_layer() or layers
    with watch.stage("generate"):
        replies = generate_from(
            model.language_model,
            prefix,
            tails,
            max_new_tokens=max_new_tokens,
            eos=eos,
            choice=choice,
            trace=record,
        )
    read = cached
    if choice is not None:
        kept, cached = choice.active(kept), choice.video_per_layer()
        step = sum(choice.read) / len(choice.read) if choice.read else entering  # of one step
        read = [entering] * choice.first + [step] * (depth - choice.first)
    if record is not None:
        record.counts = Counts(prompt.tokens.total, entering, layers, read)
        record.apart = [len(tail) for tail in tails]
    return replies, kept, sum(cached) / len(cached)
