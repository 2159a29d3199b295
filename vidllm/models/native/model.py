"""The project's own video-LLM: vision tower → projector → temporal encoder → decoder LLM.

Every part is replaceable: the tower is a SigLIP, CLIP, DINOv2 or the small `conv` tower, the LLM
any causal decoder of transformers, the temporal encoders those of `vidllm.encoders.temporal`, and
token compressors act between the temporal encoder and the LLM. The shipped weights and a
full-size model built from hub parts are the same class with another config.

The LLM is told time in two ways, both optional: `time_embedding` adds the start and the end of
what a token covers to the token itself (sequence-time embedding, after VTG-LLM; for relative time
tokens the rows of the time tokens are interpolated, so that reading a time off a token is
copying), and `stamps` writes each frame's time before its tokens as text or time tokens.
Positions are those of the uncompressed sequence, whatever was merged or dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from vidllm.compressors import Compressor
from vidllm.compressors.base import InTower
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.vision import HubTower, VisionEncoder, build_vision, load_vision
from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, VideoTokens
from vidllm.video import VideoClip

from ..hooks.cache import CacheChoice, Prefill, decoder_layers
from ..hooks.decoding import generate_from
from ..hooks.pruning import DECODER_SIGNALS, Pruner, VideoRun
from .config import NativeConfig


class TimeProjection(nn.Linear):
    """From time features to the LLM's width; how it starts is its own (see `reset_parameters`).

    The initialiser of transformers passes over modules without parameters of their own, so this
    must be the layer and not its parent.
    """

    def __init__(self, width: int, dim: int, ends: bool) -> None:
        self.ends = ends
        super().__init__(width, dim, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Two ends: start as their mean, as large as a token. Else: start as nothing at all."""
        self.weight.zero_()
        if self.ends:
            self.weight += 1.25 * torch.cat([torch.eye(self.out_features)] * 2, dim=1)


class TimeEmbedding(nn.Module):
    """Seconds (start, end) of every token to vectors of the LLM's width."""

    def __init__(self, config: NativeConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.relative = config.time_code == "relative"
        self.project = TimeProjection(2 * dim if self.relative else 128, dim, self.relative)

    def forward(self, span: Tensor, duration: Tensor, table: Tensor) -> Tensor:
        """`span` (…, L, 2) and `duration` (…) seconds, `table` (V, D) → (…, L, D)."""
        if not self.relative:
            rates = torch.exp(torch.linspace(0, -math.log(8192.0), 32, device=span.device))
            angle = span.float()[..., None] * rates
            waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
            return cast(Tensor, self.project(waves.to(table.dtype)))
        last = self.config.time_tokens - 1
        place = (last * span / duration[..., None, None]).clamp(0, last).float()
        low = place.floor().clamp(max=last - 1)
        weight = (place - low)[..., None].to(table.dtype)
        first = self.config.time_token_start
        rows = table[first : first + self.config.time_tokens]
        low_row = low.long()
        mixed = rows[low_row] * (1 - weight) + rows[low_row + 1] * weight
        return cast(Tensor, self.project(mixed.flatten(-2)))


class VideoNorm(nn.LayerNorm):
    """Brings video tokens to the size of word embeddings, so that their time is heard beside them
    and the decoder's layers can change them."""

    size: float = 0.1

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.size)
        nn.init.zeros_(self.bias)


