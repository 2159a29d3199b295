"""One step of the course "video-llm": from clips and packed questions to losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.mrt5 import Mrt5
from vidllm.encoders.vision import VisionEncoder
from vidllm.models.native.model import NativeVideoLLM
from vidllm.stage.training import losses
from vidllm.stage.training.data import IGNORE
from vidllm.stage.training.trainee import (
    Reduced,
    frame_edges,
    looking_losses,
    paint,
    read_out,
    spoken_scores,
)
from vidllm.tokens import VideoTokens

from .reducing import DeletionControl, Reductions, padded, softly_deleted

#: How much each loss counts where the recipe does not say.
LOSSES: Mapping[str, float] = {
    "words": 1.0,
    "pointing": 0.5,
    "naming": 0.5,
    "telling": 0.3,
    "meaning": 1.0,
    "deletion": 1.0,
}
#: Losses that know who stands where on the stage: the looks of words, and what cells mean.
LOOKS = ("pointing", "naming", "telling")


class Tuner(nn.Module):
    """A model with its learned reductions; `forward` returns the losses of a batch.

    Args:
        head: (H,) ids before the video.
        heads: of the stage training, for the losses that need the stage; None for other videos.
        weights: of the losses, by name; those that are 0 are not computed.
        sigma: width of the bell over neighbours that times as single tokens are taught by.
    """

    def __init__(
        self,
        model: NativeVideoLLM,
        reductions: Reductions,
        head: Sequence[int],
        heads: losses.Heads | None,
        weights: Mapping[str, float],
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.reductions, self.heads = model, reductions, heads
        self.weights, self.sigma = dict(weights), sigma
        self.register_buffer("head", torch.tensor(list(head)), persistent=False)
        self.control = DeletionControl()

    def forward(
        self, batch: dict[str, Tensor], *, spec: str, soft: bool = False
    ) -> dict[str, Tensor]:
        """Losses by name, `total` among them.

        Args:
            batch: `ids`, `labels`, `slot`, `offset`, `seconds`, `duration` as of `StageBatches`,
                and of the video the tower's `cells` (B, T, N, C), or `pixels` (B, T, 3, S, S)
                uint8, or what `paint` takes.
            spec: a method of the mixture. soft: MrT5's gate deletes softly.
        """
        method = self.reductions.methods[spec]
        if method.query_aware:
            batch = _one_question(batch)
        out: dict[str, Tensor] = {}
        clips, mixed = self._clips(batch, method)
        if isinstance(method, Mrt5) and soft:
            left, told = softly_deleted(method, clips, self.control)
            out |= told
        else:
            left = self._reduced(batch, clips, method)
        config, w = self.model.config, self.weights
        head = cast(Tensor, self.head).to(left.slot.device)
        read = read_out(self.model, head, batch, left)
        single = config.time_code == "relative"
        first, number = (config.time_token_start, config.time_tokens) if single else (0, 0)
        out["words"] = losses.word_loss(
            read.logits, read.labels, read.weights, first, number, self.sigma
        )
        if self.heads is not None and single and any(w.get(name, 0.0) for name in LOOKS):
            edges = frame_edges(batch["seconds"], batch["duration"])
            target = losses.pointing_targets(batch, self.model.grid_side, edges)
            out |= looking_losses(self.heads, self.model, batch, read, left.flags(target))
        if self.heads is not None and mixed is not None and w.get("meaning", 0.0):
            cells = losses.meanings(batch, self.model.grid_side)
            out["meaning"], _ = losses.meaning_loss(self.heads, self.model, mixed, cells)
        if "points" in batch and single:
            with torch.no_grad():
                out |= spoken_scores(config, batch, read)
        else:
            with torch.no_grad():
                out["right"] = (read.logits.argmax(-1) == read.labels).float().mean()
        total = sum(w[name] * out[name] for name in w if name in out and w[name])
        return {**out, "total": torch.as_tensor(total)}

    def _clips(
        self, batch: dict[str, Tensor], method: Compressor
    ) -> tuple[list[VideoTokens], Tensor | None]:
        """The tokens of every clip before reduction, and (B, T, N, D) where they are one grid.

        What merges in the tower has merged.
        """
        model = self.model
        count, frames = batch["seconds"].shape
        seconds, ends = batch["seconds"].cpu(), batch["duration"].tolist()
        if "cells" in batch:
            tokens = model.fold(batch["cells"].flatten(0, 1)).unflatten(0, (count, frames))
            mixed = model.mix(tokens, batch["seconds"])
            side = model.grid_side
            grids = mixed.unflatten(2, (side, side))
            clips = [
                VideoTokens.from_grid(grid, times, end)
                for grid, times, end in zip(grids, seconds, ends, strict=True)
            ]
            return clips, mixed
        inside, _ = model.tower_part(method, frames)
        wants = (*method.needs, *method.uses)
        clips = [
            model.video_tokens(pixels, times.numpy(), end, wants, inside)
            for pixels, times, end in zip(self._pixels(batch), seconds, ends, strict=True)
        ]
        even = isinstance(model.vision, VisionEncoder) or inside is not None
        side = model.grid_side**2
        stacked = [clip.features.unflatten(0, (frames, side)) for clip in clips] if not even else []
        return clips, torch.stack(stacked) if stacked else None

    def _pixels(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, 3, S, S) in 0..1."""
        if "pixels" in batch:
            return batch["pixels"].float() / 255
        with torch.no_grad():
            pixels = paint(batch, self.model.vision.image_size, noisy=True)
        return pixels.unflatten(0, batch["seconds"].shape)

    def _reduced(
        self, batch: dict[str, Tensor], clips: list[VideoTokens], method: Compressor
    ) -> Reduced:
        frames = batch["seconds"].shape[1]
        rest = method if "cells" in batch else self.model.tower_part(method, frames)[1]
        left = []
        for row, clip in enumerate(clips):
            query = None
            if rest.query_aware:
                unanswered = (batch["labels"][row] != IGNORE).cumsum(0) == 0
                asked = (batch["slot"][row] >= 0) & unanswered
                query = self.model.embed_tokens(batch["ids"][row][asked]).detach()
            left.append(rest(clip, query=query))
        return padded(left)


def _one_question(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the first question of every clip alone: a method chooses tokens by it."""
    alone = batch["slot"] == 0
    labels = batch["labels"].masked_fill(~alone, IGNORE)
    made = {**batch, "labels": labels, "slot": batch["slot"].masked_fill(~alone, -1)}
    for name in ("points", "fields"):
        if name in batch:
            inside = alone.gather(1, batch[name].clamp(min=0))
            made[name] = batch[name].masked_fill(~inside, -1)
    return made


def needs_pixels(methods: Mapping[str, Compressor], model: NativeVideoLLM) -> bool:
    """Whether a method merges inside the tower or reads its signals, so that kept cells of the
    tower do not do."""
    provides = set(model.vision.provides) if hasattr(model.vision, "provides") else set()
    for method in methods.values():
        if provides & {*method.needs, *method.uses}:
            return True
        if model.tower_part(method, 2)[0] is not None:
            return True
    return False
