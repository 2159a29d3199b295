"""Recognition heads, and vision encoders that learn to tell the actions of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidllm.encoders.vision import get_vision
from vidllm.encoders.vision.heads import QueryHead
from vidllm.errors import InputError
from vidllm.eval.bench.recogniser import Recogniser
from vidllm.eval.bench.recognition import RecognitionSettings, StageActions, train_recognition

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


def test_the_query_head_takes_text_embeddings_and_any_number_of_slots() -> None:
    head = QueryHead(32, 32, 3, output=8, frames=8).eval()
    rows = torch.randn(3, 8)
    head.set_classes(rows)
    assert torch.equal(head.classes, rows) and not head.classes.requires_grad
    encoder = get_vision("dist", **TINY["dist"]).eval()
    seen = encoder(*clips(16))
    assert torch.allclose(head.places(seen)[0], head.place)  # 8 slots: as they were learned
    short = head.places(encoder(*clips(6)))
    assert torch.allclose(short[0, 1], (head.place[3] + head.place[4]) / 2)
    with pytest.raises(InputError, match="classes are"):
        head.set_classes(rows[:2])


def test_stage_clips_show_one_action_and_are_always_the_same() -> None:
    task = StageActions("val", ("blink", "meet"), frames=4, size=32)
    for index in range(4):
        scene = task.scene(index)
        assert [e.action for e in scene.events] == [task.actions[index % 2]]
        assert sum(not a.hidden for a in scene.actors) == 1 + index % 2
    frames, seconds, label = task.batch(0, 2)
    assert torch.equal(frames[1], task.clip(1)[0]) and label.tolist() == [0, 1]
    assert frames.shape == (2, 4, 3, 32, 32) and bool((seconds.diff() > 0).all())
    assert not torch.equal(frames[0], StageActions("train", ("blink", "meet"), 4, 32).clip(0)[0])


@pytest.mark.parametrize(
    ("name", "steps", "lr", "warmup"), [("dist", 200, 1.5e-3, 40), ("squeezetime", 60, 4e-3, 10)]
)
def test_it_learns_to_tell_actions_on_new_scenes(
    name: str, steps: int, lr: float, warmup: int
) -> None:
    settings = RecognitionSettings(
        encoder=name,
        options=TINY[name],
        actions=("leave", "meet"),
        frames=8,
        size=32,
        steps=steps,
        clips=160,
        tested=64,
        lr=lr,
        warmup=warmup,
    )
    told: list[int] = []
    model, result = train_recognition(settings, lambda step, _: told.append(step))
    losses = torch.tensor(result.losses)
    assert losses[-20:].mean() < 0.9 * losses[:20].mean() and told == list(range(steps))
    assert result.accuracy > 0.65 and result.chance == 0.5 and not model.training


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="no stage action"):
        StageActions(actions=("fly",))
    with pytest.raises(InputError, match="no CLS"):
        Recogniser("squeezetime", ["one", "two"], TINY["squeezetime"], head="query")
    with pytest.raises(InputError, match="at least 1"):
        train_recognition(RecognitionSettings("squeezetime", steps=0))
    for labels in (["one"], ["one", "one"]):
        with pytest.raises(InputError, match="two different labels"):
            Recogniser("squeezetime", labels, TINY["squeezetime"])
