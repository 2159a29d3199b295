"""What our model classes in vLLM share: it stands before a family's own class.

vLLM's classes prune behind the tower (`_postprocess_video_embeds_evs`) and place what stays when a
prefill chunk meets it (`recompute_mrope_positions`); both are ours here. Pictures keep their tokens
and know their places from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.utils import StageMissingLayer

from .choice import Choice
from .places import COLUMNS, detach, put
from .processing import FIELD, choices
from .reduction import reduce_video
from .signals import TowerWatch, wanted


class Compressing:
    """Before a family's model."""

    config: Any
    visual: Any
    _asked: Sequence[Choice] = ()

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        there = not isinstance(self.visual, StageMissingLayer)  # an engine without pictures
        self._watch = TowerWatch(self.visual.blocks[self._watched].attn) if there else None

    @property
    def _watched(self) -> int:
        """Which block's attention makes the signals: the last that attends to whole frames."""
        return -1

    def _in_order(self, signals: Tensor, grids: Sequence[Sequence[int]]) -> Tensor:
        """Signals of all videos of a call in the order of their tokens."""
        return signals

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Embeddings of pictures, and of videos with their places behind them."""
        field, grids = kwargs.pop(FIELD, None), kwargs.get("video_grid_thw")
        self._asked = [] if grids is None else choices(field, len(grids))
        if self._watch is not None:
            runs = "pixel_values_videos" in kwargs
            self._watch.on = runs and any(wanted(choice) for choice in self._asked)
        return super().embed_multimodal(**kwargs)  # type: ignore[misc]

    def _postprocess_image_embeds_evs(self, images: Any, image_input: Any) -> Any:
        return images

    def _reduced(
        self,
        videos: Sequence[Tensor],
        grids: Sequence[Sequence[int]],
        times: Sequence[tuple[Sequence[float], float]],
    ) -> Iterator[tuple[tuple[int, int, int], Tensor, Tensor]]:
        """For every video its grid of tokens, what stays of its rows, and their numbers.

        Args:
            grids: of patches. times: seconds of the frames, and of the last one's end.
        """
        planes: dict[str, Tensor] = {}
        if self._watch is not None and self._watch.on:
            read = self._watch.read(int(self.config.vision_config.spatial_merge_size) ** 2)
            planes = {name: self._in_order(plane, grids) for name, plane in read.items()}
        begin = 0
        for rows, patches, (seconds, end), choice in zip(
            videos, grids, times, self._asked, strict=True
        ):
            grid, here = self._tokens(patches), slice(begin, begin + len(rows))
            told = {name: planes[name][here] for name in wanted(choice) if name in planes}
            yield grid, *reduce_video(rows, self._width, grid, seconds, end, choice, told)
            begin += len(rows)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Any,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the embeddings of a chunk, and put them into the positions."""
        carried = [rows for rows in multimodal_embeddings if self._carries(rows)]
        positions = mrope_positions
        if carried:
            token = int(self.config.video_token_id)
            ids = torch.as_tensor(input_ids)
            positions = put(ids, carried, positions, num_computed_tokens, token)
        bare = [detach(rows)[0] if self._carries(rows) else rows for rows in multimodal_embeddings]
        return bare, positions, int(positions.max()) + 1 - positions.shape[1]

    def _carries(self, rows: Tensor) -> bool:
        planes = 1 + int(getattr(self, "deepstack_num_level", 0))
        return rows.shape[1] == self._width * planes + COLUMNS

    @property
    def _width(self) -> int:
        """Of a token in the decoder, without DeepStack's planes."""
        return int(self.config.text_config.hidden_size)

    def _tokens(self, patches: Iterable[int]) -> tuple[int, int, int]:
        """A grid of patches as one of tokens."""
        merge = int(self.config.vision_config.spatial_merge_size)
        frames, height, width = patches
        return frames, height // merge, width // merge
