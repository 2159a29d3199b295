"""A trained head with all that it takes to ask it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vidllm.errors import WorkError

from ..engine import Decoded
from .frozen_frames import FrozenFrames
from .head_config import HeadConfig

if TYPE_CHECKING:
    from vidllm.video import VideoClip


class HeadSystem(nn.Module, ABC):
    """What is trained, and the frozen model beside it, which is none of its modules.

    Args:
        config: of all parts. frozen: features, None for a system that sees pixels.
        tokenizer: of its sentences, None for one that reads none.
    """

    course: ClassVar[str]
    #: Begins of the names of weights that are the frozen model's and not saved.
    elsewhere: tuple[str, ...] = ()

    def __init__(
        self,
        config: HeadConfig,
        frozen: FrozenFrames | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self._frozen = [frozen]  # in a list: its weights are not saved with these

    @property
    def frozen(self) -> FrozenFrames:
        """The frozen model. Raises WorkError where there is none."""
        if self._frozen[0] is None:
            raise WorkError(f"{self.config.recipe} has no frozen model")
        return self._frozen[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def see(self, clip: VideoClip) -> Tensor:
        """What the system reads of a clip, made once for all questions about it."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch of the system's course: `total` is what is minimised."""

    @abstractmethod
    def check(self, question: str) -> None:
        """Refuse a question that the system cannot answer, with an `InputError` that says why."""

    @abstractmethod
    def answer(self, seen: Tensor, clip: VideoClip, questions: Sequence[str]) -> list[Decoded]:
        """Answers to questions about a clip that was seen."""

    def kept(self) -> dict[str, Tensor]:
        """The weights that are saved, in bfloat16; whole numbers as they are."""
        return {
            name: (value.to(torch.bfloat16) if value.is_floating_point() else value)
            .detach()
            .cpu()
            .contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith(self.elsewhere)
        }

    def take(self, state: dict[str, Tensor], where: Path) -> None:
        """Take weights over.

        Raises:
            WorkError: they are not those of this system.
        """
        whole = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        try:
            missing, unknown = self.load_state_dict(whole, strict=False)
        except RuntimeError as error:
            raise WorkError(f"the weights in {where} do not fit its config") from error
        if unknown or any(not name.startswith(self.elsewhere) for name in missing):
            raise WorkError(f"the weights in {where} do not fit its config")

    def files(self) -> dict[str, bytes]:
        """The small files beside the weights, by name."""
        found = {"config.json": json.dumps(self.config.as_dict(), indent=1).encode() + b"\n"}
        if self.tokenizer is not None:
            told = self.tokenizer.backend_tokenizer.to_str(pretty=False)
            named = {"tokenizer_class": "PreTrainedTokenizerFast"}
            special = self.tokenizer.special_tokens_map
            found["tokenizer.json"] = told.encode()
            found["tokenizer_config.json"] = json.dumps({**named, **special}).encode() + b"\n"
        return found
