"""FLOPs of an answer that was given, from the shapes of its model and the tokens of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.models.answer import Receipt
from vidllm.models.engine import Counts, EncodedClip, Generation

from .family_shapes import ANY_SIZE
from .flops import VisionTransformer, attention, kv_bytes_per_token, linears
from .prediction import Plan, cost_of
from .shapes import Shape, from_config


class Spending:
    """What a model's answers cost; its shapes are looked up once.

    Args:
        config: of transformers, of the whole model. decoder: of its LLM, for the KV cache.
    """

    def __init__(self, config: Any, decoder: Any = None) -> None:
        self.config, self.decoder = config, decoder
        self._shape = lru_cache(maxsize=4)(self._find)
        self._seeing = lru_cache(maxsize=8)(self._look)

    def receipt(
        self,
        frames: int,
        encoded: EncodedClip,
        said: Generation,
        peak_mb: float | None,
        method: str,
        model: str = "",
    ) -> Receipt:
        """The account of one answer.

        Args:
            frames: of the clip. peak_mb: the most memory of the whole call, where it was measured.
            method: the name of the compressors that ran. model: that of the model.
        """
        total = said.counts.total
        size = kv_bytes_per_token(self.decoder, encoded.element_size)
        flops = self.flops(
            frames,
            encoded.grid,
            said.counts,
            said.text,
            said.made,
            apart=said.apart,
            vision=encoded.tower_flops,
        )
        full_mb, kept_mb = total * size / 1e6, said.cached * size / 1e6
        return Receipt(
            frames,
            total,
            said.kept,
            full_mb,
            kept_mb,
            said.seconds,
            peak_mb,
            flops,
            said.shared_by,
            method,
            model,
        )

    def flops(
        self,
        frames: int,
        grid: tuple[int, int, int],
        counts: Counts,
        text: int,
        answer: int,
        *,
        apart: int = 0,
        vision: float | None = None,
    ) -> dict[str, float] | None:
        """FLOPs by stage, or None for a model whose shapes are not known.

        Args:
            frames: that the vision tower saw. grid: of its tokens.
            text: tokens of the prompt that are no video. answer: tokens of the answer, its end
                included.
            apart: how many of the text at the prompt's end were read in a pass of their own, so
                that those before did not look at them.
            vision: FLOPs of the tower where tokens merged in it; None for those of the whole clip.
        """
        shape, seen = self._shape(*grid[1:]), self._seeing(frames, *grid[1:])
        if shape is None or seen is None:
            return None
        layers, read = (tuple(round(n) for n in some) for some in (counts.layers, counts.read))
        plan = Plan(counts.total, counts.entering, layers, read)
        made = cost_of(
            replace(shape, temporal=None), plan, 1, text=max(1, text), answer=max(1, answer)
        )
        saved = sum(attention(n + text - apart, apart, shape.decoder.mixed) for n in layers)
        return {
            "vision": seen[0] if vision is None else vision,
            "temporal": seen[1],
            "prefill": made.prefill - saved,
            "decode": made.decode,
        }

    def _find(self, rows: int, columns: int) -> Shape | None:
        try:
            if self.config.model_type not in ANY_SIZE:
                return from_config(self.config, "")
            vision = self.config.vision_config
            unit = int(vision.patch_size) * int(getattr(vision, "spatial_merge_size", 2))
            return _stretched(from_config(self.config, "", None, unit), rows, columns)
        except InputError:
            return None

    def _look(self, frames: int, rows: int, columns: int) -> tuple[float, float] | None:
        """FLOPs of the tower and of the temporal encoders."""
        shape = self._shape(rows, columns)
        try:
            return None if shape is None else (shape.vision(frames), shape.mixing(frames))
        except InputError:  # an encoder whose cost cannot be told before it runs
            return None


def _stretched(shape: Shape, rows: int, columns: int) -> Shape:
    """The shape of frames of so many tokens, from that of frames of one token."""
    one: Any = getattr(shape.tower, "__self__", None)
    if not isinstance(one, VisionTransformer):
        raise InputError(f"the tower of a {shape.kind} model has no known shape")
    tower = replace(one, rows=one.rows * rows, columns=one.columns * columns)
    cells = rows * columns
    return replace(
        shape,
        tower=tower.flops,
        rows=rows,
        columns=columns,
        projector=tuple((count * cells, wide, out) for count, wide, out in shape.projector),
    )


@dataclass
class Weight:
    """FLOPs so far."""

    flops: float = 0.0


@contextmanager
def weighed(*modules: nn.Module) -> Iterator[Weight]:
    """Add up what vision transformers of transformers do, by the shapes that their layers meet.

    For towers whose tokens merge on the way, where no formula knows the lengths. Linear layers,
    convolutions of patches, and attention of all to all, as `vidllm.models.cost.flops` counts.
    """
    weight = Weight()

    def linear(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        wide = args[0].shape[-1]
        weight.flops += linears([(args[0].numel() // wide, wide, output.shape[-1])])

    def patches(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        kernel = cast(Tensor, layer.weight)[0].numel()
        weight.flops += linears([(output.numel() // output.shape[1], kernel, output.shape[1])])

    def attends(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        wide = hidden.shape[-1]
        if hidden.dim() == 3:
            sizes = [hidden.shape[:2]]
        elif "segments" in kwargs:  # a packed row in which tokens merged
            sizes = [some.shape for some in kwargs["segments"].index]
        else:
            ends = kwargs["cu_seqlens"].diff().unique(return_counts=True)
            sizes = [(count, n) for n, count in zip(*(x.tolist() for x in ends), strict=True)]
        weight.flops += sum(rows * attention(length, length, wide) for rows, length in sizes)

    handles: list[Any] = []
    for layer in (layer for top in modules for layer in top.modules()):
        if isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_hook(linear))
        elif isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            handles.append(layer.register_forward_hook(patches))
        if any(hasattr(layer, name) for name in ("q_proj", "qkv", "q")):
            handles.append(layer.register_forward_pre_hook(attends, with_kwargs=True))
    try:
        yield weight
    finally:
        for handle in handles:
            handle.remove()
