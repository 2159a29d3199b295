"""The measurement behind ``vidllm bench encoders``: a layer of every temporal encoder, and rivals.

A sequence of random tokens, frames of 64, goes through one layer that reads forwards, and through
one that reads both ways. Rivals are what people use today without custom kernels: transformers'
Mamba mixer (its Python loop), mambapy's parallel scan, and plain attention; on a GPU also
mamba-ssm's kernels where they are installed. A rival that knows one direction reads both ways as
two layers do. Beside every layer stand its matrix products, timed in turns with it
(`encoder_floor`), and how much faster it is than transformers' mixer in the same run.
"""

from __future__ import annotations

import itertools
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

from .encoder_floor import products
from .measure import Peak, growth

if TYPE_CHECKING:
    from rich.table import Table

LENGTHS, DIMS = (512, 1024, 2048, 4096, 8192, 16384, 32768), (256, 1024)
STATE, EXPAND = 16, 2  # of the Mamba rivals: the paper's
_LOOP = "transformers MambaMixer"
_SLOTS = 64  # tokens of a frame, for encoders that know frames
#: Mamba without kernels holds so many (L, expand * D, state) float32 tensors at once, or more.
_HELD = {_LOOP: 4, "mambapy": 8}
_SLOW = 20.0  # seconds: what takes longer is not run again


