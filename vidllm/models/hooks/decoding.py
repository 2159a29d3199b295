"""From a prompt whose video is in the KV cache to answers: several questions about one prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vidllm.errors import InputError

from .cache_choice import CacheChoice
from .decode_steps import DecodeSteps, Past
from .kv_cache import Prefill


@dataclass
class Trace:
    """What is noted of answers while they are written; it changes nothing in them.

    Attributes:
        heard: called behind every step with all new ids so far, a row a prompt; what it raises
            ends the work.
        first: (rows, V) float32 log-probabilities of the first tokens, over all tokens.
        scores: for every prompt the natural log-probability of each of its new ids.
    """

    heard: Callable[[list[list[int]]], None] | None = None
    first: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    scores: list[list[float]] = field(default_factory=list)


def past_of(prefill: Prefill, rows: int, depth: int) -> Past:
    """What `rows` prompts go on from that begin with one prefill; `depth` layers."""
    counts = [len(alive) for alive in prefill.alive] or [prefill.length] * depth
    ones = {n: torch.ones(rows, n, dtype=torch.bool) for n in counts}
    shift = [torch.full((rows,), s) for s in prefill.shift or [0] * depth]
    return Past([ones[n] for n in counts], shift)


@torch.inference_mode()
def generate_from(
    llm: PreTrainedModel,
    prefill: Prefill,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int,
    choice: CacheChoice | None = None,
    trace: Trace | None = None,
) -> list[list[int]]:
    """Answer several prompts about one prefill, greedily; it is used up.

    Args:
        llm: the causal language model.
        prefill: what comes before the prompts.
        prompts: ids after the video, of any lengths; one answer each.
        max_new_tokens: the longest answer.
        eos: id that ends an answer (not returned).
        choice: a method that chooses at every step what is read of the video.
        trace: where log-probabilities are noted, and who hears of every step.

    Returns:
        New ids of every prompt.

    Raises:
        InputError: a choice that does not fit the model, the prefill or several prompts.
    """
    device, steps = llm.device, DecodeSteps(llm.base_model)
    rows, width = len(prompts), max(map(len, prompts))
    past = steps.past = past_of(prefill, rows, len(steps.layers))
    if choice is not None:
        _begin(choice, past, prefill, llm)
    if rows > 1:
        prefill.cache.batch_repeat_interleave(rows)
    ids = torch.zeros(rows, width, dtype=torch.long, device=device)
    fresh = torch.ones(rows, width, dtype=torch.bool)
    positions = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):  # padding stands between the video and the prompt
        pad = width - len(prompt)
        ids[r, pad:] = torch.tensor(list(prompt), device=device)
        fresh[r, :pad] = False
        positions[r, pad:] = prefill.next_position + torch.arange(len(prompt), device=device)
    answers: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    scores: list[Tensor] = []
    with ExitStack() as stack:
        if choice is not None:
            stack.callback(choice.close)
        if choice is not None or prefill.alive or prefill.shift:
            steps.attach(stack, choosing=choice is not None)
        for _ in range(max_new_tokens):
            out = llm(
                input_ids=ids,
                attention_mask=steps.grow(positions, fresh).to(device, torch.long),
                position_ids=positions,
                past_key_values=prefill.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            past.choice = choice  # the prompts have read the whole video
            logits = out.logits[:, -1].float()
            ids = logits.argmax(dim=-1, keepdim=True)
            if trace is not None:
                shares = torch.log_softmax(logits, dim=-1)
                if not scores:
                    trace.first = shares
                scores.append(shares.gather(1, ids))
            for r, token in enumerate(ids[:, 0].tolist()):
                running[r] = running[r] and token != eos
                if running[r]:
                    answers[r].append(token)
            if trace is not None and trace.heard is not None:
                trace.heard(answers)
            if not any(running):
                break
            positions, fresh = positions[:, -1:] + 1, torch.ones(rows, 1, dtype=torch.bool)
    if trace is not None:
        chances = torch.cat(scores, dim=1).tolist()
        trace.scores = [row[: len(new)] for row, new in zip(chances, answers, strict=True)]
    return answers


def _begin(choice: CacheChoice, past: Past, prefill: Prefill, llm: PreTrainedModel) -> None:
    """Every prompt chooses from the same video.

    Raises:
        InputError: a prefill that was pruned on the way, or a method that takes one at a time.
    """
    rows = len(past.valid[0])
    if prefill.alive:
        raise InputError(f"{choice.method.name} chooses from a cache that nothing has left yet")
    if rows > 1 and not choice.method.shares_prefix:
        raise InputError(f"{choice.method.name}: faithful answers one question at a time")
    videos = [(row, prefill.video) for row in range(rows)]
    choice.begin(prefill.cache, past.valid, past.shift, videos, prefill=prefill, llm=llm)
