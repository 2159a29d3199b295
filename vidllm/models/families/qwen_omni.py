"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: seconds told by positions; video without sound.

Towers and grids are those of Qwen2.5-VL and Qwen3-VL (with its DeepStack and, in the decoder, its
experts). The talkers are not touched: they read what the thinker gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vidllm.errors import InputError

from ..hooks.vision_tower import Sight
from .family import Adapter, Clip
from .qwen2_5_vl import Qwen25VL
from .qwen3_vl import Qwen3VL


class _Thinker(Adapter):
    token_types = False
    pace = "video_second_per_grid"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """As the base has it; a video's sound between its frames is refused."""
        if inputs.get("use_audio_in_video"):
            raise InputError(
                f"compress serves {self.family} for videos without their sound: leave out "
                "use_audio_in_video, or give the sound as an audio of its own"
            )
        talks = inputs.get("output_hidden_states") and inputs.get("return_dict_in_generate")
        if self.holder is not None and talks:  # as the whole model asks for its talker
            raise InputError(
                f"the talker of {self.family} reads the states of the full prompt, and this one is "
                "shorter: ask for text alone, with generation_mode='text' or return_audio=False"
            )
        return super().clips(ids, inputs, sight)  # type: ignore[safe-super]


class Qwen25Omni(_Thinker, Qwen25VL):
    """Windows of the tower and the pace as in Qwen2.5-VL."""

    family = "Qwen2.5-Omni"


class Qwen3Omni(_Thinker, Qwen3VL):
    """As Qwen3-VL, without times between frames."""

    family = "Qwen3-Omni"
    stamp = None
