"""Qwen2.5-VL in vLLM, its videos compressed behind the tower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

from .places import COLUMNS, Region, attach, detach, extent, grid_places, lay_out, put
from .processing import FIELD, Choosing, ChoosingInfo, choices
from .reduction import reduce_video


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


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class CompressedQwen25VL(Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """The family's model; what it does to videos is done between tower and decoder."""

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Embeddings of pictures, and of videos with their places behind them."""
        self._field = kwargs.pop(FIELD, None)
        return super().embed_multimodal(**kwargs)

    def _postprocess_image_embeds_evs(self, images: Any, image_input: Any) -> Any:
        return images  # their places are known from the start

    def _postprocess_video_embeds_evs(self, videos: Any, video_input: Any) -> tuple[Tensor, ...]:
        grids = video_input["video_grid_thw"].tolist()
        asked = choices(self._field, len(grids))
        paces = _paces(video_input.get("second_per_grid_ts"), len(grids))
        out = []
        for rows, patches, pace, choice in zip(videos, grids, paces, asked, strict=True):
            grid = self._tokens(patches)
            seconds = [frame * pace for frame in range(grid[0])]
            width = int(self.config.text_config.hidden_size)
            rows, numbers = reduce_video(rows, width, grid, seconds, grid[0] * pace, choice)
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

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: Any, **chunk: int
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the embeddings of a chunk, and put them into the positions."""
        carried = [rows for rows in multimodal_embeddings if self._carries(rows)]
        positions = mrope_positions
        if carried:
            ids = torch.as_tensor(input_ids)
            computed, token = chunk["num_computed_tokens"], int(self.config.video_token_id)
            positions = put(ids, carried, positions, computed, token)
        bare = [detach(rows)[0] if self._carries(rows) else rows for rows in multimodal_embeddings]
        return bare, positions, int(positions.max()) + 1 - positions.shape[1]

    def _carries(self, rows: Tensor) -> bool:
        return rows.shape[1] == self.model_config.get_inputs_embeds_size() + COLUMNS

    def _tokens(self, patches: Iterable[int]) -> tuple[int, int, int]:
        merge = self.config.vision_config.spatial_merge_size
        frames, height, width = patches
        return frames, height // merge, width // merge

    def _per_frame(self, pace: float) -> float:
        return pace * getattr(self.config.vision_config, "tokens_per_second", 1.0)


def _paces(told: Any, videos: int) -> list[float]:
    """Seconds from frame to frame of the grid, one a video."""
    if told is None:
        return [1.0] * videos
    return [float(pace) for pace in torch.as_tensor(told).flatten().tolist()]
