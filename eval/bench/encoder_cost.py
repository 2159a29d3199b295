"""The measurement behind ``vidllm bench encoders``: a layer of every temporal encoder, and rivals.

A sequence of random tokens, frames of 64, goes through one layer that reads forwards. Rivals are
what people use today without custom kernels: transformers' Mamba mixer (its Python loop), mambapy's
parallel scan, and plain attention; on a GPU also mamba-ssm's kernels where they are installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidllm.cli.tables import table
from vidllm.encoders.temporal import get_alike, temporal_names
from vidllm.errors import InputError

from .measure import Peak, growth

if TYPE_CHECKING:
    from rich.table import Table

LENGTHS, DIMS = (512, 1024, 2048, 4096, 8192, 16384, 32768), (256, 1024)
STATE, EXPAND = 16, 2  # of the Mamba rivals: the paper's
_SLOTS = 64  # tokens of a frame, for encoders that know frames
#: Mamba without kernels holds so many (L, expand * D, state) float32 tensors at once, or more.
_HELD = {"transformers MambaMixer": 4, "mambapy": 8}
_SLOW = 20.0  # seconds: what takes longer is not run again


class _Ours(nn.Module):
    """One causal layer of a registered encoder, on (B, L, D)."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.encoder = get_alike(name, dim, bidirectional=False, scan="raster", layers=1)
        for p in self.encoder.parameters():  # zeros at the start would be free of denormals
            if not p.any():
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        clip = x.unflatten(1, (-1, _SLOTS if x.shape[1] % _SLOTS == 0 else 1))
        seconds = torch.arange(clip.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        out: Tensor = self.encoder(clip, seconds.float())
        return out.flatten(1, 2)


class _Attention(nn.Module):
    """Causal attention of eight heads through torch's SDPA."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


def _transformers_mamba(dim: int) -> nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=dim, state_size=STATE, expand=EXPAND, use_mambapy=False)
    return MambaMixer(config, layer_idx=0)


def _mambapy(dim: int) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig  # type: ignore[import-not-found,unused-ignore]

    block: nn.Module = MambaBlock(
        MambaConfig(d_model=dim, n_layers=1, d_state=STATE, expand_factor=EXPAND)
    )
    return block


def _mamba_ssm(dim: int) -> nn.Module:
    from mamba_ssm import Mamba2  # type: ignore[import-not-found,unused-ignore]

    kernels: nn.Module = Mamba2(d_model=dim, d_state=64, headdim=64)
    return kernels


RIVALS: dict[str, Callable[[int], nn.Module]] = {
    "sdpa": _Attention,
    "transformers MambaMixer": _transformers_mamba,
    "mambapy": _mambapy,
    "mamba-ssm Mamba2": _mamba_ssm,
}
_NEEDS = {"mambapy": "mambapy", "mamba-ssm Mamba2": "mamba_ssm"}


def _refusal(name: str, dim: int, length: int, device: str) -> str | None:
    """Why a layer is not measured here, or None."""
    package = _NEEDS.get(name)
    if package and find_spec(package) is None:
        return f"{package} is not installed"
    if name == "mamba-ssm Mamba2" and device == "cpu":
        return "its kernels need a GPU"
    if name in _HELD and device == "cpu":
        import psutil

        needed = _HELD[name] * length * EXPAND * dim * STATE * 4
        free = psutil.virtual_memory().available
        if needed > 0.8 * free:
            return f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    return None


def _time(layer: nn.Module, x: Tensor, runs: int) -> tuple[float, float]:
    """Median milliseconds, and extra megabytes at the peak."""

    def once() -> None:
        layer(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    if x.is_cuda:
        once()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        once()
        peak = (torch.cuda.max_memory_allocated() - held) / 1e6
    else:
        began = time.perf_counter()
        with Peak() as watched:
            once()
        peak, first = watched.megabytes, time.perf_counter() - began
        if first > _SLOW:
            return first * 1e3, peak
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
        if sum(times) > _SLOW:
            break
    return statistics.median(times) * 1e3, peak


@torch.inference_mode()
def bench_encoders(
    names: Sequence[str] = (),
    *,
    lengths: Sequence[int] = LENGTHS,
    dims: Sequence[int] = DIMS,
    runs: int = 3,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Time one causal layer of each encoder and rival, batch 1.

    Args:
        names: registered encoders or rivals; none for all.
        lengths: tokens L; dims: widths D; runs: timed runs after a warm one, the median counts;
            what takes over 20 seconds is run once.
        save: gets the rows so far after every encoder, so that nothing measured is lost.

    Returns:
        A row an encoder, width and length: encoder, dim, length, ms, peak_mb, exponent (of time
        over length, from 2048 tokens on, the same in all rows of an encoder and width), device,
        dtype, threads; or the reason under error.

    Raises:
        InputError: an unknown name, or sizes below 1.
    """
    if min(runs, *lengths, *dims) < 1:
        raise InputError("bench: sizes and counts start at 1")
    known = [*temporal_names(), *RIVALS]
    for name in names:
        if name not in known:
            raise InputError(f"nothing to measure called {name!r}: there are {', '.join(known)}")
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    rows: list[dict[str, Any]] = []
    for dim in dims:
        for name in names or known:
            layer: nn.Module | None = None
            mine: list[dict[str, Any]] = []
            for length in sorted(lengths):
                row: dict[str, Any] = {"encoder": name, "dim": dim, "length": length}
                reason = _refusal(name, dim, length, device)
                if reason is None:
                    if layer is None:
                        made = RIVALS[name](dim) if name in RIVALS else _Ours(name, dim)
                        layer = made.to(device, dtype).eval()
                    x = torch.randn(1, length, dim, device=device, dtype=dtype)
                    row["ms"], row["peak_mb"] = (round(v, 3) for v in _time(layer, x, runs))
                row |= {"error": reason or "", "device": where, "dtype": str(dtype)[6:]}
                mine.append({**row, "threads": torch.get_num_threads()})
            told = [(r["length"], r["ms"]) for r in mine if "ms" in r and r["length"] >= 2048]
            slope = growth(*zip(*told, strict=True)) if len(told) > 1 else None
            rows += [{**r, "exponent": slope and round(slope, 2)} for r in mine]
            if save is not None:
                save(rows)
    return rows


def encoder_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table: one line an encoder and width, milliseconds by length."""
    lengths = sorted({row["length"] for row in rows})
    found = []
    for name, dim in dict.fromkeys((row["encoder"], row["dim"]) for row in rows):
        mine = {r["length"]: r for r in rows if (r["encoder"], r["dim"]) == (name, dim)}
        cells = [f"{mine[n]['ms']:.1f}" if "ms" in mine[n] else "–" for n in lengths]
        slope = next(iter(mine.values()))["exponent"]
        peaks = [r["peak_mb"] for r in mine.values() if "peak_mb" in r]
        growth_cell = f"L^{slope:.2f}" if slope else "–"
        found.append([name, dim, *cells, growth_cell, f"{max(peaks):.0f}" if peaks else "–"])
    return table(
        found,
        left=("encoder",),
        right=("D", *(f"L={n}" for n in lengths), "grows as", "peak MB"),
        title="Milliseconds of one causal layer, batch 1",
    )
