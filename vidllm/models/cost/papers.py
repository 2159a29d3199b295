"""Published arithmetic beside ours: AIM's fold of FLOPs, and STORM's ratio and end-to-end limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vidllm.compressors import build
from vidllm.compressors.aim_prune import retention

from .prediction import plan_of, timed
from .presets import STORM_MS
from .shapes import shape_of

_TEXT = 100


@dataclass(frozen=True)
class Claim:
    """One number: `published` in the paper (None where it gives none), and `ours`."""

    what: str
    published: float | None
    ours: float


@dataclass(frozen=True)
class Paper:
    """What a paper says of its costs, reckoned again, and what was assumed."""

    title: str
    claims: tuple[Claim, ...]
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "claims": [vars(claim) for claim in self.claims],
            "assumptions": list(self.assumptions),
        }


def aim() -> Paper:
    """AIM (arXiv 2412.03248): 6.8 times fewer FLOPs on LLaVA-OneVision-7B at 32 frames."""
    shape = shape_of("llava-onevision-7b")
    decoder, frames = shape.decoder, 32
    grid = shape.grid(frames)
    total = grid[0] * grid[1] * grid[2]
    merged = total // 4
    schedule = [int(merged * share) + _TEXT for share in retention(decoder.layers)]
    full = decoder.prefill(total + _TEXT, logits=0)
    left = decoder.prefill(schedule, logits=0)
    half = decoder.prefill(total + _TEXT, causal=True, logits=0)
    half_left = decoder.prefill(schedule, causal=True, logits=0)
    own = plan_of(build("aim:keep=0.25,aim-prune:budget=1"), grid, decoder.layers)
    ours = decoder.prefill([n + _TEXT for n in own.layers], logits=0)
    tower = shape.vision(frames)
    return Paper(
        "AIM, arXiv 2412.03248: LLaVA-OneVision-7B, 32 frames of 196 → 49 tokens",
        (
            Claim("prefill of all tokens, TFLOPs", None, full / 1e12),
            Claim("prefill that is left, TFLOPs", None, left / 1e12),
            Claim("prefill: times fewer FLOPs", 6.8, full / left),
            Claim("the same, causal attention counted by half", None, half / half_left),
            Claim("the same, as aim,aim-prune here removes tokens", None, full / ours),
            Claim(
                "with the vision tower: times fewer FLOPs", None, (full + tower) / (left + tower)
            ),
        ),
        (
            "Qwen2-7B, 32 × 196 video and 100 text tokens; the newline token is left out",
            "a layer from 14 on already runs with what its own schedule leaves: 7/8 of 1568 in "
            "layer 14, none from layer 21 on; aim-prune here removes one layer later, as the "
            "authors' attention mask does, and never the last token",
            "attention in full, every token with every token; no output layer",
            "pruned tokens leave the computation (the authors' code only masks them); the cost of "
            "merging and of the importance is not in these numbers",
        ),
    )


def storm() -> Paper:
    """STORM (arXiv 2503.04130): an eighth of the tokens, and the times of its Table 13."""
    shape = shape_of("storm-qwen2-7b")
    decoder = shape.decoder
    ways = {4: "temporal-pool:k=4", 8: "temporal-pool:k=4,frame-sample:stride=2"}
    claims = []
    for frames in (128, 256, 512):
        grid = shape.grid(frames)
        total, llm, vision, projector = (ms / 1e3 for ms in STORM_MS[frames, 1])
        for ratio, spec in ways.items():
            plan = plan_of(build(spec), grid, decoder.layers)
            if frames == 128:
                claims.append(
                    Claim(f"{spec}: times fewer tokens", ratio, plan.total / plan.entering)
                )
            whole = decoder.prefill(plan.total + _TEXT, causal=True)
            share = decoder.prefill(plan.entering + _TEXT, causal=True) / whole
            seconds = {"vision": vision, "projector": projector, "llm": llm}
            found = timed(seconds, share)
            claims += [
                Claim(
                    f"{frames} frames, 1/{ratio}: LLM times faster",
                    llm * 1e3 / STORM_MS[frames, ratio][1],
                    1 / share,
                ),
                Claim(
                    f"{frames} frames, 1/{ratio}: end to end times faster",
                    total * 1e3 / STORM_MS[frames, ratio][0],
                    found["speed_up"],
                ),
            ]
        claims.append(
            Claim(f"{frames} frames: end-to-end limit, no LLM at all", None, found["limit"])
        )
    return Paper(
        "STORM, arXiv 2503.04130: Table 13, one A100-80G",
        tuple(claims),
        (
            "published speed-ups are quotients of Table 13's times; the paper's 8 × is of tokens",
            "vision tower and projector keep their measured times; the LLM's shrinks with the "
            "FLOPs of Qwen2-7B's prefill (256 tokens a frame, 100 of text, causal attention by "
            "half), as if all of its time were prefill: the paper does not say how many tokens it "
            "generates",
            "the limit is the sum of all times against vision tower and projector alone",
        ),
    )


#: What `vidllm cost --paper` knows.
PAPERS: dict[str, Callable[[], Paper]] = {"aim": aim, "storm": storm}
