"""MiniCPM-V 4.6 and 4.7: frames packed in a row, told apart by marks; 4.7 has M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError

from ..hooks.vision_tower import Sight, fold_fours, packed_signals
from .family import Adapter, Clip

_MARKS = 2  # ids between two frames of a video: the end of one and the start of the next


class MiniCPMV(Adapter):
    """Frames of any shape; 4 x 4 patches make a token, or 2 x 2 ("4x")."""

    tower_name = "vision_tower"
    beside = ("target_sizes_videos", "downsample_mode")
    processor_options = {"max_slice_nums": 1}  # noqa: RUF012

    def whole_grid(self) -> str:
        """Its own reason."""
        return "folds its grid between the layers of its tower"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told: frames count as seconds. Frames between which nothing but marks
        stands are one video's.

        Raises:
            InputError: frames that were cut into slices.
        """
        found = self.given(inputs)
        if not found:
            return []
        merge = 2 if (found["downsample_mode"] or self.config.downsample_mode) == "4x" else 4
        sizes = (torch.as_tensor(found["target_sizes_videos"]) // merge).tolist()
        copies = self.copies(ids, self.video_token, sum(h * w for h, w in sizes))
        grids: list[tuple[int, int, int]] = []
        first = 0
        for line in ids[::copies]:
            places, end = torch.nonzero(line == self.video_token).flatten(), 0
            while end < len(places):
                size, start = tuple(sizes[first]), end
                end, first = end + size[0] * size[1], first + 1
                if not start or int(places[start] - places[start - 1]) > 1 + _MARKS:
                    grids.append((0, *size))
                if grids[-1][1:] != size:
                    raise InputError(
                        f"{self.family}: frames that are cut into slices are not served: give the "
                        "processor max_slice_nums=1"
                    )
                grids[-1] = (grids[-1][0] + 1, *size)
        return self.grid_clips(ids, grids)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token; in the last layer these are 2 x 2 either way."""
        counts = sight.arguments["cu_seqlens"].diff().tolist()
        sizes = torch.as_tensor(sight.inputs["target_sizes"])
        fold = round((int(sizes.prod(-1).sum()) / sum(counts)) ** 0.5)
        return fold_fours(packed_signals(sight), counts, (sizes // fold).tolist())
