"""The measurement behind ``vidllm bench models``: what compression saves at real sizes.

Qwen2.5-VL and LLaVA-OneVision are built from their published configs with random weights; their
inputs are made by hand, as their processors would make them: a video that changes slowly, and 100
tokens of text. Speed does not depend on what the weights say. Every method runs at every share;
beside each measurement stands what the decoder's FLOPs predict, and the ideal: the plain decoder
on a prompt that is already as short in every layer, timed in turns with the method.

Without a GPU everything runs at a tenth: width (heads of the same size, and the MLP), depth (at
least 4 layers), vocabulary and frames are multiplied by `scale`, of the vision tower as well; a
frame keeps its pixels and so its number of tokens.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from vidllm.ask.compression import Compression, compress
from vidllm.cli.tables import table
from vidllm.compressors import build, find, names
from vidllm.errors import InputError, VidllmError
from vidllm.models.cost.flops import Decoder
from vidllm.models.cost.memory import tensor_peak
from vidllm.models.families.family import adapter_for

from .model_shapes import Subject, build_subject

if TYPE_CHECKING:
    from rich.table import Table

KEEPS = (1.0, 0.5, 0.25, 0.1, 0.05)
MODELS = ("qwen2.5-vl-7b", "llava-onevision-7b")
#: Methods that only go on from another one's work.
_BEHIND = {"mustdrop-cache": "mustdrop-filter,mustdrop-cache"}


class _Clock(BaseStreamer):
    """When the tokens of an answer came; the first call brings the prompt."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Tensor) -> None:
        value.cpu()
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is buffered."""


@dataclass
class _Taken:
    """Seconds of one answer: from embeddings to the last hidden states with all choosing, and
    without any; from pixels to the first token; a token after the first."""

    prefill: list[float] = field(default_factory=list)
    ideal: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)


def training_free(patterns: Sequence[str] = ()) -> list[str]:
    """Compressors to measure, in the registry's order; none given: all that need no training.

    Raises:
        InputError: an unknown name, or one with parameters of its own or that keeps everything.
    """
    chosen = [n for p in patterns or ["*"] for n in (names(p) or [find(p).name])]
    free = [n for n in dict.fromkeys(chosen) if not find(n).has_parameters and n != "none"]
    if not free:
        raise InputError(f"{', '.join(patterns)}: bench models is for methods without training")
    return [_BEHIND.get(name, name) for name in free]


@torch.no_grad()
def bench_models(
    models: Sequence[str] = MODELS,
    methods: Sequence[str] = (),
    *,
    frames: Sequence[int] = (32, 128),
    keeps: Sequence[float] = KEEPS,
    scale: float = 1.0,
    runs: int = 3,
    new_tokens: int = 32,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure every method on every model, beside the model without us.

    Args:
        models: names of `vidllm.models.cost.presets`, of the families qwen2_5_vl and
            llava_onevision.
        methods: names or patterns; none for all that need no training.
        frames: lengths of the clips before scaling; keeps: shares kept.
        scale: of width, depth, vocabulary and frames, above 0, at most 1.
        runs: timed runs, the median counts. new_tokens: length of the answers, at least 2.
        save: gets the rows so far after every measurement, so that nothing measured is lost.

    Returns:
        A row a model, length, method and share, the model alone first (compressor "none", no
        keep): model, device, dtype, scale, frames, compressor, stage, keep, tokens and kept
        (video tokens, before and in the last layer), prefill_ms, ideal_ms (of the plain decoder on
        a prompt already that short) and of_ideal (ideal_ms over prefill_ms), ttft_ms, decode_tps
        (tokens a second), peak_mb (memory above the weights), select_ms, prefill_flops; and
        against the model alone: speed_up (of the prefill, measured), flops_ratio (predicted),
        quotient (of both), ttft_speed_up, decode_speed_up, peak_share. What could not be run has
        its reason under error and no numbers.

    Raises:
        InputError: an unknown model or method, or sizes out of range.
    """
    if not 0 < scale <= 1:
        raise InputError(f"--scale must be above 0 and at most 1, got {scale:g}")
    if min(runs, *frames) < 1 or new_tokens < 2:
        raise InputError("bench: counts start at 1, and an answer has 2 tokens")
    if not all(0 < keep <= 1 for keep in keeps):
        raise InputError("bench: shares kept are above 0 and at most 1")
    specs = training_free(methods)
    rows: list[dict[str, Any]] = []
    for name in models:
        subject = build_subject(name, scale, torch.device(device), dtype)
        for length in frames:
            inputs = subject.inputs(max(2, round(length * scale)))
            head = {
                "model": name,
                "device": device_name(device),
                "dtype": str(dtype).removeprefix("torch."),
                "scale": scale,
                "frames": length,
            }
            plain: dict[str, Any] = {}
            for method, keep in [("none", None), *((s, k) for s in specs for k in keeps)]:
                stage = "" if keep is None else find(method.rpartition(",")[2]).stage
                spec = _served(subject, method)
                row = {**head, "compressor": spec, "stage": stage, "keep": keep}
                try:
                    if "error" in plain:
                        raise VidllmError("the model alone could not be run")
                    row |= _measure(subject, inputs, spec, keep, runs, new_tokens)
                    row |= _against(row, plain or row)
                except VidllmError as error:
                    row["error"] = str(error)
                except torch.OutOfMemoryError:
                    row["error"] = "out of memory"
                _free(device)
                plain = plain or row
                rows.append(row)
                if save is not None:
                    save(rows)
        del subject
        _free(device)
    return rows


