"""The measurement behind ``vidllm bench compressors``: what every method costs at real sizes.

Random features of a full-size model (32 or 128 frames of 14 x 14 tokens, width 3584) go through
every registered method. Its cost stands beside the prefill of the 7B decoder that it would feed:
the decoder's FLOPs are counted from its shape, its seconds estimated from these FLOPs and the
matrix-product rate that is measured here first. Beside it stands the method's floor, the time of
the passes over the clip that it cannot do without (`compressor_floor`), measured in turns with it.
All runs on one thread and counts its CPU time, so that other work on the machine matters little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidllm.cli.tables import table
from vidllm.compressors import find, get, names
from vidllm.errors import InputError, VidllmError
from vidllm.models.cost.flops import QWEN2_7B
from vidllm.tokens import VideoTokens, budget_of

from .compressor_floor import PASSES, Clip, floor, still_products
from .measure import Peak

if TYPE_CHECKING:
    from rich.table import Table

KEEPS = (0.5, 0.25, 0.1, 0.05)
_TIMED = ("ms", "floor_ms", "ratio", "bf16_ms", "bf16_floor_ms", "bf16_ratio")


@dataclass(frozen=True)
class Decoder:
    """What is fed: Qwen2-7B, with `text` tokens of text beside the video."""

    text: int = 100

    def prefill_flops(self, video: int) -> float:
        """FLOPs to read a prompt with `video` tokens, causal attention counted by half."""
        return QWEN2_7B.prefill(video + self.text, causal=True, logits=0)


def random_clip(frames: int, side: int, width: int, seed: int = 0) -> tuple[VideoTokens, Tensor]:
    """A clip that changes slowly, with all signals, and a question of 12 words."""
    generator = torch.Generator().manual_seed(seed)
    count = frames * side * side
    still = torch.randn(side, side, width, generator=generator)
    moving = torch.randn(frames, side, side, width, generator=generator).mul_(0.5)
    tokens = VideoTokens.from_grid(moving.add_(still), list(range(frames)), float(frames))
    tokens = tokens.with_signals(
        cls_attention=torch.rand(count, generator=generator),
        vision_keys=torch.randn(count, 64, generator=generator),
        decoder_attention=torch.rand(count, generator=generator),
        decoder_text_attention=torch.rand(count, 12, generator=generator),
        decoder_keys=torch.randn(count, 512, generator=generator),
        decoder_importance=torch.rand(count, generator=generator),
    )
    return tokens, torch.randn(12, width, generator=generator)


def matmul_rate(width: int, runs: int = 3) -> float:
    """FLOP/s of matrix products of this width in float32 on this machine, the best of some."""
    left, right = torch.randn(512, width), torch.randn(width, width)
    best = float("inf")
    for _ in range(runs):
        began = time.thread_time()
        left @ right
        best = min(best, time.thread_time() - began)
    return 2.0 * 512 * width * width / best


@torch.inference_mode()
def bench_compressors(
    methods: Sequence[str] = (),
    *,
    frames: Sequence[int] = (32, 128),
    side: int = 14,
    width: int = 3584,
    keeps: Sequence[float] = KEEPS,
    runs: int = 3,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Time every method on clips of `frames` x `side`² tokens.

    Args:
        methods: names or patterns; none for all that are registered.
        frames: lengths of the clips; keeps: shares kept; runs: timed runs, the median counts.
        side, width: of a frame's token grid, and of a token.
        save: gets the rows so far after every method, so that nothing measured is lost.

    Returns:
        A row a method, length and share: compressor, stage, frames, tokens, keep (as asked),
        kept (measured share), ms, floor_ms and ratio (of both), the same three with bf16 in front
        for bfloat16, flops, flops_share and time_share (of the prefill of the full video), peak_mb
        (extra memory), prefill_ms (estimated). A method with trained weights has no floor. One
        that cannot reach a share has its reason under error and no numbers.

    Raises:
        InputError: an unknown method, or sizes below 1.
    """
    if min(side, width, runs, *frames) < 1:
        raise InputError("bench: sizes and counts start at 1")
    chosen = [n for pattern in methods or ["*"] for n in (names(pattern) or [find(pattern).name])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bench(list(dict.fromkeys(chosen)), frames, side, width, keeps, runs, save)
    finally:
        torch.set_num_threads(threads)


def _bench(
    chosen: Sequence[str],
    frames: Sequence[int],
    side: int,
    width: int,
    keeps: Sequence[float],
    runs: int,
    save: Callable[[list[dict[str, Any]]], None] | None,
) -> list[dict[str, Any]]:
    rate, decoder = matmul_rate(width), Decoder()
    rows: list[dict[str, Any]] = []
    for length in frames:
        tokens, query = random_clip(length, side, width)
        flops = decoder.prefill_flops(len(tokens))
        for name in chosen:
            for keep in keeps:
                row: dict[str, Any] = {
                    "compressor": name,
                    "stage": find(name).stage,
                    "frames": length,
                    "tokens": len(tokens),
                    "keep": keep,
                }
                try:
                    row |= _measure(name, keep, tokens, query, runs)
                    row["flops_share"] = row["flops"] / flops
                    row["time_share"] = row["ms"] / 1e3 / (flops / rate)
                    row["prefill_ms"] = round(flops / rate * 1e3)
                except VidllmError as error:
                    row["error"] = str(error)
                rows.append(row)
            if save is not None:
                save(rows)
    return rows


def _measure(
    name: str, keep: float, tokens: VideoTokens, query: Tensor, runs: int
) -> dict[str, Any]:
    budget = budget_of(keep, len(tokens))
    asked = query if find(name).query_aware else None

    with Peak() as peak:
        after = get(name)(tokens, budget, asked)
    with FlopCounterMode(display=False) as counter:
        get(name)(tokens, budget, asked)
    row = {"kept": round(after.keep, 4), **_times(name, tokens, budget, asked, runs)}
    half = _times(name, tokens.to(dtype=torch.bfloat16), budget, asked, runs)
    row |= {f"bf16_{key}": value for key, value in half.items()}
    flops, megabytes = counter.get_total_flops(), round(peak.megabytes, 1)
    return row | {"flops": flops, "peak_mb": megabytes}


def _times(
    name: str, tokens: VideoTokens, budget: int, query: Tensor | None, runs: int
) -> dict[str, float | None]:
    """Milliseconds of the method and of its floor, in turns, the median of each."""
    clip = Clip(tokens.features.view(tokens.grid[0], -1, tokens.features.shape[1]), budget)
    if still_products in PASSES.get(name, ()):
        still_products(clip)  # the clip's still sets are found before anything is timed
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        began = time.thread_time()
        get(name)(tokens, budget, query)
        took[0].append(time.thread_time() - began)
        began = time.thread_time()
        if name in PASSES:
            floor(name, clip)
            took[1].append(time.thread_time() - began)
    ms = statistics.median(took[0]) * 1e3
    if not took[1]:
        return {"ms": round(ms, 2), "floor_ms": None, "ratio": None}
    least = statistics.median(took[1]) * 1e3
    return {"ms": round(ms, 2), "floor_ms": round(least, 2), "ratio": round(ms / least, 2)}


def compressor_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table."""

    def cells(row: dict[str, Any]) -> list[object]:
        start = [row["compressor"], row["stage"], row["frames"], f"{row['keep']:.0%}"]
        if "error" in row:
            return [*start, *"––––––––––"]
        timed = ("–" if row[key] is None else f"{row[key]:.1f}" for key in _TIMED)
        shares = f"{row['flops_share']:.3%}", f"{row['time_share']:.2%}"
        return [*start, f"{row['kept']:.1%}", *timed, *shares, f"{row['peak_mb']:.0f}"]

    timed = ("ms", "floor", "ratio", "bf16 ms", "floor", "ratio")
    return table(
        map(cells, rows),
        left=("compressor", "stage"),
        right=("frames", "keep", "kept", *timed, "of prefill FLOPs", "of prefill time", "MB"),
        title="Cost of compressors beside the prefill of Qwen2-7B (prefill time estimated from "
        "FLOPs and this machine's matrix products), on one thread, with the passes that a method "
        "needs as its floor",
    )
