"""A temporal encoder in a hub model: the identity at first, trained, saved, and told its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import Image, Video, hf_inputs, hf_model, hooks_of, tokenizer
from hub_tiny import TAKES_VIDEOS, save_hub
from safetensors.torch import load_file, save_file
from videos import write_video

from vidllm import InputError, VideoLLM
from vidllm.ask.compression import compress
from vidllm.encoders.temporal import get_temporal
from vidllm.models.hooks.temporal import TemporalAdapter
from vidllm.tokens import VideoTokens
from vidllm.tokens.video_tokens import Keep

KINDS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", "video_llama_3", "qwen3_5",
         "gemma4")  # fmt: skip


def moved(module: Any, scale: float = 0.3) -> None:
    """As if it were trained."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))


@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_a_new_one_changes_nothing_and_a_trained_one_is_found_again(
    family: str, tmp_path: Path
) -> None:
    model = hf_model(family)
    inputs = hf_inputs(family, [[3, Video(4), 6], [5, Video(4), 9]])
    plain = model(**inputs).logits  # transformers hangs on hooks of its own when it runs first
    before = hooks_of(model)
    with compress(model, "none", temporal="ssd", processor=tokenizer()):
        assert torch.equal(model(**inputs).logits, plain)
    with compress(model, "vidcom2", keep=0.5, processor=tokenizer()):
        less = model(**inputs).logits
    half: dict[str, Any] = {"keep": 0.5, "processor": tokenizer()}
    with compress(model, "vidcom2", temporal="ssd", **half) as c:
        assert torch.equal(model(**inputs).logits, less)
        assert c.temporal is not None
        moved(c.temporal)
        trained = model(**inputs).logits
        assert trained.shape == less.shape and not torch.equal(trained, less)
        c.save_pretrained(tmp_path)
    assert torch.equal(model(**inputs).logits, plain) and hooks_of(model) == before
    assert not any("vidllm" in name for name, _ in model.named_modules())
    for told in (tmp_path, tmp_path / "temporal.safetensors", c.temporal):
        with compress(model, "vidcom2", temporal=told, **half):
            assert torch.equal(model(**inputs).logits, trained)


@torch.no_grad()
def test_every_video_of_a_batch_is_encoded_alone_and_pictures_are_not() -> None:
    family = "qwen2_5_vl"
    model, encoder = hf_model(family), get_temporal("ssd", 32, head_dim=32)
    moved(encoder)
    rows = [[3, Video(4), Image(), 6, Video(2), 4], [5, Video(3), 9]]
    inputs = hf_inputs(family, rows)
    adapter = TemporalAdapter([{"name": "ssd", "head_dim": 32}], 32, "qwen2_5_vl")
    adapter.encoders[0].load_state_dict(encoder.state_dict())
    said: list[torch.Tensor] = []

    def enters(_module: Any, _args: Any, told: dict[str, Any]) -> None:
        said.append(told["inputs_embeds"])

    for temporal in (None, adapter):
        with compress(model, "none", temporal=temporal) as c:
            decoder = model.model.language_model
            handle = decoder.register_forward_pre_hook(enters, with_kwargs=True)
            model(**inputs)
            handle.remove()
            clips = c._session.adapter.clips(inputs["input_ids"], inputs, None)
    plain, mixed = said
    wanted = plain.clone()
    for clip in clips:
        seconds = torch.tensor([clip.seconds])
        grid = plain[clip.row, clip.where].view(1, clip.tokens.grid[0], -1, 32)
        wanted[clip.row, clip.where] = encoder(grid, seconds).view(-1, 32)
    torch.testing.assert_close(mixed, wanted)
    assert len(clips) == 3 and clips[0].seconds == (0.0, 1.0, 2.0, 3.0)


