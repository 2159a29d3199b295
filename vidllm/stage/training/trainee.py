"""One training step: from sprite tracks to losses, on the training device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vidllm.compressors import Compressor, build
from vidllm.compressors.mrt5 import Mrt5
from vidllm.encoders.vision import HubTower, to_pixels
from vidllm.errors import InputError
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM
from vidllm.tokens import Selection, VideoTokens, apply_all

from ..render import render, to_uint8
from . import losses
from .data import IGNORE, block_mask
from .query_blocks import QUERY_BLOCKS
from .tokenizer import USER


def paint(batch: dict[str, Tensor], size: int, *, noisy: bool, chunk: int = 1024) -> Tensor:
    """Render a batch and prepare it as a decoded file would be: (B·T, 3, size, size) in 0..1.

    `noisy` adds what a codec does to a picture: less grain, half the colour resolution, blur.
    """
    count, frames = batch["seconds"].shape

    def spread(value: Tensor) -> Tensor:
        return value[:, None].expand(count, frames, *value.shape[1:]).flatten(0, 1)

    noise = batch["noise"] * (torch.rand_like(batch["noise"]) if noisy else 1.0)
    parts = zip(
        batch["state"].flatten(0, 1).split(chunk),
        spread(batch["glyph"]).split(chunk),
        spread(batch["background"]).split(chunk),
        spread(noise).split(chunk),
        batch["clock"].flatten().split(chunk),
        spread(batch["soft"]).split(chunk),
        strict=True,
    )
    done = [to_pixels(to_uint8(render(*part, size=size, soft=soft)), size) for *part, soft in parts]
    pixels = torch.cat(done)
    return _codec(pixels) if noisy else pixels


def _codec(pixels: Tensor) -> Tensor:
    luma = pixels.mean(1, keepdim=True)
    chroma = F.avg_pool2d(pixels - luma, 2)
    chroma = F.interpolate(chroma, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    soft = F.avg_pool2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = 0.5 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
    return (luma + amount * (soft - luma) + chroma).clamp_(0, 1)


def frame_edges(seconds: Tensor, duration: Tensor) -> Tensor:
    """Spans (B, T, 2) of frames at `seconds` (B, T), by the rule of `VideoTokens.from_grid`."""
    middle = (seconds[:, 1:] + seconds[:, :-1]) / 2
    first = torch.zeros_like(seconds[:, :1])
    last = torch.maximum(duration[:, None], seconds[:, -1:])
    edges = torch.cat([first, middle, last], dim=1)
    return torch.stack([edges[:, :-1], edges[:, 1:]], dim=-1)


def planned_method(spec: str) -> Compressor:
    """A compressor that training can meet: the gate, or one whose plan is that of every clip.

    Raises:
        InputError: it looks at features, at the question, or works inside the model.
    """
    method = build(spec)
    if method.uses_features and not isinstance(method, Mrt5):
        raise InputError(
            f"{spec} chooses tokens by their features, but training makes one plan for all clips "
            "of a batch: train with methods that choose by place and time alone, such as "
            "temporal-pool, spatial-pool, frame-sample, uniform or random, or with mrt5"
        )
    return method


@dataclass(frozen=True)
class Reduced:
    """What a method leaves of a batch: features (B, K, D), spans (B, K, 2), positions (B, K).

    `slot` (B, S) is where every original token went, -1 where it was dropped. `bias` (B, K) is
    added to the logits of whoever attends to a token: -inf where a clip has fewer; None for zeros.
    """

    features: Tensor
    span: Tensor
    position: Tensor
    slot: Tensor
    bias: Tensor | None = None

    def flags(self, target: Tensor) -> Tensor:
        """Flags (N, B, P, S) of original tokens → (N, B, P, K): what one of its sources has."""
        count = self.position.shape[1]
        slot = torch.where(self.slot < 0, count, self.slot)[None, :, None].expand_as(target)
        kept = target.new_zeros(*target.shape[:-1], count + 1)
        return kept.scatter_reduce(-1, slot, target, "amax")[..., :count]


class Reducer:
    """Compressors applied to a whole batch at once, see `planned_method`."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.plans: dict[tuple[str, int], tuple[list[Selection], Tensor, Tensor]] = {}

    def plan(self, spec: str, frames: int) -> tuple[list[Selection], Tensor, Tensor]:
        """Selections, where every original token went (S,), and the kept positions (K,)."""
        if (spec, frames) not in self.plans:
            method = planned_method(spec)
            tokens = VideoTokens.blank((frames, self.side, self.side), range(frames), frames)
            kept, selections = method.run(tokens)
            self.plans[spec, frames] = selections, kept.source, kept.position
        return self.plans[spec, frames]

    def __call__(self, spec: str, features: Tensor, span: Tensor, gate: Tensor) -> Reduced:
        """Reduce features (B, T, N, D) with spans (B, T·N, 2); `gate` (B, T, N) for mrt5."""
        frames, flat, method = features.shape[1], features.flatten(1, 2), planned_method(spec)
        if isinstance(method, Mrt5):
            keep = 1.0 if method.keep is None else method.keep
            return gated(flat, span, gate.flatten(1), round(keep * flat.shape[1]))
        selections, source, position = self.plan(spec, frames)
        count, device = len(flat), flat.device
        slot, position = (v.to(device).expand(count, -1) for v in (source, position))
        if not selections:
            return Reduced(flat, span, position, slot)
        kept = torch.where(slot < 0, position.shape[1], slot)
        low = span.new_full((count, position.shape[1] + 1), torch.inf)
        high = -low
        low = low.scatter_reduce(1, kept, span[..., 0], "amin")
        high = high.scatter_reduce(1, kept, span[..., 1], "amax")
        spans = torch.stack([low, high], dim=-1)[:, :-1]
        return Reduced(apply_all(flat, selections), spans, position, slot)