class NativeVideoLLM(PreTrainedModel):
    """Video in, text out; see the head of this file for the parts."""

    config_class = NativeConfig
    config: NativeConfig
    main_input_name = "frames"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config)
        self.vision = build_vision(config.vision)
        options = {k: v for k, v in config.text.items() if k != "model_type"}
        text = AutoConfig.for_model(config.text["model_type"], **options)
        self.language_model = AutoModelForCausalLM.from_config(
            text, attn_implementation=config._attn_implementation
        )
        dim = int(text.hidden_size)
        folded = self.vision.hidden_size * config.downsample**2
        if self.vision.side % config.downsample:
            raise InputError(
                f"downsample {config.downsample} does not divide the {self.vision.side} cells "
                "of a side"
            )
        self.projector = nn.Sequential(nn.LayerNorm(folded), nn.Linear(folded, dim))
        self.temporal = nn.ModuleList(
            get_temporal(**{"dim": dim, **spec}) for spec in config.temporal
        )
        self.video_norm = VideoNorm(dim)
        self.time_embedding = TimeEmbedding(config, dim) if config.time_embedding else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The parts know how they start (decay rates, zeroed outputs); no general rule over them.
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    @classmethod
    def from_parts(
        cls, vision: str, text: str, *, temporal: list[dict[str, Any]] | None = None, **options: Any
    ) -> NativeVideoLLM:
        """A full-size model from pretrained parts: names on the hub or folders.

        The projector and the temporal encoders are new and must be trained. Time is told as text
        seconds unless `options` (fields of `NativeConfig`) say otherwise.
        """
        tower, tower_config = load_vision(vision)
        llm = AutoModelForCausalLM.from_pretrained(text)
        options = {"time_code": "text", "time_embedding": False, "stamps": True, **options}
        text_config = {"model_type": llm.config.model_type, **llm.config.to_diff_dict()}
        model = cls(NativeConfig(tower_config, text_config, temporal, **options))
        model.vision.load_state_dict(tower.state_dict())
        model.language_model.load_state_dict(llm.state_dict())
        with torch.no_grad():
            table = model.language_model.get_input_embeddings().weight
            model.video_norm.weight.fill_(float(table.float().std()))
        return model

    @property
    def grid_side(self) -> int:
        """Tokens along one side of a frame's grid after the projector."""
        return int(self.vision.side // self.config.downsample)

    @torch.no_grad()
    def smooth_time_tokens(self, size: float = 0.5, width: float = 3.0) -> None:
        """Start relative time tokens as points on a curve, for models trained from nothing.

        Neighbours begin alike (the product of two rows falls as a bell of `width` tokens), so that
        what is learnt of one time holds for the times beside it. Rows have the norm `size`.
        """
        config = self.config
        table = self.language_model.get_input_embeddings().weight
        half = table.shape[1] // 2
        share = (torch.arange(half) + 0.5) / half
        rates = torch.special.ndtri(0.5 + share / 2) / width
        angle = torch.arange(config.time_tokens)[:, None] * rates
        rows = torch.cat([angle.sin(), angle.cos()], dim=1) * size / half**0.5
        first = config.time_token_start
        table[first : first + config.time_tokens, : 2 * half] = rows.to(table)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Rows of the LLM's input embedding, (…) ids → (…, D)."""
        return cast(Tensor, self.language_model.get_input_embeddings()(ids))

    def project(self, frames: Tensor, batch: int = 64) -> Tensor:
        """Frames (F, 3, S, S) in 0..1 → tokens (F, N, D), `batch` frames at a time."""
        return self.fold(torch.cat([self.vision(part) for part in frames.split(batch)]))

    def fold(self, cells: Tensor) -> Tensor:
        """Cells of the tower (F, side², C) → tokens (F, N, D): `downsample`² cells to a token."""
        k, side = self.config.downsample, self.vision.side
        if k > 1:
            cells = cells.unflatten(1, (side // k, k, side // k, k)).permute(0, 1, 3, 2, 4, 5)
            cells = cells.reshape(len(cells), (side // k) ** 2, -1)
        return self._projected(cells)

    def _projected(self, cells: Tensor) -> Tensor:
        return cast(
            Tensor, self.projector(cells.to(cast(nn.Linear, self.projector[1]).weight.dtype))
        )

    def mix(self, tokens: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the temporal encoders: (B, T, N, D) tokens at (B, T) seconds → same shape."""
        for encoder in self.temporal:
            tokens = encoder(tokens, seconds, mask)
        return tokens

    def project_merged(self, frames: Tensor, inside: tuple[InTower, int | None]) -> Tensor:
        """As `project`, with tokens merged in the tower; each place has what stands for it."""
        tower, fold = cast(HubTower, self.vision), self.config.downsample
        seen = tower.with_merging(frames, *inside, fold=fold)
        return self._projected(seen.features)[seen.selection.target].unflatten(0, (len(frames), -1))

    @property
    def provides(self) -> tuple[str, ...]:
        """Signals that compressors may need and that this model gives (see `VideoTokens`)."""
        return (*self.vision.provides, *DECODER_SIGNALS)

    def project_with_signals(
        self, frames: Tensor, batch: int = 64
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `project`, and the tower's signals (F, N, …), averaged as cells fold into a token."""
        k, side = self.config.downsample, self.vision.side
        parts = [cast(HubTower, self.vision).with_signals(part) for part in frames.split(batch)]
        planes = {
            name: torch.cat([signals[name] for _, signals in parts])
            .unflatten(1, (side // k, k, side // k, k))
            .mean((2, 4))
            .flatten(1, 2)
            for name in self.vision.provides
        }
        return self.fold(torch.cat([cells for cells, _ in parts])), planes

    def tower_part(
        self, method: Compressor, frames: int
    ) -> tuple[tuple[InTower, int | None] | None, Compressor]:
        """What of a method merges inside the tower, with its budget, and the rest of it."""
        if method.in_tower is None or not isinstance(self.vision, HubTower):
            return None, method
        grid = (frames, self.grid_side, self.grid_side)
        return tower_part(method, VideoTokens.blank(grid, list(range(frames)), float(frames)))

    @torch.inference_mode()
    def encode(
        self,
        frames: Tensor,
        seconds: np.ndarray,
        duration: float,
        wants: Sequence[str] = (),
        inside: tuple[InTower, int | None] | None = None,
    ) -> VideoTokens:
        """As `video_tokens`, for asking: nothing of it can be trained."""
        return self.video_tokens(frames, seconds, duration, wants, inside)

    def video_tokens(
        self,
        frames: Tensor,
        seconds: np.ndarray,
        duration: float,
        wants: Sequence[str] = (),
        inside: tuple[InTower, int | None] | None = None,
    ) -> VideoTokens:
        """Frames (T, 3, S, S) in 0..1 of one clip → its T·N video tokens, before compression.

        The tower's signals come along when one of them is in `wants`. With `inside`, a method
        and its budget, tokens merge in the tower; temporal encoders see a merged token at the
        places of all that it stands for, and what they make of these is averaged.
        """
        if isinstance(self.vision, VisionEncoder):
            return self._encode_clip(self.vision, frames, seconds, duration)
        planes: dict[str, Tensor] = {}
        merge: Merge | None = None
        signals = bool(set(wants) & set(self.vision.provides))
        if inside is not None:
            tower, fold = cast(HubTower, self.vision), self.config.downsample
            seen = tower.with_merging(frames, *inside, fold=fold, signals=signals)
            tokens, merge = self._projected(seen.features), seen.selection
            whole = VideoTokens.blank(
                (len(frames), self.grid_side, self.grid_side), torch.from_numpy(seconds), duration
            )
            if not self.temporal:
                new = Mix(tokens, merge.target, merge.representative)
                return whole.apply(new).with_signals(**seen.signals)
            planes = seen.signals
            tokens = tokens[merge.target.to(tokens.device)].unflatten(0, (len(frames), -1))
        elif signals:
            tokens, planes = self.project_with_signals(frames)
        else:
            tokens = self.project(frames)
        times = torch.as_tensor(seconds, device=tokens.device, dtype=torch.float32)
        mixed = self.mix(tokens[None], times[None])[0]
        side = self.grid_side
        made = VideoTokens.from_grid(
            mixed.unflatten(1, (side, side)), torch.from_numpy(seconds), duration
        )
        if merge is not None:
            return made.apply(merge).with_signals(**planes)
        return made.with_signals(**{name: plane.flatten(0, 1) for name, plane in planes.items()})

    def _encode_clip(
        self, vision: VisionEncoder, frames: Tensor, seconds: np.ndarray, duration: float
    ) -> VideoTokens:
        """The same through a tower that sees time: a slot of tokens may stand for many frames."""
        times = torch.as_tensor(seconds, device=frames.device, dtype=torch.float32)
        seen = vision(frames[None].to(next(vision.parameters()).dtype), times[None])
        tokens = self.fold(seen.features[0])
        mixed = self.mix(tokens[None], seen.seconds, seen.mask)
        grid = (self.grid_side, self.grid_side)
        return replace(seen, features=mixed, grid=grid).tokens(0, duration)

    def video_embeds(self, features: Tensor, span: Tensor, duration: Tensor) -> Tensor:
        """What the LLM sees of features (…, L, D): `span` (…, L, 2), `duration` (…) seconds."""
        features = self.video_norm(features)
        if self.time_embedding is None:
            return features
        table = self.language_model.get_input_embeddings().weight
        return features + self.time_embedding(span, duration, table).to(features.dtype)

    @torch.inference_mode()
    def prefill(
        self,
        head: Sequence[int],
        tokens: VideoTokens,
        duration: float,
        stamps: Sequence[Sequence[int]] | None = None,
        *,
        tail: Sequence[int] = (),
        method: Compressor | None = None,
        budget: int | None = None,
    ) -> Prefill:
        """Put `head` ids and the video tokens into a fresh KV cache.

        Args:
            head: text ids before the video.
            tokens: what is left of the video after compression.
            duration: of the clip, in seconds.
            stamps: for every original frame the ids to write before its tokens, also where
                nothing is left of it: the model still reads when it was.
            tail: ids of the question, for a method that prunes by it; its last id is left to
                `generate_from`.
            method: compressor of the stage "prefill", at work between the decoder's layers.
            budget: exact number of video tokens that it leaves.
        """
        device = tokens.features.device
        embeds = self.video_embeds(
            tokens.features, tokens.span.to(device), torch.tensor(duration, device=device)
        )
        positions = tokens.position.to(device) + len(head)
        full = len(head) + math.prod(tokens.grid) + sum(map(len, stamps or ()))
        video = torch.arange(len(tokens)) + len(head)
        parts = [self._text(head, 0)]
        if stamps is None:
            parts.append((embeds, positions))
        else:
            lengths = torch.tensor([0, *map(len, stamps)]).cumsum(0)
            cells = math.prod(tokens.grid[1:])
            for f, stamp in enumerate(stamps):
                parts.append(self._text(stamp, len(head) + f * cells + int(lengths[f])))
                mine = (tokens.frame == f).to(device)
                parts.append((embeds[mine], positions[mine] + int(lengths[f + 1])))
            video += lengths[tokens.frame + 1]
        parts.append(self._text(tail, full))
        cache = DynamicCache(config=self.language_model.config)
        sequence = torch.cat([p[0].to(embeds.dtype) for p in parts])[None]
        places = torch.cat([p[1].to(device) for p in parts])[None]
        prune: Pruner | None = None
        if method is not None:
            prune = Pruner(
                decoder_layers(self.language_model),
                cast(nn.Module, self.language_model.base_model.norm),
                method,
                [VideoRun(0, tokens, video, method.goal(tokens, budget))],
                torch.ones(1, sequence.shape[1], dtype=torch.bool),
                attention=str(self.language_model.config._attn_implementation),
            )
        with nullcontext() if prune is None else prune.attached():
            self.language_model.base_model(
                inputs_embeds=sequence, position_ids=places, past_key_values=cache, use_cache=True
            )
        prefill = Prefill(
            cache, sequence.shape[1], full + len(tail), video=video, places=places[0].cpu()
        )
        if prune is not None:
            prefill.alive, prefill.kept = [row for [row] in prune.history], prune.runs[0].tokens
        return prefill.without_last() if tail else prefill

    def _text(self, ids: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """Embeddings and positions of text that begins at position `start`."""
        device = self.device
        places = torch.arange(start, start + len(ids), device=device)
        return self.embed_tokens(torch.tensor(list(ids), dtype=torch.long, device=device)), places

    def generate_from(
        self,
        prefill: Prefill,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos: int,
        choice: CacheChoice | None = None,
    ) -> list[list[int]]:
        """Answer several prompts about one prefill (see `decoding.generate_from`)."""
        return generate_from(
            self.language_model,
            prefill,
            prompts,
            max_new_tokens=max_new_tokens,
            eos=eos,
            choice=choice,
        )


def window(config: NativeConfig, clip: VideoClip) -> tuple[float, float]:
    """Origin and length of the time line that the model is told, in seconds.

    Relative time tokens are spread over the range that was looked at, so that a minute out of
    an hour is told as finely as a minute; absolute codes stay in the whole video's seconds.
    """
    if config.time_code != "relative":
        return 0.0, clip.duration
    end = clip.duration if clip.end is None else min(clip.end, clip.duration)
    return clip.start, max(end - clip.start, 1e-3)


def slot_seconds(tokens: VideoTokens) -> np.ndarray:
    """The middle of what every slot of uncompressed tokens covers, (S,) seconds."""
    middle = tokens.span.double().mean(1).view(tokens.grid[0], -1)[:, 0]
    return middle.numpy()


def slots_of(config: NativeConfig, clip: VideoClip, tokens: VideoTokens) -> np.ndarray:
    """(T,) seconds of the video at which the slots of uncompressed tokens are."""
    if tokens.grid[0] == len(clip):
        return clip.seconds
    return slot_seconds(tokens) + window(config, clip)[0]
