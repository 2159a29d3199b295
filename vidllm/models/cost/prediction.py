"""What a run will cost, reckoned before anything runs: the numbers behind ``vidllm cost``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from vidllm.compressors import LATE, Chain, Compressor
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens, cut_counts

from .shapes import Shape

#: Stages of a receipt, or of a paper's table, that shrink with the video tokens in the prefill.
SHRINKS = ("prefill", "llm")


@dataclass(frozen=True)
class Plan:
    """How many video tokens there are, and where.

    Attributes:
        total: without compression. entering: those that the first decoder layer reads.
        layers: those that every layer reads in the prefill. cached: those whose keys and values
            every layer reads while answering.
    """

    total: int
    entering: int
    layers: tuple[int, ...]
    cached: tuple[int, ...]

    @property
    def last(self) -> int:
        """What the last layer reads in the prefill."""
        return self.layers[-1]


@dataclass(frozen=True)
class Cost:
    """FLOPs by stage, and bytes, of one question about one video.

    Attributes:
        plan: its video tokens. prefill: with one row of logits. decode: of the tokens after the
            first. kv_bytes: of the video tokens. kv_prompt_bytes: with the text.
    """

    plan: Plan
    vision: float
    temporal: float
    prefill: float
    decode: float
    kv_bytes: int
    kv_prompt_bytes: int

    @property
    def total(self) -> float:
        """FLOPs of all stages together."""
        return self.vision + self.temporal + self.prefill + self.decode

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tokens_full": self.plan.total,
            "tokens_entering": self.plan.entering,
            "tokens_last_layer": self.plan.last,
            "tokens_by_layer": list(self.plan.layers),
            "cached_by_layer": list(self.plan.cached),
            "flops": {
                "vision": self.vision,
                "temporal": self.temporal,
                "prefill": self.prefill,
                "decode": self.decode,
                "total": self.total,
            },
            "kv_bytes": self.kv_bytes,
            "kv_prompt_bytes": self.kv_prompt_bytes,
        }


def even_plan(total: int, depth: int) -> Plan:
    """The plan of `total` tokens that all stay."""
    return Plan(total, total, (total,) * depth, (total,) * depth)


def plan_of(method: Compressor, grid: tuple[int, int, int], depth: int) -> Plan:
    """Where a method leaves how many tokens; its counts are exact, whatever the video shows.

    Args:
        grid: slots, rows, columns of the video tokens. depth: layers of the decoder.

    Raises:
        InputError: options that do not fit, or a count that depends on the video.
    """
    tokens = VideoTokens.blank(grid, [float(t) for t in range(grid[0])], float(grid[0]))
    total = len(tokens)
    late: list[tuple[Compressor, int]] = []
    for item in method.methods:
        if item.uses_features and item.fixed_budget(tokens) is not None:
            raise InputError(
                f"{item.name}: what its options leave depends on the video: give keep instead"
            )
    if method.methods != (method,):
        goal = method.whole_goal(tokens)
        if goal is not None:
            cast(Chain, method).check_last()
        for place, item in enumerate(method.methods):
            if item.stage in LATE or goal == len(tokens):
                break
            tokens = _left(item, tokens, None if goal is None else method.aim(tokens, place, goal))
            if goal is not None and len(tokens) < goal:
                raise InputError(
                    f"{item.name} leaves {len(tokens)} tokens, fewer than the {goal} that the "
                    "chain should keep: raise its own share or lower the chain's"
                )
        late = [(item, item.goal(tokens, goal if item.is_free() else None)) for item in method.late]
    elif method.stage in LATE:
        late = [(method, method.goal(tokens))]
    elif method.inside_decoder():  # an outer stage at layer 0, and an inner one
        goal = method.goal(tokens)
        outer, *_ = points = cast(Any, method).points(depth)
        tokens = _first(tokens, min(total, -int(-goal * outer[1] / method.keep // 1)))
        counts = _cut(len(tokens), points[1:], goal, depth)
        return Plan(total, len(tokens), counts, counts)
    else:
        tokens = _left(method, tokens, None)
    entering = len(tokens)
    layers = cached = (entering,) * depth
    for item, budget in late:
        if budget >= entering:
            continue
        if item.follows:  # behind the prefill the cache loses what the last layer had lost
            first = cast(Any, item).first_layer(list(layers))
            cached = tuple(min(n, layers[-1]) if i >= first else n for i, n in enumerate(cached))
        elif item.stage == "cache":
            ((start, _),) = cast(Any, item).points(depth)
            cached = tuple(budget if i >= start else n for i, n in enumerate(cached))
        else:
            shared = item
            if all(getattr(item, option) is None for option in item.fixed):
                shared = replace(item, keep=budget / entering, budget=None)
            layers = cached = _cut(entering, cast(Any, shared).points(depth), budget, depth)
    return Plan(total, entering, layers, cached)


def _left(item: Compressor, tokens: VideoTokens, aim: int | None) -> VideoTokens:
    """The tokens that stand for what a method leaves: itself where it reads places alone."""
    if not item.uses_features:
        return item(tokens, aim)
    return _first(tokens, item.goal(tokens, aim))


def _first(tokens: VideoTokens, count: int) -> VideoTokens:
    if count >= len(tokens):
        return tokens
    return tokens.apply(Keep(torch.arange(count) * len(tokens) // count))


def _cut(count: int, points: list[tuple[int, float]], budget: int, depth: int) -> tuple[int, ...]:
    """What every layer reads."""
    left = cut_counts(count, points, budget)
    counts = []
    for layer in range(depth):
        count = min(count, left.get(layer, count))
        counts.append(count)
    return tuple(counts)


def cost_of(
    shape: Shape,
    plan: Plan,
    frames: int,
    *,
    text: int = 100,
    answer: int = 128,
    causal: bool = False,
    element_size: int = 2,
) -> Cost:
    """What a question about a video costs.

    Args:
        shape: of the model. plan: of its video tokens. frames: that the vision tower sees.
        text: tokens of the prompt that are no video. answer: tokens of the answer.
        causal: count half of the prompt's pairs. element_size: bytes of a number in the cache.

    Raises:
        InputError: counts below 1.
    """
    if min(frames, text, answer, element_size) < 1:
        raise InputError("frames, text, answer and element_size start at 1")
    decoder = shape.decoder
    prompt = [n + text for n in plan.layers]
    cached = [n + text for n in plan.cached]
    return Cost(
        plan=plan,
        vision=shape.vision(frames),
        temporal=shape.mixing(frames),
        prefill=decoder.prefill(prompt, causal=causal) + shape.told * plan.entering,
        decode=decoder.decode(cached, answer - 1),
        kv_bytes=decoder.kv_bytes(plan.cached, element_size),
        kv_prompt_bytes=decoder.kv_bytes(cached, element_size),
    )


def limit(full: Cost, without: Cost) -> float:
    """The most that fewer tokens can give, by FLOPs (Amdahl): all against what no token saves.

    Args:
        full: uncompressed. without: the same with no video token in the decoder.
    """
    return full.total / without.total


def timed(seconds: Mapping[str, float], share: float) -> dict[str, float]:
    """End-to-end speed-up from the measured seconds of an uncompressed run.

    Args:
        seconds: by stage. share: of the prefill's FLOPs that are left; stages of `SHRINKS` take
            so much of their time, all others stay.

    Returns:
        before, after (seconds), speed_up, and limit where those stages take no time at all.

    Raises:
        InputError: no stage that shrinks, or times that are negative or all 0.
    """
    whole = sum(seconds.values())
    inside = sum(value for name, value in seconds.items() if name in SHRINKS)
    if min(seconds.values(), default=0) < 0 or not 0 < inside <= whole < float("inf"):
        raise InputError(
            f"--seconds needs the stage {' or '.join(SHRINKS)} and times of at least 0, such as "
            "vision=1.02,prefill=3.09"
        )
    after = whole - inside + inside * share
    rest = whole - inside
    return {
        "before": whole,
        "after": after,
        "speed_up": whole / after,
        "limit": whole / rest if rest else float("inf"),
    }