def gated(features: Tensor, span: Tensor, gate: Tensor, keep: int) -> Reduced:
    """The `keep` tokens of every clip whose gate (B, S) is highest, in their order."""
    position = gate.topk(max(1, keep), dim=1).indices.sort(1).values
    rank = torch.arange(position.shape[1], device=gate.device).expand_as(position)
    slot = torch.full_like(gate, -1, dtype=torch.long).scatter(1, position, rank)
    at = position[..., None]
    return Reduced(
        features.gather(1, at.expand(-1, -1, features.shape[-1])),
        span.gather(1, at.expand(-1, -1, 2)),
        position,
        slot,
    )


def attend_by_blocks(model: NativeVideoLLM) -> None:
    """Let tower and LLM attend by blocks of queries instead of a fused kernel."""
    model.language_model.set_attn_implementation(QUERY_BLOCKS)
    if isinstance(model.vision, HubTower):
        cast(Any, model.vision.model).set_attn_implementation(QUERY_BLOCKS)


@dataclass(frozen=True)
class Reading:
    """What a decoder made of a batch: `prefix` video and head tokens, then the packed text.

    `states` are those of all layers (B, L, D) at `places` (B, L). `rows` (B, text) are where an
    answer is due, `logits` (R, V) and `labels` (R,) of these, `weights` (R,) how much each counts.
    """

    states: tuple[Tensor, ...]
    places: Tensor
    prefix: int
    rows: Tensor
    logits: Tensor
    labels: Tensor
    weights: Tensor


