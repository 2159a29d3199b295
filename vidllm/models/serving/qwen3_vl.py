"""Qwen3-VL in vLLM, and its kin: before every frame stands its time, in words.

How many tokens of which frame stay is known behind the tower only. So the prompt has all of them in
the first frame, as vLLM's own pruning lays them out, and the whole region, words and all, is
embedded here once it is known what stands where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement

from .compressing import Compressing
from .places import Region, attach, extent, grid_places, lay_out
from .processing import Choosing, ChoosingInfo


class FrameProcessor(Choosing, Qwen3VLMultiModalProcessor):
    """As many placeholders as tokens will stay, all in the first frame."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)

        def region(number: int) -> Any:
            item = out_mm_kwargs["video"][number]
            times = [float(second) for second in item["timestamps"].data]
            count = self.count(hf_processor_mm_kwargs, item["video_grid_thw"].data)
            counts = [count, *[0] * (len(times) - 1)]
            return script(self.info.get_hf_config(), self.info.get_tokenizer(), counts, times)

        return [
            PromptReplacement(modality="video", target=update.target, replacement=region)
            if update.modality == "video"
            else update
            for update in updates
        ]


def script(config: Any, tokenizer: Any, counts: Sequence[int], times: Sequence[float]) -> Any:
    """A video as vLLM writes it: the time of every frame, and so many placeholders."""
    return Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=list(counts),
        timestamps=list(times),
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
        select_token_id=False,
    )


class CompressingFrames(Compressing):
    """Before a model of the family."""

    _tokenizer: Any
    get_language_model: Any

    def _postprocess_video_embeds_evs(self, videos: Any, video_input: Any) -> tuple[Tensor, ...]:
        grids = video_input["video_grid_thw"].tolist()
        stamps = [[float(second) for second in one] for one in video_input["timestamps"]]
        reduced = self._reduced(videos, grids, [_read(one) for one in stamps])
        return tuple(
            self._written(rows, numbers, grid, one)
            for (grid, rows, numbers), one in zip(reduced, stamps, strict=True)
        )

    def _written(
        self, left: Tensor, numbers: Tensor, grid: tuple[int, int, int], times: Sequence[float]
    ) -> Tensor:
        """The region of a video, words and tokens, with their places behind them."""
        frames, rows, columns = grid
        counts = torch.bincount(numbers // (rows * columns), minlength=frames).tolist()
        ids = torch.tensor(script(self.config, self._tokenizer, counts, times).full)
        video = ids == int(self.config.video_token_id)
        words = self.get_language_model().embed_input_ids(ids[~video].to(left.device))
        region = left.new_zeros(len(ids), left.shape[1])
        region[video.to(left.device)] = left
        region[(~video).to(left.device), : words.shape[1]] = words.to(left)
        # Of the whole video: every frame begins behind the words before it.
        written = _frames_of(ids, int(self.config.vision_end_token_id))
        begins = torch.bincount(written[~video], minlength=frames) + max(rows, columns)
        begins = torch.cat([begins.new_zeros(1), begins.cumsum(0)[:-1]])
        places = torch.zeros(3, len(ids), dtype=torch.long)
        cells = torch.from_numpy(grid_places((1, rows, columns)))[:, numbers % (rows * columns)]
        start, last = int(self.config.vision_start_token_id), int(self.config.vision_end_token_id)
        for frame in range(frames):
            mine = torch.nonzero((written == frame) & ~video).flatten()
            before = len(mine) - 1  # the last one closes the frame
            along = torch.arange(len(mine))
            along[ids[mine] == last] += max(rows, columns)
            places[:, mine] = begins[frame] + along
            tokens = (written == frame) & video
            places[:, tokens] = (
                begins[frame] + before + cells[:, numbers // (rows * columns) == frame]
            )
        lead = int(torch.nonzero(ids == start)[0]) + 1
        return attach(region, places, lead)

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> tuple[Tensor, int]:
        """Positions of the text and pictures of a prompt, and where its videos begin."""
        regions = []
        for feature in mm_features:
            where, data, kind = feature.mm_position, feature.data, feature.modality
            grid = self._tokens(data[f"{kind}_grid_thw"].data.tolist())
            if kind == "image":
                places: np.ndarray = grid_places(grid)
                regions.append(Region(where.offset, where.length, extent(places), places))
                continue
            written = input_tokens[where.offset : where.offset + where.length]
            words = sum(token != self.config.video_token_id for token in written)
            taken = words + grid[0] * max(grid[1:])
            regions.append(Region(where.offset, where.length, taken))
        return lay_out(len(input_tokens), regions)


def _frames_of(ids: Tensor, last: int) -> Tensor:
    """(n,) which frame the tokens of a video's region belong to; `last` closes one."""
    closed = (ids == last).long()
    return closed.cumsum(0) - closed


def _read(times: Sequence[float]) -> tuple[list[float], float]:
    """Seconds of the frames as the prompt rounds them, and the end of the last one."""
    read = [float(f"{second:.1f}") for second in times]
    return read, read[-1] + (read[-1] - read[0]) / max(1, len(read) - 1)


class Info(ChoosingInfo, Qwen3VLProcessingInfo):
    """What the family's processor is."""


@MULTIMODAL_REGISTRY.register_processor(
    FrameProcessor, info=Info, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class CompressedQwen3VL(CompressingFrames, Qwen3VLForConditionalGeneration):
    """With DeepStack: its planes stand behind the embeddings, and follow them."""
