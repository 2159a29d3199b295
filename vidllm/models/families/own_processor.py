"""Pixels and prompts from a family's own processor, for families whose pixels are not made here.

The processor gets frames that are read and chosen already, with their seconds as their metadata
(frame "numbers" of a video of one frame a second), so that what it writes into a prompt is the
clip's own time. It is asked once a clip, for a prompt that holds nothing but the video: its pixels,
and the text that it writes in the video's place. Questions are then put around that text.

Video processors of transformers need torchvision (`pip install 'vidllm[hub]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError


@dataclass(frozen=True)
class ProcessedVideo:
    """One video as a processor makes it.

    Attributes:
        pixels: arguments of the model, without those of the prompt's text.
        text: what stands in the video's place in a prompt.
    """

    pixels: dict[str, Tensor]
    text: str


#: What a processor returns of the text, which is another one with every question.
_KINDS = ("mm_token_type_ids", "moe_mm_token_type_ids")
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", *_KINDS)


class OwnProcessor:
    """A processor of transformers that takes videos.

    Args:
        processor: with `video_processor`, `video_token` and a call that returns
            `text_replacement_offsets`, as those of transformers 5.23.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @classmethod
    def load(cls, folder: str, family: str, **hub: Any) -> OwnProcessor:
        """From a folder or a name on the hub; `hub` has its revision, token and so on.

        Raises:
            InputError: files that are missing, or no torchvision.
        """
        from transformers import AutoProcessor

        try:
            found: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False, **hub)
        except Exception as error:  # whatever its many files and libraries trip over
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"{family} takes its pixels from its own processor, and that of '{folder}' cannot "
                f"be loaded ({reason}): pip install 'vidllm[hub]' for torchvision, and put the "
                "processor's files beside the weights"
            ) from error
        if not hasattr(found, "video_processor"):
            raise InputError(
                f"'{folder}' has no video processor: put processor_config.json and "
                "video_preprocessor_config.json beside its weights"
            )
        return cls(found)

    def video(
        self, frames: np.ndarray[Any, Any], seconds: Sequence[float], **options: Any
    ) -> ProcessedVideo:
        """A clip through the processor.

        Args:
            frames: (T, H, W, 3) uint8, in time order. seconds: (T,) when they are shown.
            options: of the family's processor.

        Raises:
            InputError: frames that the processor does not take.
        """
        times = [float(s) for s in seconds]
        metadata = {
            "total_num_frames": len(times),
            "fps": 1.0,
            "frames_indices": times,
            "duration": times[-1],
            "height": int(frames.shape[1]),
            "width": int(frames.shape[2]),
        }
        try:
            made = self.processor(
                text=[self.processor.video_token],
                videos=[frames.copy()],  # those of a clip cannot be written
                video_metadata=[metadata],
                do_sample_frames=False,
                input_data_format="channels_last",
                return_text_replacement_offsets=True,
                return_tensors="pt",
                **options,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"the model's own processor refuses these frames ({error}): use another size or "
                "number of frames"
            ) from error
        if not made.get("text_replacement_offsets"):
            raise InputError(
                "this processor does not say what it writes for a video: use transformers 5.23 or "
                "newer, and a processor that comes with it"
            )
        [offsets] = made["text_replacement_offsets"]
        pixels = {
            name: value
            for name, value in made.items()
            if isinstance(value, Tensor) and name not in _OF_TEXT
        }
        return ProcessedVideo(pixels, str(offsets[0]["replacement"]))

    def beside(self, ids: Tensor) -> dict[str, Tensor]:
        """What the processor tells of the tokens of a prompt (1, L): which are pictures' (Gemma 4,
        GLM), and which go to the experts for pictures (ERNIE)."""
        made = {}
        for name in _KINDS:
            tell = getattr(self.processor, f"create_{name}", None)
            if tell is not None and name in self.processor.model_input_names:
                made[name] = torch.tensor(tell(ids.tolist()), device=ids.device)
        return made

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of a clip, before anything runs."""
        video = self.processor.video_processor
        options = dict(getattr(self.processor, "videos_kwargs", None) or {})
        patches = video.get_num_of_video_patches(frames, height, width, options)
        return int(patches) // int(video.merge_size) ** 2