def read_out(
    model: NativeVideoLLM, head: Tensor, batch: dict[str, Tensor], left: Reduced
) -> Reading:
    """Let the decoder read the head, the video tokens and the packed questions.

    Args:
        head: (H,) ids before the video. batch: its `ids`, `labels`, `slot`, `offset`, `duration`.
        left: of the video; its `slot` counts the tokens that there were.
    """
    count, total = left.slot.shape
    video = model.video_embeds(left.features, left.span, batch["duration"])
    first = head.expand(count, -1)
    text = model.embed_tokens(batch["ids"])
    embeds = torch.cat([model.embed_tokens(first), video.to(text.dtype), text], dim=1)
    ahead = len(head)
    prefix, full = ahead + left.position.shape[1], ahead + total
    start = torch.arange(ahead, device=first.device).expand(count, -1)
    places = torch.cat([start, ahead + left.position, full + batch["offset"]], dim=1)
    mask = block_mask(batch["slot"], prefix, embeds.dtype)
    if left.bias is not None:
        least = torch.finfo(mask.dtype).min
        keys = F.pad(left.bias, (ahead, mask.shape[-1] - prefix)).to(mask.dtype)
        mask = (mask + keys[:, None, None]).clamp(min=least)
    result = model.language_model.model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=places,
        use_cache=False,
        output_hidden_states=True,
    )
    labels = batch["labels"]
    rows = labels != IGNORE
    weights = losses.answer_weights(labels, batch["slot"], IGNORE)[rows]
    logits = model.language_model.lm_head(result.last_hidden_state[:, prefix:][rows])
    return Reading(result.hidden_states, places, prefix, rows, logits, labels[rows], weights)