class _Ours(nn.Module):
    """One layer of a registered encoder, on (B, L, D), that reads in one direction or in both."""

    def __init__(self, name: str, dim: int, ways: int) -> None:
        super().__init__()
        self.encoder = get_alike(name, dim, bidirectional=ways == 2, scan="raster", layers=1)
        for p in self.encoder.parameters():  # zeros at the start would be free of denormals
            if not p.any():
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        clip = x.unflatten(1, (-1, _SLOTS if x.shape[1] % _SLOTS == 0 else 1))
        seconds = torch.arange(clip.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        out: Tensor = self.encoder(clip, seconds.float())
        return out.flatten(1, 2)


class _Attention(nn.Module):
    """Attention of eight heads through torch's SDPA, causal where it reads one way."""

    def __init__(self, dim: int, ways: int) -> None:
        super().__init__()
        self.causal = ways == 1
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


class _TwoWays(nn.Module):
    """Two layers, one of them on the sequence turned round, and their sum."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.ahead, self.back = make(), make()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.ahead(x) + self.back(x.flip(1)).flip(1)
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


def _layer(name: str, dim: int, ways: int) -> nn.Module:
    if name == "sdpa":
        return _Attention(dim, ways)
    if name not in RIVALS:
        return _Ours(name, dim, ways)
    return RIVALS[name](dim) if ways == 1 else _TwoWays(lambda: RIVALS[name](dim))


RIVALS: dict[str, Callable[[int], nn.Module]] = {
    "sdpa": lambda dim: _Attention(dim, 1),
    _LOOP: _transformers_mamba,
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


def _time(layer: nn.Module, x: Tensor, runs: int) -> tuple[float, float, float]:
    """Median milliseconds of a layer and of its products, and extra megabytes at the peak."""

    def once(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def whole() -> object:
        return layer(x)

    if x.is_cuda:
        once(whole)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        once(whole)
        peak = (torch.cuda.max_memory_allocated() - held) / 1e6
    else:
        with Peak() as watched:
            first = once(whole)
        peak = watched.megabytes
        if first > _SLOW:
            return first * 1e3, once(products(layer, x)) * 1e3, peak
    least, times = products(layer, x), []
    for _ in range(runs):
        times.append((once(whole), once(least)))
        if sum(t for t, _ in times) > _SLOW:
            break
    took, floor = (statistics.median(t) * 1e3 for t in zip(*times, strict=True))
    return took, floor, peak


@torch.inference_mode()
def bench_encoders(
    names: Sequence[str] = (),
    *,
    lengths: Sequence[int] = LENGTHS,
    dims: Sequence[int] = DIMS,
    ways: Sequence[int] = (1, 2),
    runs: int = 3,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Time one layer of each encoder and rival, batch 1.

    Args:
        names: registered encoders or rivals; none for all.
        lengths: tokens L; dims: widths D; ways: directions that a layer reads, 1 or 2;
            runs: timed runs after a warm one, the median counts; what takes over 20 seconds is
            run once.
        save: gets the rows so far after every encoder, so that nothing measured is lost.

    Returns:
        A row an encoder, number of ways, width and length: encoder, ways, dim, length, ms,
        floor_ms (of its matrix products alone) and ratio (of both), peak_mb, exponent (of time over
        length, from 2048 tokens on, the same in all rows of an encoder, ways and width), speed_up
        (against transformers' mixer of that width and length, where it was run), device, dtype,
        threads; or the reason under error.

    Raises:
        InputError: an unknown name, or sizes below 1.
    """
    if min(runs, *lengths, *dims) < 1:
        raise InputError("bench: sizes and counts start at 1")
    if not {1, 2}.issuperset(ways):
        raise InputError("--ways are 1 (forwards) and 2 (both ways)")
    known = [*temporal_names(), *RIVALS]
    for name in names:
        if name not in known:
            raise InputError(f"nothing to measure called {name!r}: there are {', '.join(known)}")
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    kind = {"device": where, "dtype": str(dtype)[6:], "threads": torch.get_num_threads()}
    rows: list[dict[str, Any]] = []
    for dim, way, name in itertools.product(dims, ways, names or known):
        layer: nn.Module | None = None
        mine: list[dict[str, Any]] = []
        for length in sorted(lengths):
            row: dict[str, Any] = {"encoder": name, "ways": way, "dim": dim, "length": length}
            reason = _refusal(name, dim, length, device)
            if reason is None:
                if layer is None:
                    layer = _layer(name, dim, way).to(device, dtype).eval()
                x = torch.randn(1, length, dim, device=device, dtype=dtype)
                took, least, peak = _time(layer, x, runs)
                row |= {"ms": round(took, 3), "floor_ms": round(least, 3)}
                row |= {"ratio": round(took / least, 3) if least else None}
                row["peak_mb"] = round(peak, 3)
            mine.append({**row, "error": reason or "", **kind})
        told = [(r["length"], r["ms"]) for r in mine if "ms" in r and r["length"] >= 2048]
        slope = growth(*zip(*told, strict=True)) if len(told) > 1 else None
        rows += [{**r, "exponent": slope and round(slope, 2)} for r in mine]
        _against_loop(rows)
        if save is not None:
            save(rows)
    return rows


def _against_loop(rows: Sequence[dict[str, Any]]) -> None:
    """How much faster each layer is than transformers' mixer at the same sizes."""
    same = ("ways", "dim", "length")
    loop = {tuple(r[k] for k in same): r["ms"] for r in rows if r["encoder"] == _LOOP and "ms" in r}
    for row in rows:
        other = loop.get(tuple(row[k] for k in same))
        row["speed_up"] = round(other / row["ms"], 3) if other and "ms" in row else None


def encoder_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table: one line an encoder, ways and width, milliseconds by length, and
    at the longest one measured the products' share and the loop."""
    lengths = sorted({row["length"] for row in rows})
    found = []
    lines = ("encoder", "ways", "dim")
    for line in dict.fromkeys(tuple(row[k] for k in lines) for row in rows):
        mine = {r["length"]: r for r in rows if tuple(r[k] for k in lines) == line}
        cells = [f"{mine[n]['ms']:.1f}" if "ms" in mine[n] else "–" for n in lengths]
        slope = next(iter(mine.values()))["exponent"]
        done = [r for r in mine.values() if "ms" in r]
        last = [(f"{r['floor_ms']:.1f}", *(_times(r[k]) for k in _RATIOS)) for r in done[-1:]]
        growth_cell = f"L^{slope:.2f}" if slope else "–"
        peak = f"{max(r['peak_mb'] for r in done):.0f}" if done else "–"
        found.append([*line, *cells, *(last[0] if last else "–––"), growth_cell, peak])
    ratios = ("products", "of them", "of the loop")
    return table(
        found,
        left=("encoder",),
        right=("ways", "D", *(f"L={n}" for n in lengths), *ratios, "grows as", "peak MB"),
        title="Milliseconds of one layer, batch 1; at the longest length its matrix products, "
        f"the layer's time over theirs, and how much faster it is than {_LOOP}",
    )


_RATIOS = ("ratio", "speed_up")


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
