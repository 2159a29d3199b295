"""Which action a clip shows, by a vision encoder that sees time and its recognition head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.encoders.vision import HubTower, to_pixels
from vidllm.encoders.vision.recogniser import Recogniser
from vidllm.errors import InputError
from vidllm.errors.bounds import short

from ..engine import Decoded
from .asked import Choice, choice_asked
from .frozen_frames import FrozenFrames
from .head_config import HeadConfig
from .system import HeadSystem

if TYPE_CHECKING:
    from vidllm.video import VideoClip

_WHAT = re.compile(r"\b(?:what|which)\b.*\b(?:happens?|actions?|does|do|is)\b", re.IGNORECASE)


#: Where an encoder has the tower of single frames that may be a trained model's.
_TOWERS = {"dist": "vit", "framewise": "tower"}


class ActionNamer(HeadSystem):
    """Names one of the actions that it was taught.

    An image transformer inside is the tower of the model that the system stands on: frozen, unless
    the encoder's options say "frozen": false.
    """

    course: ClassVar[str] = "recognition"

    def __init__(
        self,
        config: HeadConfig,
        frozen: FrozenFrames | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config, frozen, tokenizer)
        options = dict(config.encoder)
        name, head = options.pop("name"), options.pop("head", "")
        place, stays = _TOWERS.get(name, ""), bool(options.pop("frozen", True))
        if frozen is not None and place:
            options[place] = {**transformer_of(frozen, config), "frozen": stays}
        self.recogniser = Recogniser(name, config.labels, options, head)
        if frozen is not None and place:
            tower = getattr(self.recogniser.encoder, place)
            tower.load_state_dict(frozen.model.vision.state_dict())
            if stays:
                self.elsewhere = (f"recogniser.encoder.{place}.",)

    def see(self, clip: VideoClip) -> Tensor:
        """(labels,) log-probabilities of the actions."""
        encoder = self.recogniser.encoder
        pixels = to_pixels(torch.from_numpy(clip.frames.copy()).to(self.device), encoder.image_size)
        seconds = torch.from_numpy(clip.seconds.copy()).to(self.device, torch.float32)
        with torch.no_grad():
            return F.log_softmax(self.recogniser(pixels[None], seconds[None])[0].float(), dim=-1)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy and accuracy: `frames` (B, T, 3, S, S), `seconds` (B, T), `label` (B,)."""
        logits = self.recogniser(batch["frames"], batch["seconds"]).float()
        right = (logits.argmax(1) == batch["label"]).float().mean()
        return {"total": F.cross_entropy(logits, batch["label"]), "accuracy": right}

    def check(self, question: str) -> None:
        asked = choice_asked(question)
        if not asked.options and not _WHAT.search(question):
            known = ", ".join(self.config.labels)
            raise InputError(
                f"{self.config.recipe} names one of the actions {known} and "
                f"says nothing else: ask what happens; this asks for {short(question)}"
            )
        self._labels(asked)

    def _labels(self, asked: Choice) -> list[int]:
        """The labels that may be the answer.

        Raises:
            InputError: an option that is none.
        """
        if not asked.options:
            return list(range(len(self.config.labels)))
        known = {_plain(label): k for k, label in enumerate(self.config.labels)}
        for option in asked.options:
            if _plain(option) not in known:
                raise InputError(
                    f"{self.config.recipe} does not know the action {short(option)}: it knows "
                    f"{', '.join(self.config.labels)}"
                )
        return [known[_plain(option)] for option in asked.options]

    def answer(self, seen: Tensor, clip: VideoClip, questions: Sequence[str]) -> list[Decoded]:
        found = []
        for question in questions:
            asked = choice_asked(question)
            may_be = self._labels(asked)
            share = seen[may_be].softmax(0)
            place = int(share.argmax())
            text = self.config.labels[may_be[place]]
            if asked.options:
                text = f"{asked.letters[place]}. {asked.options[place]}"
            note = (
                f"{self.config.recipe} names one of {len(may_be)} actions whatever a clip shows: "
                f"this one by {float(share[place]):.0%}"
            )
            found.append(Decoded(text, (), text, (note,)))
        return found


def transformer_of(frozen: FrozenFrames, config: HeadConfig) -> dict[str, object]:
    """The config of a frozen model's tower, for DiST beside it.

    Raises:
        InputError: the tower is no image transformer.
    """
    if not isinstance(frozen.model.vision, HubTower):
        kind = frozen.model.config.vision.get("type")
        raise InputError(
            f"{config.recipe} stands beside an image transformer, and the tower of "
            f"{config.start or 'this model'} is {kind!r}: give --init a model with one, such as "
            "one trained with --vision vit"
        )
    return dict(frozen.model.config.vision)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text).lower().split())
