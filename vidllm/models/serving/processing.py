"""vLLM's front end with a choice: how many placeholders a video gets, and the keys of its caches.

Both are classes to put before vLLM's own of a family. What a request says in `mm_processor_kwargs`
of compressor and keep is taken out of what goes to the family's processor; each video carries its
choice to the engine as a field of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig

from vidllm.errors import InputError

from .choice import OPTIONS, Choice, from_environment
from .places import check_apart
from .signals import wanted

#: The field of a video that carries its choice.
FIELD = "vidllm_choice"


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a request without ours."""
    return {name: value for name, value in options.items() if name not in OPTIONS}


def choices(field: Any, videos: int) -> list[Choice]:
    """The choices of a batch of videos, as the field carries them: (V, n) or V times (n,)."""
    if field is None:  # embeddings that were made elsewhere
        return [from_environment() or Choice()] * videos
    return [Choice.unpack(bytes(row.flatten().tolist())) for row in field]


class ChoosingInfo:
    """Before a family's `ProcessingInfo`: its processor never sees our options."""

    ctx: Any

    def get_hf_processor(self, **kwargs: Any) -> Any:
        """The family's processor."""
        return super().get_hf_processor(**plain(kwargs))  # type: ignore[misc]

    def _merge_and_resolve_mm_processor_kwargs(self, mm_kwargs: Mapping[str, Any]) -> Any:
        return super()._merge_and_resolve_mm_processor_kwargs(  # type: ignore[misc]
            plain(mm_kwargs)
        )


class Choosing:
    """Before a family's `MultiModalProcessor`."""

    info: Any

    def choice_of(self, options: Mapping[str, Any]) -> Choice:
        """The choice of a request: what it names, and else the engine's.

        Raises:
            InputError: what cannot be served, by name and reason; that client alone gets it.
        """
        own = {name: options[name] for name in OPTIONS if name in options}
        choice = (from_environment() or Choice()).asked(own)
        if wanted(choice) and self.info.ctx.get_mm_config().mm_encoder_tp_mode == "data":
            raise InputError(
                f"{choice.method.name} reads the vision tower's attention, which no process has "
                "whole with --mm-encoder-tp-mode data: leave that out"
            )
        return choice

    def count(self, options: Mapping[str, Any], grid: Tensor) -> int:
        """Placeholders of a video.

        Args:
            grid: (3,) of patches.
        """
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        frames, height, width = grid.tolist()
        return self.choice_of(options).count((frames, height // merge, width // merge))

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """One prompt, as vLLM calls it.

        Raises:
            InputError: a choice or a place of a video that cannot be served.
        """
        self.choice_of(inputs.hf_processor_mm_kwargs)
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        videos = result["mm_placeholders"].get("video", ())
        wrong = check_apart([(v.offset, v.length) for v in videos], len(result["prompt_token_ids"]))
        if wrong:
            raise InputError(wrong)
        return result

    def _get_mm_hashes(self, inputs: Any) -> Any:
        choice = self.choice_of(inputs.hf_processor_mm_kwargs)
        bare = replace(inputs, hf_processor_mm_kwargs=plain(inputs.hf_processor_mm_kwargs))
        hashes = dict(super()._get_mm_hashes(bare))  # type: ignore[misc]
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        if "video" in hashes:
            hashes["video"] = [
                MultiModalHasher.hash_kwargs(algorithm, video=known, choice=choice.pack())
                for known in hashes["video"]
            ]
        return hashes

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._call_hf_processor(hf_data, plain(hf_kwargs))  # type: ignore[misc]

    def _postprocess_hf_mm_data(self, mm_inputs: Any, options: Any, processed: Any) -> Any:
        done = super()._postprocess_hf_mm_data(  # type: ignore[misc]
            mm_inputs, options, processed
        )
        if "video_grid_thw" in done:
            packed = torch.tensor(list(self.choice_of(options).pack()), dtype=torch.uint8)
            done[FIELD] = packed.expand(len(done["video_grid_thw"]), -1).contiguous()
        return done

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(  # type: ignore[misc]
            hf_inputs, hf_processor_mm_kwargs
        )
        return {**fields, FIELD: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}
