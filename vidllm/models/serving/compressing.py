"""What our model classes in vLLM share: it stands before a family's own class.

vLLM's classes prune behind the tower (`_postprocess_video_embeds_evs`) and place what stays when a
prefill chunk meets it (`recompute_mrope_positions`); both are ours here. Pictures keep their tokens
and know their places from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .places import COLUMNS, detach, put
from .processing import FIELD


class Compressing:
    """Before a family's model."""

    config: Any
    model_config: Any
    _field: Any = None

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Embeddings of pictures, and of videos with their places behind them."""
        self._field = kwargs.pop(FIELD, None)
        return super().embed_multimodal(**kwargs)  # type: ignore[misc]

    def _postprocess_image_embeds_evs(self, images: Any, image_input: Any) -> Any:
        return images

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
        return rows.shape[1] == int(self.model_config.get_inputs_embeds_size()) + COLUMNS

    @property
    def _width(self) -> int:
        """Of a token in the decoder, without DeepStack's planes."""
        return int(self.config.text_config.hidden_size)

    def _tokens(self, patches: Iterable[int]) -> tuple[int, int, int]:
        """A grid of patches as one of tokens."""
        merge = int(self.config.vision_config.spatial_merge_size)
        frames, height, width = patches
        return frames, height // merge, width // merge
