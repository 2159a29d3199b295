"""Qwen2.5-VL in vLLM, its videos compressed behind the tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement

from .compressing import Compressing
from .places import Region, attach, extent, grid_places, lay_out
from .processing import Choosing, ChoosingInfo


class Info(ChoosingInfo, Qwen2_5_VLProcessingInfo):
    """What the family's processor is."""


class Processor(Choosing, Qwen2_5_VLMultiModalProcessor):
    """As many placeholders as tokens will stay."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        token = self.info.get_hf_config().video_token_id

        def placeholders(number: int) -> list[int]:
            grid = out_mm_kwargs["video"][number]["video_grid_thw"].data
            return [token] * self.count(hf_processor_mm_kwargs, grid)

        own = PromptReplacement(modality="video", target=[token], replacement=placeholders)
        return [own if update.modality == "video" else update for update in updates]


class Dummies(Qwen2_5_VLDummyInputsBuilder):
    """Prompts for vLLM's profiling, whose videos stand apart as those of clients must."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One picture or video after the other, each with a line behind it."""
        token = self.info.get_hf_processor().video_token
        return str(super().get_dummy_text(mm_counts)).replace(token, f"{token}\n")


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Dummies)
class CompressedQwen25VL(Compressing, Qwen2_5_VLForConditionalGeneration):
    """The tokens of a video stand side by side, and its seconds are in their positions."""

    @property
    def _watched(self) -> int:
        return max(self.config.vision_config.fullatt_block_indexes)

    def _in_order(self, signals: Tensor, grids: Sequence[Sequence[int]]) -> Tensor:
        """Back from the order of windows."""
        windows, begin = [], 0
        for grid in grids:
            index = torch.as_tensor(self.visual.get_rope_by_thw(*grid)[2]).cpu()
            windows.append(index + begin)
            begin += len(index)
        return signals[torch.argsort(torch.cat(windows)).to(signals.device)]

    def _postprocess_video_embeds_evs(self, videos: Any, video_input: Any) -> tuple[Tensor, ...]:
        grids = video_input["video_grid_thw"].tolist()
        paces = _paces(video_input.get("second_per_grid_ts"), len(grids))
        times = [
            ([frame * pace for frame in range(grid[0])], grid[0] * pace)
            for grid, pace in zip(grids, paces, strict=True)
        ]
        out = []
        reduced = self._reduced(videos, grids, times)
        for (grid, rows, numbers), pace in zip(reduced, paces, strict=True):
            places = torch.from_numpy(grid_places(grid, self._per_frame(pace)))
            out.append(attach(rows, places[:, numbers]))
        return tuple(out)

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        """Positions of the text and pictures of a prompt, and where its videos begin."""
        regions = []
        for feature in mm_features:
            where, data, kind = feature.mm_position, feature.data, feature.modality
            grid = self._tokens(data[f"{kind}_grid_thw"].data.tolist())
            pace = 1.0
            if kind == "video":
                told = data.get("second_per_grid_ts")
                pace = self._per_frame(_paces(None if told is None else told.data, 1)[0])
            places = grid_places(grid, pace)
            own = places if kind == "image" else None
            regions.append(Region(where.offset, where.length, extent(places), own))
        return lay_out(len(input_tokens), regions)

    def _per_frame(self, pace: float) -> float:
        """Positions from frame to frame."""
        return pace * float(getattr(self.config.vision_config, "tokens_per_second", 1.0))


def _paces(told: Any, videos: int) -> list[float]:
    """Seconds from frame to frame of the grid, one a video."""
    if told is None:
        return [1.0] * videos
    return [float(pace) for pace in torch.as_tensor(told).flatten().tolist()]
