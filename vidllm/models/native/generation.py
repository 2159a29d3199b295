"""From the video tokens that are left to answers: prefill, and decoding, with what acts in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.progress import Stopwatch
from vidllm.tokens import VideoTokens

from ..engine import Counts
from ..hooks.cache import CacheChoice, decoder_layers, evict
from ..hooks.decoding import Trace, generate_from
from .model import NativeVideoLLM


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


class Replies(NamedTuple):
    """The answers to a `Prompt`.

    Attributes:
        ids: new ids of every question. kept: the video tokens that were left in the end.
        cached: how many the KV cache held in the mean over the decoder's layers.
        counts: where in the decoder how many video tokens were.
        apart: for every question how many of its tokens were read behind the video's pass.
        trace: log-probabilities of what was answered.
    """

    ids: list[list[int]]
    kept: VideoTokens
    cached: float
    counts: Counts
    apart: list[int]
    trace: Trace


@torch.inference_mode()
def answer_prompt(
    model: NativeVideoLLM,
    prompt: Prompt,
    kept: VideoTokens,
    late: Sequence[tuple[Compressor, int]],
    watch: Stopwatch,
    *,
    max_new_tokens: int,
    eos: int,
    heard: Callable[[list[list[int]]], None] | None = None,
    draw: Callable[[Tensor], Tensor] | None = None,
) -> Replies:
    """Answer the questions of a prompt; a method that reads the question gets one at a time.

    Args:
        kept: what the method left of the prompt's tokens before the decoder. late: what of it acts
            inside, with exact budgets (see `Compressor.before_decoder`).
        heard: called behind every decode step with all new ids so far, a row a question.
        draw: as for `generate_from`.
    """
    tails = list(prompt.tails)
    inside = late[0] if late and late[0][1] < len(kept) else None
    choice = None
    if inside is not None and inside[0].stage == "cache":  # at work while answering
        choice, inside = CacheChoice(*inside), None
    entering, depth, trace = len(kept), len(decoder_layers(model.language_model)), Trace(heard)
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
        ids = generate_from(
            model.language_model,
            prefix,
            tails,
            max_new_tokens=max_new_tokens,
            eos=eos,
            choice=choice,
            trace=trace,
            draw=draw,
        )
    read = cached
    if choice is not None:
        kept, cached = choice.active(kept), choice.video_per_layer()
        step = sum(choice.read) / len(choice.read) if choice.read else entering  # of one step
        read = [entering] * choice.first + [step] * (depth - choice.first)
    counts = Counts(prompt.tokens.total, entering, layers, read)
    return Replies(ids, kept, sum(cached) / len(cached), counts, [*map(len, tails)], trace)
