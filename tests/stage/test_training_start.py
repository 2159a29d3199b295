"""Starting from a trained model: at first the larger one says what the trained one says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidllm import InputError
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM
from vidllm.stage.training import settings as plans
from vidllm.stage.training.settings import TrainSettings, build_model
from vidllm.stage.training.start import start_from


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a conv tower and two decoder layers, with weights of its own."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    model, tokenizer = build_model(TrainSettings(out="", size="tiny", vision="conv"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def larger(layers: int = 6) -> tuple[NativeVideoLLM, object]:
    torch.manual_seed(2)
    model, tokenizer = build_model(TrainSettings(out="", size="tiny", vision="vit"))
    config = model.config.to_dict()
    config["text"] = {**config["text"], "num_hidden_layers": layers}
    return NativeVideoLLM(NativeConfig(**config)), tokenizer


def test_a_deeper_decoder_starts_as_the_trained_one(trained: Path) -> None:
    model, tokenizer = larger()
    start_from(model, tokenizer, trained)
    ids = torch.tensor([[7, 3, 90, 41, 12]])
    with torch.no_grad():
        ours = model.language_model(ids).logits
        theirs = NativeVideoLLM.from_pretrained(trained).language_model(ids).logits
    assert torch.equal(ours, theirs)


def test_a_vit_takes_the_convolutions_as_its_stem(trained: Path) -> None:
    model, tokenizer = larger()
    start_from(model, tokenizer, trained)
    own, old = model.state_dict(), NativeVideoLLM.from_pretrained(trained).state_dict()
    stem = "vision.model.embeddings.patch_embedding."
    assert torch.equal(own[f"{stem}3.weight"], old["vision.stem.3.weight"])
    first = own[f"{stem}0.weight"]  # 5 x 5, the 3 x 3 in its middle
    assert torch.equal(first[..., 1:-1, 1:-1], old["vision.stem.0.weight"])
    assert first.abs().sum() == first[..., 1:-1, 1:-1].abs().sum()


def test_words_go_by_their_spelling(trained: Path) -> None:
    model, tokenizer = larger()
    before = model.state_dict()["language_model.model.embed_tokens.weight"].clone()
    words = tokenizer.get_vocab()
    moved = {word: len(words) - 1 - row for word, row in words.items()}
    new = moved.pop("red")

    class Moved:
        def get_vocab(self) -> dict[str, int]:
            return {**moved, "crimson": new}

    start_from(model, Moved(), trained)  # type: ignore[arg-type]
    name = "language_model.model.embed_tokens.weight"
    own = model.state_dict()[name]
    old = NativeVideoLLM.from_pretrained(trained).state_dict()[name]
    assert all(torch.equal(own[row], old[words[word]]) for word, row in moved.items())
    assert torch.equal(own[new], before[new])


def test_a_model_of_another_width_is_refused(trained: Path, monkeypatch) -> None:
    monkeypatch.setitem(
        plans.SIZES, "odd", {**plans.SIZES["tiny"], "width": 48, "widths": (9, 18, 18)}
    )
    monkeypatch.setitem(plans.TEMPORAL, "none", [])
    model, tokenizer = build_model(TrainSettings(out="", size="odd", temporal="none"))
    with pytest.raises(InputError, match="use the same size"):
        start_from(model, tokenizer, trained)
