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
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
)

from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.vision import build_vision, load_vision

from ..errors import InputError
from ..tokens import VideoTokens
from .config import NativeConfig
from .parts import TimeEmbedding, VideoNorm

__all__ = ["NativeConfig", "NativeVideoLLM", "Prefix"]


@dataclass
class Prefix:
    """The start of a prompt that every question of a video shares, already in the KV cache.

    `cache` holds P positions; `length` is P; `next_position` is where the text goes on, counted
    in the uncompressed sequence.
    """

    cache: DynamicCache
    length: int
    next_position: int


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
        return cast(
            Tensor, self.projector(cells.to(cast(nn.Linear, self.projector[1]).weight.dtype))
        )

    def mix(self, tokens: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the temporal encoders: (B, T, N, D) tokens at (B, T) seconds → same shape."""
        for encoder in self.temporal:
            tokens = encoder(tokens, seconds, mask)
        return tokens

    @torch.inference_mode()
    def encode(self, frames: Tensor, seconds: np.ndarray, duration: float) -> VideoTokens:
        """Frames (T, 3, S, S) in 0..1 of one clip → its T·N video tokens, before compression."""
        tokens = self.project(frames)
        times = torch.as_tensor(seconds, device=tokens.device, dtype=torch.float32)
        mixed = self.mix(tokens[None], times[None])[0]
        side = self.grid_side
        return VideoTokens.from_grid(
            mixed.unflatten(1, (side, side)), torch.from_numpy(seconds), duration
        )

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
    ) -> Prefix:
        """Put `head` ids and the video tokens into a fresh KV cache.

        Args:
            head: text ids before the video.
            tokens: what is left of the video after compression.
            duration: of the clip, in seconds.
            stamps: for every original frame the ids to write before its tokens; the stamp of a
                frame of which nothing is left is not written.
        """
        device = tokens.features.device
        embeds = self.video_embeds(
            tokens.features, tokens.span.to(device), torch.tensor(duration, device=device)
        )
        positions = tokens.position.to(device) + len(head)
        full = math.prod(tokens.grid)
        parts = [
            (self.embed_tokens(torch.tensor(list(head), device=device)), torch.arange(len(head)))
        ]
        if stamps is None:
            parts.append((embeds, positions))
        else:
            lengths = torch.tensor([0, *map(len, stamps)]).cumsum(0).to(device)
            full += int(lengths[-1])
            frame = tokens.frame.to(device)
            for f in torch.unique(frame).tolist():
                start = len(head) + f * math.prod(tokens.grid[1:]) + int(lengths[f])
                ids = torch.tensor(list(stamps[f]), device=device)
                parts.append((self.embed_tokens(ids), torch.arange(start, start + len(ids))))
                mine = frame == f
                parts.append((embeds[mine], positions[mine] + lengths[f + 1]))
        cache = DynamicCache(config=self.language_model.config)
        sequence = torch.cat([p[0].to(embeds.dtype) for p in parts])[None]
        places = torch.cat([p[1].to(device) for p in parts])[None]
        self.language_model.base_model(
            inputs_embeds=sequence, position_ids=places, past_key_values=cache, use_cache=True
        )
        return Prefix(cache, sequence.shape[1], len(head) + full)

    @torch.inference_mode()
    def generate_from(
        self,
        prefix: Prefix,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Answer several prompts about one prefix, which is computed once; it is used up.

        Args:
            prefix: from `prefill`.
            prompts: ids after the video, of any lengths; one answer each.
            max_new_tokens: the longest answer.
            eos: id that ends an answer (not returned).
            temperature: 0 for the most likely token, else sampling with `generator`.

        Returns:
            New ids of every prompt.
        """
        device = self.device
        rows, width = len(prompts), max(map(len, prompts))
        if rows > 1:
            prefix.cache.batch_repeat_interleave(rows)
        ids = torch.zeros(rows, width, dtype=torch.long, device=device)
        mask = torch.ones(rows, prefix.length + width, dtype=torch.long, device=device)
        positions = torch.zeros_like(ids)
        for r, prompt in enumerate(prompts):  # padding stands between the video and the prompt
            pad = width - len(prompt)
            ids[r, pad:] = torch.tensor(list(prompt), device=device)
            mask[r, prefix.length : prefix.length + pad] = 0
            positions[r, pad:] = prefix.next_position + torch.arange(len(prompt), device=device)
        answers: list[list[int]] = [[] for _ in range(rows)]
        running = [True] * rows
        for _ in range(max_new_tokens):
            logits = (
                self.language_model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=prefix.cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                .logits[:, -1]
                .float()
            )
            if temperature > 0:
                share = torch.softmax(logits / temperature, dim=-1)
                ids = torch.multinomial(share, 1, generator=generator)
            else:
                ids = logits.argmax(dim=-1, keepdim=True)
            for r, token in enumerate(ids[:, 0].tolist()):
                running[r] = running[r] and token != eos
                if running[r]:
                    answers[r].append(token)
            if not any(running):
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        return answers