def test_cells_that_are_missing_are_as_they_were() -> None:
    adapter = TemporalAdapter([{"name": "ssd"}], 32, "any")
    moved(adapter)
    whole = VideoTokens.blank((3, 1, 2), [0.0, 1.0, 2.0], 3.0)
    features = torch.randn(6, 32)
    features[3], features[4] = features[1], features[2]
    kept = torch.tensor([0, 1, 2, 5])  # a cell of the second frame and one of the third are gone
    want = adapter(features, whole, (0.0, 1.0, 2.0))
    got = adapter(features[kept], whole.apply(Keep(kept)), (0.0, 1.0, 2.0))
    assert torch.equal(got, want[kept])
    low = adapter(features.bfloat16(), whole, (0.0, 1.0, 2.0))
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), want, atol=0.1)


@torch.no_grad()
def test_a_prefix_belongs_to_its_encoder() -> None:
    model, inputs = hf_model("qwen2_5_vl"), hf_inputs("qwen2_5_vl", [[3, Video(4), 6]])
    with compress(model, "vidcom2", keep=0.5) as c, c.reuse() as prefix:
        model(**inputs)
    with (
        compress(model, "vidcom2", keep=0.5, temporal="ssd") as c,
        pytest.raises(InputError, match="make a new Prefix"),
        c.reuse(prefix),
    ):
        pass


def test_a_hub_model_is_loaded_with_one(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 24, size=(64, 48))
    folder = save_hub(tmp_path / "model", "qwen2_5_vl", TAKES_VIDEOS)
    how: dict[str, Any] = {"compressors": "temporal-pool", "keep": 0.5, "frames": 8}

    def said(**more: Any) -> tuple[str, VideoLLM]:
        llm = VideoLLM.from_pretrained(folder, **how, **more)
        return llm.ask(video, "when?", max_new_tokens=8).raw, llm

    plain, _ = said()
    new, llm = said(temporal="ssd", recipe="storm")
    assert new == plain and llm.temporal is not None
    moved(llm.temporal)
    trained = llm.ask(video, "when?", max_new_tokens=8).raw  # the clip is not remembered as it was
    assert trained != plain
    path = llm.temporal.save_pretrained(tmp_path / "adapter")
    again, other = said(temporal=tmp_path / "adapter")
    assert again == trained and other.temporal is not None
    assert other.temporal.recipe == "storm" and other.engine.parts.mixing == ("ssd",)
    assert VideoLLM.from_pretrained(folder, recipe="storm", temporal=path).compressor.keep == 0.25
    with pytest.raises(InputError, match="reduces behind a temporal encoder"):
        VideoLLM.from_pretrained(folder, recipe="storm")
    with pytest.raises(InputError, match="are put into hub models: vidllm-stage is trained with"):
        VideoLLM.from_pretrained(temporal="ssd")
    with (
        pytest.raises(InputError, match=r"made for a qwen2_5_vl of width 32, and the model is a"),
        compress(hf_model("llava_onevision"), "none", temporal=path),
    ):
        pass
    state = load_file(path)
    for name, said_, reason in (
        ("plain", {"format": "pt"}, "holds no temporal encoder"),
        ("damaged", {"vidllm-temporal": "{"}, "damaged"),
    ):
        save_file(state, tmp_path / name, said_)
        with pytest.raises(InputError, match=reason) as caught:
            TemporalAdapter.load(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("sdd", "no temporal encoder 'sdd': did you mean ssd"),
        ("/nowhere", "give the folder of one that was saved"),
        (7, "with its options, not 7"),
        ([], "no temporal encoder was given"),
        ({"name": "ssd", "layer": 2}, "has no option 'layer'"),
        ({"name": "ssd", "layers": "two"}, "temporal encoder ssd:"),
        ({"name": "tsm", "zero_init": False}, "is not the identity before it is trained"),
    ],
)
def test_encoders_that_cannot_be_are_refused(told: Any, reason: str) -> None:
    model = hf_model("qwen2_5_vl")
    with pytest.raises(InputError, match=reason) as caught, compress(model, "none", temporal=told):
        pass
    assert "\n" not in str(caught.value)
    assert not any("vidllm" in name for name, _ in model.named_modules())
