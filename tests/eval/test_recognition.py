"""Recognition heads, and vision encoders that learn to tell moves of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidllm.encoders.vision import get_vision
from vidllm.encoders.vision.heads import QueryHead
from vidllm.encoders.vision.recogniser import Recogniser
from vidllm.errors import InputError
from vidllm.eval.bench.recognition import (
    RecognitionSettings,
    fit_recognition,
    recognition_logits,
)
from vidllm.stage.order_pairs import PAIRS, StagePairs

VIT = {
    "type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}
TINY: dict[str, dict[str, Any]] = {
    "dist": {"vit": VIT, "temporal": 16, "width": 32},
    "squeezetime": {
        "image_size": 32,
        "chunk": 8,
        "widths": (8, 16, 16, 16),
        "blocks": (1, 1, 1, 1),
        "expansion": 2,
        "inner": 4,
    },
    "framewise": {"tower": VIT},
}


def clips(frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    pixels = torch.rand(2, frames, 3, 32, 32, generator=generator)
    return pixels, torch.rand(2, frames, generator=generator).cumsum(1)


@pytest.mark.parametrize("name", list(TINY))
def test_a_recogniser_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Recogniser(name, ["run", "jump"], TINY[name])
    if name != "framewise":
        model.train()(*clips(8))  # moves batch statistics
    model.eval().save(tmp_path)
    again = Recogniser.load(tmp_path)
    assert torch.equal(again(*clips(8)), model(*clips(8)))
    assert again.config["labels"] == ["run", "jump"]
    with pytest.raises(InputError, match="no recogniser"):
        Recogniser.load(tmp_path / "nowhere")


def test_the_query_head_takes_any_number_of_slots() -> None:
    head = QueryHead(32, 32, 3, output=8, frames=8).eval()
    encoder = get_vision("dist", **TINY["dist"]).eval()
    seen = encoder(*clips(16))
    assert torch.allclose(head.places(seen)[0], head.place)  # 8 slots: as they were learned
    short = head.places(encoder(*clips(6)))
    assert torch.allclose(short[0, 1], (head.place[3] + head.place[4]) / 2)


class Moves:
    """Clips that move to the right or to the left, so many of them, gone round in."""

    labels = ("right", "left")

    def __init__(self, split: str, clips: int) -> None:
        self.pairs, self.clips = StagePairs(split, frames=12, size=32), clips
        self.made: dict[int, tuple[Tensor, Tensor, int]] = {}

    def clip(self, index: int) -> tuple[Tensor, Tensor, int]:
        pair, way = divmod(index % self.clips, 2)
        if index % self.clips not in self.made:
            self.made[index % self.clips] = self.pairs.clip(2 * len(PAIRS) * pair + way)
        return self.made[index % self.clips]


@pytest.mark.parametrize(
    ("name", "steps", "lr", "warmup"), [("dist", 100, 2e-3, 20), ("squeezetime", 60, 4e-3, 10)]
)
def test_it_learns_to_tell_moves_on_new_scenes(
    name: str, steps: int, lr: float, warmup: int
) -> None:
    options = {**TINY[name], **({"chunk": 12} if name == "squeezetime" else {})}
    settings = RecognitionSettings(name, options, steps, lr, warmup)
    model, losses = fit_recognition(settings, Moves("train", 160))
    found = torch.tensor(losses)
    assert len(found) == steps and found[-20:].mean() < 0.9 * found[:20].mean()
    logits, labels = recognition_logits(model, Moves("val", 64), 64)
    assert not model.training and (logits.argmax(1) == labels).float().mean() > 0.65


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="no CLS"):
        Recogniser("squeezetime", ["one", "two"], TINY["squeezetime"], head="query")
    with pytest.raises(InputError, match="at least 1"):
        fit_recognition(RecognitionSettings("squeezetime", {}, 0, 1e-3), Moves("train", 2))
    for labels in (["one"], ["one", "one"]):
        with pytest.raises(InputError, match="two different labels"):
            Recogniser("squeezetime", labels, TINY["squeezetime"])