class Trainee(nn.Module):
    """A model with its training heads; `forward` returns the losses of a batch."""

    def __init__(
        self,
        model: NativeVideoLLM,
        tokenizer: PreTrainedTokenizerFast,
        weights: losses.LossWeights,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = losses.Heads(model, tokenizer)
        self.weights = weights
        self.head_id = int(tokenizer.convert_tokens_to_ids(USER))  # type: ignore[arg-type]
        self.reducer = Reducer(model.grid_side)

    def see(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of the tower on single frames."""
        with torch.no_grad():
            pixels = paint(batch, self.model.vision.image_size, noisy=True)
        shape = batch["seconds"].shape
        tower = self.model.vision
        if not isinstance(tower, HubTower):
            sight = losses.sight_loss(self.heads, tower(pixels).unflatten(0, shape), batch)
            return {"sight": sight, "total": sight}
        seen = tower.run(pixels)
        cells = seen.last_hidden_state[:, tower.special :].unflatten(0, shape)
        sight = losses.sight_loss(self.heads, cells, batch)
        glance = losses.glance_loss(self.heads, seen.pooler_output.unflatten(0, shape), batch)
        return {"sight": sight, "glance": glance, "total": sight + self.weights.glance * glance}

    def forward(
        self, batch: dict[str, Tensor], *, phase: str, reduction: str = "none"
    ) -> dict[str, Tensor]:
        """Losses by name, `total` among them.

        Args:
            batch: of `StageBatches`; after phase "see" with `cells` (B, T, cells, D) of the tower.
            phase: "see" (the tower), "mix" (projector and temporal encoders) or "answer" (all but
                the tower).
            reduction: compressor spec for this batch.
        """
        if phase == "see":
            return self.see(batch)
        count, frames = batch["seconds"].shape
        tokens = self.model.fold(batch["cells"].flatten(0, 1)).unflatten(0, (count, frames))
        mixed = self.model.mix(tokens, batch["seconds"])
        out: dict[str, Tensor] = {}
        target = losses.meanings(batch, self.model.grid_side)
        out["meaning"], out["action_recall"] = losses.meaning_loss(
            self.heads, self.model, mixed, target
        )
        out["gating"], gate = losses.gating_loss(self.heads, mixed, target)
        total = self.weights.meaning * out["meaning"] + self.weights.gating * out["gating"]
        if phase == "answer":
            spoken = self._speak(batch, mixed, reduction, gate.detach())
            w = self.weights
            total = total + w.words * spoken["words"] + w.pointing * spoken["pointing"]
            total = total + w.naming * spoken["naming"] + w.telling * spoken["telling"]
            out |= spoken
        return {**out, "total": total}

    def _speak(
        self, batch: dict[str, Tensor], mixed: Tensor, reduction: str, gate: Tensor
    ) -> dict[str, Tensor]:
        model, config = self.model, self.model.config
        edges = frame_edges(batch["seconds"], batch["duration"])
        spans = edges.repeat_interleave(mixed.shape[2], dim=1)
        target = losses.pointing_targets(batch, model.grid_side, edges)
        left = self.reducer(reduction, mixed, spans, gate)
        target = left.flags(target)
        read = read_out(model, torch.tensor([self.head_id], device=spans.device), batch, left)
        first, number = config.time_token_start, config.time_tokens
        words = losses.word_loss(
            read.logits, read.labels, read.weights, first, number, self.weights.sigma
        )
        looks = looking_losses(self.heads, model, batch, read, target)
        with torch.no_grad():
            return {"words": words, **looks, **spoken_scores(config, batch, read)}


def looking_losses(
    heads: losses.Heads,
    model: NativeVideoLLM,
    batch: dict[str, Tensor],
    read: Reading,
    target: Tensor,
) -> dict[str, Tensor]:
    """Losses "pointing", "naming" and "telling": where words look, and what nouns tell.

    Args:
        target: of `losses.pointing_targets`, reduced as the tokens are.
    """
    layer = model.language_model.config.num_hidden_layers // 2
    points = batch["points"]
    asked = (points >= 0) & (batch["labels"].gather(1, points.clamp(min=0)) == IGNORE)  # nouns
    told, named = points.masked_fill(asked, -1), points.masked_fill(~asked, -1)
    states, early, video_at = read.states, max(0, layer - 1), slice(1, read.prefix)
    width = states[0].shape[-1]
    nouns = (points.clamp(min=0) + read.prefix)[..., None].expand(-1, -1, width)
    verbs = cast(Tensor, heads.word_ids)[losses.LOOKS :]
    state = model.language_model.model.norm(states[early + 1].gather(1, nouns))
    said = state @ model.embed_tokens(verbs).T
    return {
        "pointing": losses.pointing_loss(
            model, states[layer], layer, read.places, video_at, told, target
        ),
        "naming": losses.pointing_loss(
            model, states[early], early, read.places, video_at, named, target[:1]
        ),
        "telling": losses.telling_loss(said, batch["point_acts"]),
    }


def spoken_scores(
    config: NativeConfig, batch: dict[str, Tensor], read: Reading
) -> dict[str, Tensor]:
    """Teacher-forced mIoU and R1@0.5 of all spans, and the accuracy of answers without one."""
    labels, slot, points = batch["labels"], batch["slot"], batch["fields"]
    first, number = config.time_token_start, config.time_tokens
    guess = torch.full_like(labels, IGNORE)
    guess[read.rows] = read.logits.argmax(-1)
    said = guess.gather(1, points.clamp(min=0)) - first
    seconds = said.clamp(0, number - 1) / (number - 1) * batch["duration"][:, None]
    start, end = seconds[:, 0::2], seconds[:, 1::2]
    truth = batch["field_spans"][:, 0::2]
    used = points[:, 0::2] >= 0
    meet = (torch.minimum(end, truth[..., 1]) - torch.maximum(start, truth[..., 0])).clamp(min=0)
    union = torch.maximum(end, truth[..., 1]) - torch.minimum(start, truth[..., 0])
    iou = (meet / union.clamp(min=1e-6))[used]
    wrong, timed, asked = (
        torch.zeros_like(labels[:, : int(slot.max()) + 1]).scatter_add_(
            1, slot.clamp(min=0), (flag & (slot >= 0)).long()
        )
        for flag in (
            read.rows & (guess != labels),
            (labels >= first) & (labels < first + number),
            read.rows,
        )
    )
    short = (timed == 0) & (asked > 0)
    return {
        "iou": iou.mean(),
        "r50": (iou >= 0.5).float().mean(),
        "qa": (wrong[short] == 0).float().mean(),
    }