def _served(subject: Subject, spec: str) -> str:
    """A method that merges inside the tower works behind it where the tower cannot merge."""
    inside = build(spec).in_tower is not None
    return f"{spec}:tower=false" if inside and adapter_for(subject.model).whole_grid() else spec


def device_name(device: str) -> str:
    """What measured: the GPU's name, or the CPU's instruction set and threads."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _measure(
    subject: Subject,
    inputs: dict[str, Any],
    spec: str,
    keep: float | None,
    runs: int,
    new_tokens: int,
) -> dict[str, Any]:
    model, taken = subject.model, _Taken()
    shape = Decoder.of(model.config.get_text_config())
    length = inputs["input_ids"].shape[1]
    counts = [length] * shape.layers
    found: dict[str, Any] = {"tokens": subject.video(inputs)}
    peak = 0.0
    for run in range(-1, runs):  # the first is a warm-up, and the one whose memory is watched
        memory = tensor_peak(model.device)
        with memory if run < 0 else nullcontext():
            c = _answer(subject, inputs, spec, keep, new_tokens, taken)
        if c is not None:
            counts = [len(rows[0]) for rows in c.layers]
        taken.ideal.append(_ideal(model, counts))
        if run < 0:
            peak, taken = memory.megabytes, _Taken()
    if c is not None:
        found["kept"] = c.receipt.tokens_kept
        found["select_ms"] = round(c.receipt.select_ms, 2)
    prefill, ideal = median(taken.prefill), median(taken.ideal)
    return {
        "kept": found["tokens"],
        **found,
        "prefill_ms": 1e3 * prefill,
        "ideal_ms": 1e3 * ideal,
        "of_ideal": ideal / prefill,
        "ttft_ms": 1e3 * median(taken.first),
        "decode_tps": 1 / median(taken.each),
        "peak_mb": peak,
        "prefill_flops": shape.prefill(counts, causal=True, logits=0),
    }


def _answer(
    subject: Subject,
    inputs: dict[str, Any],
    spec: str,
    keep: float | None,
    new_tokens: int,
    taken: _Taken,
) -> Compression | None:
    """One answer, with the times of its parts."""
    model, clock, marks = subject.model, _Clock(), list[float]()
    decoder = model.model.language_model
    block = nullcontext() if keep is None else compress(model, spec, keep=keep)
    # Before what compress hooks on, and behind it: choosing and merging are part of the prefill.
    with (
        _marked(decoder.register_forward_pre_hook, marks, model),
        block as c,
        _marked(decoder.register_forward_hook, marks, model),
    ):
        wait(model)
        began = time.perf_counter()
        model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            streamer=clock,
        )
    taken.prefill.append(marks[1] - marks[0])
    taken.first.append(clock.at[1] - began)
    taken.each.append((clock.at[-1] - clock.at[1]) / (new_tokens - 1))
    return c


def _ideal(model: Any, counts: Sequence[int]) -> float:
    """Seconds of the plain decoder on a prompt of which a layer sees the first counts[layer]."""
    decoder, handles = model.model.language_model, list[Any]()

    def cut(count: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cos, sin = kwargs["position_embeddings"]
            angles = cos[..., :count, :], sin[..., :count, :]
            return (args[0][:, :count], *args[1:]), {**kwargs, "position_embeddings": angles}

        return hook

    states = torch.randn(
        1, counts[0], decoder.config.hidden_size, device=model.device, dtype=model.dtype
    )
    try:
        for layer, count in zip(decoder.layers, counts, strict=True):
            if count < counts[0]:
                handles.append(layer.register_forward_pre_hook(cut(count), with_kwargs=True))
        wait(model)
        began = time.perf_counter()
        decoder(inputs_embeds=states, use_cache=True)
        wait(model)
        return time.perf_counter() - began
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked(register: Callable[..., Any], marks: list[float], model: nn.Module) -> Iterator[None]:
    def mark(*_: Any) -> None:
        if len(marks) < 2:  # later calls are decode steps
            wait(model)
            marks.append(time.perf_counter())

    handle = register(mark)
    try:
        yield
    finally:
        handle.remove()


def wait(model: Any) -> None:
    """Until the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _against(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    speed_up = plain["prefill_ms"] / row["prefill_ms"]
    ratio = plain["prefill_flops"] / row["prefill_flops"]
    return {
        "speed_up": speed_up,
        "flops_ratio": ratio,
        "quotient": speed_up / ratio,
        "ttft_speed_up": plain["ttft_ms"] / row["ttft_ms"],
        "decode_speed_up": row["decode_tps"] / plain["decode_tps"],
        "peak_share": row["peak_mb"] / plain["peak_mb"],
    }


def models_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table."""

    def cells(row: dict[str, Any]) -> list[object]:
        keep = "–" if row["keep"] is None else f"{row['keep']:.0%}"
        start = [row["model"], row["compressor"], row["frames"], keep]
        if "error" in row:
            return [*start, "–", row["error"]]
        prefill = f"{row['prefill_ms']:.1f}", f"{row['ideal_ms']:.1f}", f"{row['of_ideal']:.2f}"
        ratios = (f"{row[name]:.2f}" for name in ("speed_up", "flops_ratio", "quotient"))
        speeds = (f"{row[name]:.1f}" for name in ("ttft_ms", "decode_tps"))
        memory = f"{row['peak_mb']:.0f}", f"{row['peak_share']:.0%}"
        return [*start, row["kept"], *prefill, *ratios, *speeds, *memory]

    first = rows[0]
    columns = ["frames", "keep", "tokens", "prefill ms", "ideal ms", "of ideal"]
    columns += ["speed-up", "FLOPs ratio", "quotient"]
    return table(
        map(cells, rows),
        left=("model", "compressor"),
        right=[*columns, "TTFT ms", "tokens/s", "peak MB", "of full"],
        title=f"Prefill measured against FLOPs predicted: {first['device']}, {first['dtype']}, "
        f"scale {first['scale']:g} (aim: quotient 0.8 or more, memory 100 % or less)",
    )
